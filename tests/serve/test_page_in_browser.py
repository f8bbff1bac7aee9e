"""The page in a real browser: what a person does with it, against a server that says what the test wants."""

from __future__ import annotations

import base64
import io
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import PageInBrowser, chromium, until
from fake_server import COUNTING, FakeServer, Running, free_port
from PIL import Image, ImageDraw

from sensorium.serve.page import mount_page
from sensorium.serve.page_boxes import COLOURS

pytestmark = pytest.mark.slow

BOXES = "I see <p>a cat</p> {<20><30><60><80>} on <p>a bench</p> {<5><70><95><98>}."


@pytest.fixture(scope="module")
def outside() -> Iterator[list[str]]:
    """Hosts other than this machine that this process looked up or connected to."""
    found: list[str] = []
    lookup, connect = socket.getaddrinfo, socket.socket.connect

    def note(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "localhost", "127.0.0.1", "::1"):
            found.append(str(name))

    def noted_lookup(host: Any, *more: Any, **options: Any) -> Any:
        note(host)
        return lookup(host, *more, **options)

    def noted_connect(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple):
            note(address[0])
        return connect(self, address)

    socket.getaddrinfo, socket.socket.connect = noted_lookup, noted_connect  # type: ignore[method-assign]
    yield found
    socket.getaddrinfo, socket.socket.connect = lookup, connect  # type: ignore[method-assign]


def with_page(fake: FakeServer, names: list[str]) -> Running:
    port = free_port()
    mount_page(fake.app, f"http://127.0.0.1:{port}/v1", names, keyed=fake.key is not None)
    return Running(fake.app, port)


@pytest.fixture(scope="module")
def fake() -> FakeServer:
    return FakeServer({"counting": COUNTING, "boxes": BOXES})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def url(fake: FakeServer, outside: list[str]) -> Iterator[str]:
    with with_page(fake, ["counting", "boxes"]) as found:
        yield found


@pytest.fixture
def page(browser: Any, url: str, fake: FakeServer) -> PageInBrowser:
    """A new session; the first model alone."""
    found = PageInBrowser(browser, url)
    found.compare(False)
    fake.asked.clear()
    return found


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.new("RGB", (640, 420), "#cfe8f5")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((130, 130, 380, 330), fill="#222222")
    pen.rectangle((30, 300, 610, 410), fill="#8a5a2b")
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    picture.save(path)
    return path


def pictures_of(body: dict[str, Any]) -> list[bytes]:
    parts = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def test_a_picture_is_uploaded_and_the_answer_streams(page: PageInBrowser, fake: FakeServer, cat: Path):
    page.upload(cat)
    page.ask("What is this?")
    lengths = page.grows()
    page.wait_idle()
    assert len(set(lengths)) > 5
    assert lengths == sorted(lengths)
    words = " ".join(COUNTING.split()[:256])
    assert page.answer().split() == words.split()
    assert "256 tokens" in page.note()
    assert "cut at the largest number of tokens" in page.note()
    [body] = fake.asked
    assert (body["model"], body["stream"], body["max_tokens"], body["temperature"]) == ("counting", True, 256, 0.7)
    assert pictures_of(body) == [cat.read_bytes()]
    assert "seed" not in body
    assert len(page.pictures(of="user")) == 1
    assert page.field().get_attribute("value") == ""
    assert page.thumbnails() == []


def test_pictures_are_pasted_dropped_and_asked_about_together(page: PageInBrowser, fake: FakeServer, cat: Path):
    page.hand_over(cat, "paste")
    page.hand_over(cat, "drop")
    page.upload(cat, cat)
    page.ask("say: four of them")
    page.wait_idle()
    assert page.answer() == "four of them"
    assert pictures_of(fake.asked[0]) == [cat.read_bytes()] * 4
    assert len(page.pictures(of="user")) == 4


def test_stopping_in_the_middle(page: PageInBrowser, fake: FakeServer):
    left = fake.left
    page.ask("Count.")
    until(lambda: len(page.answer()) > 30, "no answer began")
    page.stop()
    page.wait_idle(5)
    said = page.answer()
    assert COUNTING.startswith(said)
    assert len(said) < len(COUNTING) / 2
    assert "stopped" in page.note()
    until(lambda: fake.left == left + 1, "the server was not told to stop", 5)
    page.ask("say: and on")
    until(lambda: page.idle() and page.answer() == "and on", "the conversation does not go on")
    assert page.answers()[0] == said
    assert fake.asked[-1]["messages"][1] == {"role": "assistant", "content": said}


