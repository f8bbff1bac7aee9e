"""A conversation of the page with one model or two: what is asked of the server, what came back, and how it is shown.

Nothing here knows the web framework; `shown` gives messages as its chat component takes them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import mimetypes
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from sensorium.data.boxes import find_boxes
from sensorium.data.media import PictureFile
from sensorium.errors import UserError
from sensorium.serve.page_boxes import draw_boxes
from sensorium.serve.page_client import stream_chat

TICK = 0.05
"""Seconds between two updates of the page: more often costs time, and no eye sees it."""


@dataclass(slots=True)
class Answer:
    """What one model says in a turn.

    state    of the answer; "length": it was cut at the largest number of tokens
    error    a sentence, where there is no (whole) answer
    tokens   as counted by the server; None: it does not count, or not yet
    waited   seconds to the first words
    seconds  from the question to the last words
    drawn    picture file with the boxes that the answer contains, and what to say under it
    """

    model: str
    text: str = ""
    state: Literal["waiting", "writing", "done", "length", "stopped", "failed"] = "waiting"
    error: str = ""
    tokens: int | None = None
    waited: float = 0.0
    seconds: float = 0.0
    drawn: tuple[str, str] | None = None

    @property
    def usable(self) -> bool:
        """Whether a later question may build on it."""
        return bool(self.text) and self.state != "failed"


@dataclass(slots=True)
class Turn:
    """What a person asked, and the answers to it: one for each column of the page. Pictures are files."""

    text: str
    pictures: tuple[str, ...]
    answers: list[Answer] = field(default_factory=list)

    def answer(self, column: int) -> Answer | None:
        """Of a column; a column that was not there yet shows the first one's."""
        return self.answers[min(column, len(self.answers) - 1)] if self.answers else None


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are sampled. seed None: another one each time; key: API key, "" for none."""

    system: str = ""
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 256
    seed: int | None = None
    key: str = ""

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return body if self.seed is None else {**body, "seed": self.seed}


# ---- asking


async def ask(
    client: httpx.AsyncClient, turns: Sequence[Turn], settings: Settings, folder: Path, tasks: set[asyncio.Task[None]]
) -> AsyncIterator[None]:
    """Ask all models of the last turn's answers at once and fill these in. Yields when there is more to show.

    folder  where drawn pictures are written
    tasks   filled with what is running: cancel these to stop, the answers stay as far as they came
    """
    news = asyncio.Event()
    columns = range(len(turns[-1].answers))
    started = [asyncio.create_task(_fill(client, turns, column, settings, folder, news)) for column in columns]
    tasks.update(started)
    try:
        while not all(task.done() for task in started):
            told = asyncio.create_task(news.wait())
            await asyncio.wait({told, *(task for task in started if not task.done())}, return_when="FIRST_COMPLETED")
            told.cancel()
            news.clear()
            yield
            await asyncio.sleep(TICK)
        for task, answer in zip(started, turns[-1].answers):
            if not task.cancelled():
                task.result()  # a mistake of this program is raised, not shown as an answer
            elif answer.state != "stopped":  # before it had begun, or while its boxes were drawn
                answer.state = "stopped"
        yield
    finally:
        for task in started:
            task.cancel()
        await asyncio.wait(started)
        tasks.difference_update(started)


async def _fill(
    client: httpx.AsyncClient, turns: Sequence[Turn], column: int, settings: Settings, folder: Path, news: asyncio.Event
) -> None:
    answer, began = turns[-1].answers[column], time.monotonic()
    try:
        body = {"model": answer.model, "messages": messages(turns, column, settings.system), **settings.body()}
        async for said in stream_chat(client, body, settings.key):
            if said.text and not answer.text:
                answer.waited, answer.state = time.monotonic() - began, "writing"
            answer.text += said.text
            answer.tokens = said.tokens if said.tokens is not None else answer.tokens
            answer.seconds = time.monotonic() - began
            if said.finish is not None:
                answer.state = "length" if said.finish == "length" else "done"
            news.set()
        answer.drawn = await asyncio.to_thread(_draw, turns, answer.text, folder)
    except asyncio.CancelledError:
        answer.state, answer.seconds = "stopped", time.monotonic() - began
        raise
    except UserError as error:
        answer.state, answer.error = "failed", str(error)
    finally:
        news.set()


def messages(turns: Sequence[Turn], column: int, system: str) -> list[dict[str, Any]]:
    """What a column's model is to answer, as OpenAI's messages. Turns without an answer are left out, but the last.

    Raises UserError for a picture that is gone or cannot be read.
    """
    made: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns[:-1]:
        answer = turn.answer(column)
        if answer is not None and answer.usable:
            made += [{"role": "user", "content": _content(turn)}, {"role": "assistant", "content": answer.text}]
    return [*made, {"role": "user", "content": _content(turns[-1])}]


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.pictures:
        return turn.text
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _url(path)}} for path in turn.pictures]
    return [*parts, {"type": "text", "text": turn.text}] if turn.text else parts


def _file(path: str) -> PictureFile:
    return PictureFile(path, name=Path(path).name)


def _url(path: str) -> str:
    """A data URL. The header is read first, so that what is no picture is said before it travels."""
    picture = _file(path)
    picture.shape()
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(picture.read()).decode()}"


def _draw(turns: Sequence[Turn], text: str, folder: Path) -> tuple[str, str] | None:
    """The answer's boxes on the picture that was given last, as a file with a caption. Raises UserError."""
    boxes = find_boxes(text)
    given = [turn.pictures for turn in turns if turn.pictures]
    if not boxes or not given:
        return None
    drawn = draw_boxes(_file(given[-1][-1]).load(), boxes)
    name = hashlib.sha256(drawn.tobytes()).hexdigest()[:16]
    path = folder / f"boxes-{name}.png"
    drawn.save(path)
    what = "1 box" if len(boxes) == 1 else f"{len(boxes)} boxes"
    return str(path), f"{what} on the last of {len(given[-1])} pictures" if len(given[-1]) > 1 else what


