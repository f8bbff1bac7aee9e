"""What the page is made of, without a browser: boxes, messages, failures as sentences, text that does no harm."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import COUNTING, FakeServer, Running, free_port
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorium.data.boxes import FoundBox
from sensorium.errors import UserError
from sensorium.serve.page import mount_page
from sensorium.serve.page_boxes import COLOURS, draw_boxes
from sensorium.serve.page_chat import Answer, Settings, Turn, as_markdown, ask, messages, note, shown
from sensorium.serve.page_client import client_for

SETTINGS = Settings(system="Be brief.", temperature=0.0, top_p=1.0, max_tokens=500, seed=7)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100), "white").save(tmp_path / "white.png")
    return tmp_path / "white.png"


def asked(server: str, turns: list[Turn], folder: Path, settings: Settings = SETTINGS, stop_after: int = 0) -> int:
    """Ask, stop after so many updates (0: never); how many updates there were."""

    async def run() -> int:
        tasks: set[asyncio.Task[None]] = set()
        updates = 0
        async with client_for(f"{server}/v1") as client:
            async for _ in ask(client, turns, settings, folder, tasks):
                updates += 1
                if updates == stop_after:
                    for task in tasks:
                        task.cancel()
        assert tasks == set()
        return updates

    return asyncio.run(run())


# ---- boxes


def colour(name: str) -> tuple[int, ...]:
    return tuple(int(name[place : place + 2], 16) for place in (1, 3, 5))


def test_boxes_are_outlined_where_they_are():
    drawn = draw_boxes(Image.new("RGB", (1000, 500), "white"), [FoundBox((0.2, 0.4, 0.6, 0.8), None)])
    assert drawn.size == (1000, 500)
    rows, columns = np.nonzero((np.asarray(drawn) == colour(COLOURS[0])).all(-1))
    assert (columns.min(), columns.max()) == pytest.approx((200, 600), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((200, 400), abs=2)
    assert drawn.getpixel((400, 300)) == (255, 255, 255)


def test_boxes_with_one_name_share_a_colour_and_numbers_stand_for_names_without_letters():
    white = Image.new("RGB", (900, 900), "white")
    boxes = [FoundBox((0.1, y, 0.3, y + 0.1), label) for y, label in ((0.1, "cat"), (0.4, "cat"), (0.7, "dog"))]
    drawn = draw_boxes(white, boxes)
    assert [drawn.getpixel((180, round(899 * y) - 1)) for y in (0.2, 0.5, 0.8)] == [
        colour(COLOURS[0]), colour(COLOURS[0]), colour(COLOURS[1]),
    ]  # fmt: skip
    one = draw_boxes(white, [FoundBox((0.1, 0.4, 0.3, 0.5), "1")])
    assert draw_boxes(white, [FoundBox((0.1, 0.4, 0.3, 0.5), "猫")]).tobytes() == one.tobytes()


@settings(max_examples=30)
@given(st.tuples(st.integers(1, 60), st.integers(1, 60)), st.lists(st.floats(0, 1), min_size=4, max_size=4), st.text())
def test_any_box_is_drawn_on_any_picture(size: tuple[int, int], edges: list[float], label: str):
    (x0, x1), (y0, y1) = sorted(edges[:2]), sorted(edges[2:])
    drawn = draw_boxes(Image.new("RGB", size), [FoundBox((x0, y0, x1, y1), label or None)])
    assert max(drawn.size) == 480


# ---- what is asked


def test_messages_hold_pictures_and_leave_out_what_was_not_answered(picture: Path):
    turns = [
        Turn("What is it?", (str(picture),), [Answer("a", "White."), Answer("b", "Snow.")]),
        Turn("And now?", (), [Answer("a", state="failed", error="It broke."), Answer("b", "Ice.")]),
        Turn("Sure?", (), [Answer("a"), Answer("b")]),
    ]
    made = messages(turns, 0, "Be brief.")
    assert [message["role"] for message in made] == ["system", "user", "assistant", "user"]
    url = made[1]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == picture.read_bytes()
    assert made[1]["content"][1] == {"type": "text", "text": "What is it?"}
    assert made[-1] == {"role": "user", "content": "Sure?"}
    assert [message["content"] for message in messages(turns, 1, " ")[1:]] == ["Snow.", "And now?", "Ice.", "Sure?"]


def test_a_new_column_takes_over_what_was_said(picture: Path):
    turns = [Turn("One?", (), [Answer("a", "One.")]), Turn("Two?", (), [Answer("a"), Answer("b")])]
    assert messages(turns, 1, "") == messages(turns, 0, "")


def test_answers_stream_and_are_counted(tmp_path: Path, picture: Path):
    said = "<p>it</p> {<10><20><50><60>} " + COUNTING
    fake = FakeServer({"a": said, "b": "short"}, delay=0.001)
    turns = [Turn("Where?", (str(picture),), [Answer("a"), Answer("b")])]
    with Running(fake.app) as server:
        assert asked(server, turns, tmp_path) > 3
    first, second = turns[0].answers
    assert (first.text, first.state, first.tokens) == (said, "done", 402)
    assert (second.text, second.state, second.tokens) == ("short", "done", 1)
    assert {body["model"] for body in fake.asked} == {"a", "b"}
    [same] = {json.dumps({**body, "model": ""}, sort_keys=True) for body in fake.asked}
    body = json.loads(same)
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0, 1, 500, 7)
    assert "402 tokens" in note(turns, 0)
    assert "1 box" in note(turns, 0)
    assert note(turns, 1).startswith("1 token ·")
    assert first.drawn is not None
    assert second.drawn is None
    assert Image.open(first.drawn[0]).size == (480, 240)
    assert [message["role"] for message in shown(turns, 0)] == ["user", "assistant"]


def test_stopping_keeps_what_was_said_and_hangs_up(tmp_path: Path):
    fake = FakeServer({"a": COUNTING}, delay=0.02)
    turns = [Turn("Count.", (), [Answer("a")])]
    with Running(fake.app) as server:
        asked(server, turns, tmp_path, stop_after=5)
        end = time.monotonic() + 10
        while not fake.left and time.monotonic() < end:
            time.sleep(0.02)
        assert fake.left == 1
    answer = turns[0].answers[0]
    assert answer.state == "stopped"
    assert COUNTING.startswith(answer.text)
    assert 0 < len(answer.text) < len(COUNTING)
    assert "stopped" in note(turns, 0)


def test_an_answer_that_is_cut_says_so(tmp_path: Path):
    turns = [Turn("Count.", (), [Answer("a")])]
    with Running(FakeServer({"a": COUNTING}, delay=0).app) as server:
        asked(server, turns, tmp_path, Settings(max_tokens=3))
    assert (turns[0].answers[0].text, turns[0].answers[0].state) == ("word0 word1 word2", "length")
    assert "cut" in note(turns, 0)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("be busy", "The server is busy: try again in 3 s."),
        ("be wrong", "The picture has 2,000,000,000 pixels, at most 50,000,000 are taken."),
        ("break", "The model failed on this request."),
    ],
)
def test_what_the_server_refuses_is_a_sentence(tmp_path: Path, question: str, sentence: str):
    turns = [Turn(question, (), [Answer("a")])]
    with Running(FakeServer({"a": ""}).app) as server:
        asked(server, turns, tmp_path)
    assert (turns[0].answers[0].state, turns[0].answers[0].error) == ("failed", sentence)
    assert sentence in str(shown(turns, 0))


def test_keys(tmp_path: Path):
    with Running(FakeServer({"a": "yes"}, delay=0, key="secret").app) as server:
        for key, state in (("", "failed"), ("wrong", "failed"), ("secret", "done")):
            turns = [Turn("Well?", (), [Answer("a")])]
            asked(server, turns, tmp_path, Settings(key=key))
            assert turns[0].answers[0].state == state
            assert ("API key" in turns[0].answers[0].error) == (state == "failed")


def test_no_server_is_a_sentence(tmp_path: Path):
    turns = [Turn("Well?", (), [Answer("a")])]
    asked(f"http://127.0.0.1:{free_port()}", turns, tmp_path)
    assert "cannot be reached" in turns[0].answers[0].error


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"data: {half\n\n", "not JSON"),
        (b"data: [1]\n\n", "not OpenAI's"),
        (b'data: {"choices": []}\n\n', "broke before"),
        (b"", "broke before"),
        (b'data: {"error": {"message": "x[0]: a reads no pictures", "param": "x[0]"}}\n\n', "A reads no pictures."),
    ],
)
def test_a_server_of_another_kind_is_a_sentence(tmp_path: Path, content: bytes, sentence: str):
    from fastapi import Response

    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        return Response(content, media_type="text/event-stream")

    turns = [Turn("Well?", (), [Answer("a")])]
    with Running(app) as server:
        asked(server, turns, tmp_path)
    assert sentence in turns[0].answers[0].error


def test_what_is_no_picture_is_said_before_it_travels(tmp_path: Path):
    (tmp_path / "drawing.svg").write_text("<svg/>")
    fake = FakeServer({"a": ""})
    for name, reason in (("drawing.svg", "drawing.svg"), ("gone.png", "gone.png: no such file")):
        turns = [Turn("Well?", (str(tmp_path / name),), [Answer("a")])]
        with Running(fake.app) as server:
            asked(server, turns, tmp_path)
        assert reason in turns[0].answers[0].error
        assert str(tmp_path) not in turns[0].answers[0].error
    assert fake.asked == []


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else known(name))
    with pytest.raises(UserError, match=r"sensorium\[ui\]"):
        mount_page(FastAPI(), "http://127.0.0.1:1/v1", ["a"])


# ---- what is shown


def test_words_are_shown_as_they_are():
    assert as_markdown("<loc_12> a<b") == "&lt;loc_12> a&lt;b"
    assert as_markdown("see ![x](http://elsewhere/x.png)") == "see !\\[x](http://elsewhere/x.png)"
    assert as_markdown("use `a<b` or\n```\nif a<b: ![\n```\n<b>") == "use `a<b` or\n```\nif a<b: ![\n```\n&lt;b>"
    assert as_markdown("```\na<b") == "```\na<b"


@given(st.text(alphabet="<>!`[]ab\n"))
def test_no_tag_is_left_outside_code(text: str):
    import re

    outside = re.sub(r"```.*?(?:```|\Z)|`[^`\n]+`", "", as_markdown(text), flags=re.DOTALL)
    assert "<" not in outside


def of_state(**fields: Any) -> str:
    return str(shown([Turn("Well?", (), [Answer("a", **fields)])], 0)[1:])


def test_an_answer_without_words_is_not_silent():
    assert "stopped" in of_state(state="stopped")
    assert "empty" in of_state(state="done")
    assert of_state(state="waiting") == "[]"
