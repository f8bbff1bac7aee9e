"""A headless Chromium, and the page as a person uses it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

MISSING = (
    "the page is tested in a real browser and none is here: install Debian's chromium and chromium-driver "
    "(apt-get install -y chromium chromium-driver), so that `chromium` and `chromedriver` are on PATH"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile. Fails, and does not skip, where there is none."""
    found, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert found is not None, MISSING
    assert driver is not None, MISSING
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def until(what: Callable[[], Any], message: str, seconds: float = 30) -> Any:
    """The first true value. Elements that are being replaced are looked for again."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        try:
            value = what()
        except (NoSuchElementException, StaleElementReferenceException):
            value = None
        if value:
            return value
        assert time.monotonic() < end, message
        time.sleep(0.05)


class PageInBrowser:
    """One tab with the page."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser, self.url = browser, url
        self.open()

    def open(self) -> None:
        self.browser.get(f"{self.url}/ui/")
        until(self.field, "the page did not come up")

    def find(self, css: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, css)

    def field(self) -> Any:
        return self.find("#box textarea")

    # ---- what a person does

    def upload(self, *files: Path) -> None:
        before = len(self.thumbnails())
        self.find("#box input[type=file]").send_keys("\n".join(map(str, files)))
        until(lambda: len(self.thumbnails()) == before + len(files), "the pictures were not uploaded")

    def thumbnails(self) -> list[Any]:
        return self.all("#box .thumbnail-item img, #box .thumbnail-image img, #box .thumbnails img")

    def hand_over(self, picture: Path, how: str) -> None:
        """how: "paste" into the text field, or "drop" on it."""
        import base64

        before = len(self.thumbnails())
        self.browser.execute_script(HAND_OVER, self.field(), base64.b64encode(picture.read_bytes()).decode(),
                                    picture.name, how)  # fmt: skip
        until(lambda: len(self.thumbnails()) == before + 1, f"the picture was not taken by {how}")

    def ask(self, question: str) -> None:
        self.field().send_keys(question, Keys.ENTER)

    def stop(self) -> None:
        until(lambda: self.find("#box .stop-button"), "there is no stop button").click()

    def press(self, name: str) -> None:
        button = self.find(f"#{name}")
        until(button.is_enabled, f"{name} cannot be pressed")
        button.click()

    def compare(self, wanted: bool) -> None:
        """Two columns, or one."""
        box = self.find("#compare input")
        if box.is_selected() != wanted:
            box.click()
        until(lambda: bool(self.all("#right")) == wanted, "the second column does not come or go")

    def set(self, name: str, value: str) -> None:
        """A value of the settings."""
        field = self.find(f"#{name} input, #{name} textarea")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.TAB)

    def open_settings(self) -> None:
        if not self.all("#system"):
            self.find("#settings button").click()
        until(lambda: self.find("#system").is_displayed(), "the settings do not open")

    # ---- what a person sees

    def answers(self, side: str = "left") -> list[str]:
        return [found.text for found in self.all(f"#{side} .bot.message")]

    def answer(self, side: str = "left") -> str:
        said = self.answers(side)
        return said[-1] if said else ""

    def pictures(self, side: str = "left", of: str = "bot") -> list[str]:
        """Addresses of the pictures in a column that a person ("user") or a model ("bot") shows."""
        return [found.get_attribute("src") for found in self.all(f"#{side} .{of}-row img")]

    def note(self, side: str = "left") -> str:
        return self.find(f"#{side}-note").text

    def idle(self) -> bool:
        """Whether everything asked for is answered."""
        return self.find("#again").is_enabled()

    def wait_idle(self, seconds: float = 30) -> None:
        until(self.idle, f"no answer came to its end: {self.answer()!r}", seconds)

    def grows(self, side: str = "left") -> list[int]:
        """Lengths of the answer while it is written."""
        lengths = []
        until(lambda: self.answer(side), "no answer began")
        while not self.idle():
            lengths.append(len(self.answer(side)))
            time.sleep(0.1)
        return lengths

    # ---- what the browser saw

    def hosts(self) -> set[str]:
        """Hosts that the tab asked for anything since the last call."""
        urls = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:", "chrome"))}

    def complaints(self) -> list[str]:
        """What stands in the console: mistakes of scripts, and what the policy refused."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


HAND_OVER = """
const [field, encoded, name, how] = arguments;
const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, {type: "image/png"}));
const event = how === "paste"
  ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})
  : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
field.dispatchEvent(event);
"""