# ---- showing


def shown(turns: Sequence[Turn], column: int) -> list[dict[str, Any]]:
    """A column's conversation."""
    made: list[dict[str, Any]] = []
    for turn in turns:
        asked = [_picture(path, Path(path).name) for path in turn.pictures]
        if turn.text:
            asked.append(_text(turn.text))
        made.append({"role": "user", "content": asked})
        answer = turn.answer(column)
        said = _answer(answer) if answer else []
        if said:
            made.append({"role": "assistant", "content": said})
    return made


def _answer(answer: Answer) -> list[dict[str, Any]]:
    said = [_text(answer.text)] if answer.text else []
    if answer.error:
        said.append(_text(f"⚠️ {answer.error}"))
    elif answer.state == "stopped" and not answer.text:
        said.append({"type": "text", "text": "*stopped before the first word*"})
    elif answer.state in ("done", "length") and not answer.text:
        said.append({"type": "text", "text": "*an empty answer*"})
    if answer.drawn:
        said.append(_picture(*answer.drawn))
    return said


def _picture(path: str, what: str) -> dict[str, Any]:
    """An image component, and not a file: the framework would put a button beside a file that sends it elsewhere."""
    value = {"path": path, "orig_name": what, "meta": {"_type": "gradio.FileData"}}
    props = {"buttons": ["download", "fullscreen"], "show_label": False, "label": what}
    return {"type": "component", "component": "image", "value": value, "constructor_args": {}, "props": props}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": as_markdown(text)}


_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """Words of a person or a model as Markdown, in which tags stay visible and no picture is fetched from anywhere.

    Outside code `<` is written as an entity (a model's <loc_12> is no HTML) and `![` loses its meaning.
    """
    parts = _CODE.split(text)
    return "".join(
        part if place % 2 else part.replace("<", "&lt;").replace("![", "!\\[") for place, part in enumerate(parts)
    )


def note(turns: Sequence[Turn], column: int) -> str:
    """What there is to say about a column's last answer: how long it is, how fast it came, why it ended."""
    answer = turns[-1].answer(column) if turns else None
    if answer is None or answer.state == "failed":
        return ""
    if answer.state == "waiting":
        return "waiting for the first word …"
    said = []
    if answer.tokens:
        said.append("1 token" if answer.tokens == 1 else f"{answer.tokens} tokens")
        if answer.tokens > 1 and answer.seconds > answer.waited:
            said.append(f"{(answer.tokens - 1) / (answer.seconds - answer.waited):.1f} tokens/s")
    if answer.text:
        said.append(f"first word after {answer.waited:.2f} s")
    if answer.state == "length":
        said.append("cut at the largest number of tokens")
    if answer.state == "stopped":
        said.append("stopped")
    if answer.drawn:
        said.append(answer.drawn[1])
    return " · ".join(said)