def test_closing_the_tab_stops_the_server(page: PageInBrowser, fake: FakeServer):
    left = fake.left
    page.ask("Count.")
    until(lambda: len(page.answer()) > 30, "no answer began")
    page.browser.get("about:blank")
    until(lambda: fake.left == left + 1, "the server goes on for nobody", 10)


def test_regenerating_asks_the_same_again(page: PageInBrowser, fake: FakeServer, cat: Path):
    fake.answers["counting"] = "the first answer"
    try:
        page.upload(cat)
        page.ask("What is this?")
        page.wait_idle()
        assert page.answers() == ["the first answer"]
        fake.answers["counting"] = "another answer"
        page.press("again")
        until(lambda: page.idle() and page.answers() == ["another answer"], "nothing was regenerated")
    finally:
        fake.answers["counting"] = COUNTING
    first, second = fake.asked
    assert first == second
    page.press("clear")
    until(lambda: not page.answers() and not page.pictures(of="user"), "nothing was cleared")
    page.ask("say: anew")
    page.wait_idle()
    assert len(fake.asked[-1]["messages"]) == 1


def test_two_models_are_compared(page: PageInBrowser, fake: FakeServer, cat: Path):
    page.compare(True)
    page.upload(cat)
    page.ask("What is this?")
    until(lambda: page.answer("right").endswith("98>}."), "the second model did not answer")
    assert not page.idle()  # the first one still counts
    page.stop()
    page.wait_idle()
    assert page.answer("left").startswith("word0 word1")
    assert {body["model"] for body in fake.asked} == {"counting", "boxes"}
    assert fake.asked[0]["messages"] == fake.asked[1]["messages"]
    assert "stopped" in page.note("left")
    assert "9 tokens" in page.note("right")
    assert [page.pictures(side, "user") != [] for side in ("left", "right")] == [True, True]
    page.ask("say: both")
    until(lambda: page.idle() and page.answer("left") == page.answer("right") == "both", "a column did not go on")
    assert {body["messages"][1]["content"] for body in fake.asked[2:]} == {page.answers("left")[0], BOXES}


def test_comparing_begins_with_what_was_said(page: PageInBrowser):
    page.ask("say: before")
    page.wait_idle()
    page.compare(True)
    until(lambda: page.answers("right") == ["before"], "the second column begins empty")
    page.ask("say: after")
    until(lambda: page.idle() and page.answers("right") == ["before", "after"], "the second column does not go on")


def test_boxes_are_drawn_on_the_picture(page: PageInBrowser, cat: Path):
    page.upload(cat)
    page.ask(f"say: {BOXES}")
    page.wait_idle()
    assert page.answer().startswith(BOXES)
    [drawn] = page.pictures(of="bot")
    with urllib.request.urlopen(drawn) as response:
        picture = Image.open(io.BytesIO(response.read())).convert("RGB")
    assert picture.size == (640, 420)
    red = tuple(int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5))
    assert picture.getpixel((128, 250)) == red  # left edge of the cat's box: 20 of 100
    assert picture.getpixel((300, 250)) != red
    assert "2 boxes" in page.note()


def test_settings_reach_the_server(page: PageInBrowser, fake: FakeServer):
    page.open_settings()
    page.set("system", "Be brief.")
    page.set("temperature", "0.25")
    page.set("max-tokens", "7")
    page.set("seed", "11")
    page.ask("Count.")
    page.wait_idle()
    [body] = fake.asked
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.25, 0.9, 7, 11)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.set("seed", "some")
    page.ask("Once more.")
    until(lambda: "whole number" in page.find("body").text, "a wrong seed is not spoken of")
    assert len(fake.asked) == 1
    assert page.field().get_attribute("value") == "Once more."


