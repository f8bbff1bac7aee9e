"""`sensorium ui` as a person starts it: a trained model, its server and the page, in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import PageInBrowser, chromium, until
from PIL import Image

from sensorium.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA after a few steps: it answers, in no sensible words."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    with pytest.raises(SystemExit) as leaving:
        main(["train", "llava", "--size", "tiny", "--steps", "2", "--out", str(out), "--json"])
    assert not leaving.value.code
    return out


@pytest.fixture
def started(run: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The process, and what it says of itself."""
    command = [sys.executable, "-m", "sensorium", "ui", f"left={run}", f"right={run}", "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "sensorium ui ended before it said where the page is"
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()


def test_two_models_answer_about_a_picture(started: tuple[subprocess.Popen[str], dict[str, str]], tmp_path: Path):
    process, said = started
    assert said["page"] == f"{said['url']}/ui"
    Image.new("RGB", (96, 64), "red").save(tmp_path / "red.png")
    with chromium(tmp_path / "profile") as browser:
        page = PageInBrowser(browser, said["url"])
        page.open_settings()
        page.set("temperature", "0")
        page.set("max-tokens", "24")
        page.upload(tmp_path / "red.png")
        page.ask("What is this?")
        page.wait_idle(120)
        for side in ("left", "right"):
            assert "⚠" not in page.answer(side)
            assert "token" in page.note(side), page.answer(side)
        assert page.answer("left") == page.answer("right")
        before = page.answers("left")
        page.press("again")
        until(lambda: page.idle() and page.answers("left") == before, "the likeliest words changed", 60)
        with urllib.request.urlopen(f"{said['url']}/metrics") as response:
            numbers = response.read().decode()
        assert 'model="left"' in numbers
        process.send_signal(signal.SIGTERM)  # the tab is still open, and holds connections
        assert process.wait(30) == 0
        page.ask("And now?")
        until(lambda: "onnection" in page.find("body").text, "the page does not say that nobody is there", 30)