def test_failures_are_sentences(page: PageInBrowser, tmp_path: Path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for question, sentence in (
        ("be busy", "The server is busy: try again in 3 s."),
        ("be wrong", "The picture has 2,000,000,000 pixels, at most 50,000,000 are taken."),
        ("break", "The model failed on this request."),
    ):
        page.ask(question)
        until(lambda sentence=sentence: page.idle() and sentence in page.answer(), f"{sentence}: not said")
    page.upload(tmp_path / "torn.png")
    page.ask("What is this?")
    until(lambda: page.idle() and "torn.png" in page.answer(), "a torn picture is not spoken of")
    assert "Traceback" not in page.browser.page_source


def test_what_a_model_writes_is_not_obeyed(page: PageInBrowser, browser: Any):
    hostile = (
        '<img src="http://192.0.2.1/a.png" onerror="alert(1)"> ![x](http://192.0.2.1/b.png) <script>alert(2)</script>'
    )
    page.ask(f"say: {hostile}")
    page.wait_idle()
    assert page.answer() == hostile
    assert page.pictures(of="bot") == []
    assert "192.0.2.1" not in str(page.hosts())


def test_the_policy_holds_other_hosts_off(page: PageInBrowser, browser: Any):
    """Should a picture's address get into the page all the same."""
    script = """const done = arguments[arguments.length - 1], image = new Image();
    document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
    image.src = "http://192.0.2.1/spy.png"; document.body.append(image)"""
    assert browser.execute_async_script(script) == "http://192.0.2.1/spy.png"


def test_one_answer_at_a_time(page: PageInBrowser, fake: FakeServer):
    page.ask("Count.")
    until(lambda: page.answer(), "no answer began")
    page.ask("say: impatient")
    time.sleep(0.5)
    assert len(fake.asked) == 1
    page.stop()
    page.wait_idle()
    assert len(page.answers()) == 1


def test_a_narrow_window(page: PageInBrowser, browser: Any, cat: Path):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page.open()
        page.upload(cat)
        page.ask(f"say: {BOXES}")
        page.wait_idle()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        for part in ("#box textarea", "#again", "#clear", "#compare", "#left-model"):
            box = page.find(part).rect
            assert box["width"] > 0, part
            assert box["x"] + box["width"] <= 360, part
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_but_the_server_is_asked(page: PageInBrowser, outside: list[str], url: str, cat: Path):
    """Neither by the page nor by the process that serves it, and nothing of the page is refused by its own policy."""
    page.hosts(), page.complaints()
    page.open()
    page.upload(cat)
    page.ask(f"say: {BOXES}")
    page.wait_idle()
    page.open_settings()
    time.sleep(1)
    assert page.hosts() == {url.removeprefix("http://")}
    assert [line for line in page.complaints() if "favicon" not in line and "anifest" not in line] == []
    assert [found for found in page.all("button[aria-label=Share]") if found.is_displayed()] == []
    assert outside == []


def test_two_people_do_not_see_each_other(page: PageInBrowser, fake: FakeServer, url: str, tmp_path: Path):
    """Each with a conversation of their own; one stops, the other goes on."""
    with chromium(tmp_path) as browser:
        other = PageInBrowser(browser, url)
        other.compare(False)
        page.ask("Count.")
        other.ask("Count too.")
        until(lambda: page.answer() and other.answer(), "one of two got no answer")
        page.stop()
        page.wait_idle()
        length = len(other.answer())
        until(lambda: len(other.answer()) > length + 30, "the other one's answer ended too")
        assert not other.idle()
        other.stop()
        other.wait_idle()
        assert "Count too." not in page.find("body").text


def test_a_server_with_keys_asks_for_one(browser: Any):
    fake = FakeServer({"only": "hello"}, key="secret")
    with with_page(fake, ["only"]) as url:
        page = PageInBrowser(browser, url)
        assert "secret" not in browser.page_source
        page.compare(False)
        page.ask("Hello?")
        until(lambda: page.idle() and "API key" in page.answer(), "a missing key is not spoken of")
        page.set("key", "secret")
        page.press("again")
        until(lambda: page.idle() and page.answer() == "hello", "the key does not open")


def test_a_server_that_is_gone(browser: Any):
    app = FakeServer({"only": "hello"}).app
    port = free_port()
    mount_page(app, f"http://127.0.0.1:{free_port()}/v1", ["only"])
    with Running(app, port) as url:
        page = PageInBrowser(browser, url)
        page.ask("Hello?")
        until(lambda: page.idle() and "cannot be reached" in page.answer(), "nothing is said")
