"""From the object of one row to the segments of one sample, for every layout that people's data has.

A layout is known by its keys: `messages` (chat), `conversations` (LLaVA), `question` (VQA), `text` or `caption`.
Typed text is copied character by character: whether `<|im_end|>` in it could ever become a special token is settled by
the renderer, never here.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from sensorium.data.media import DEFAULT_LIMITS, Limits, PictureFile
from sensorium.data.source import RowError
from sensorium.data.video import ClipFile
from sensorium.errors import nearest
from sensorium.sequence import Sample, Segment

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"
PICTURE_TOKENS = 256  # what a picture is taken to cost before its encoder is known
MISSPELT = 0.8  # similarity from which an unknown key is a slip, not metadata

MESSAGE_KEYS = ("role", "content", "name", "weight", "tool_call_id", "tool_calls")
PART_KEYS = ("type", "text", "image", "image_url", "path", "url", "detail", "video", "frames")
SOURCES = ("image", "image_url", "path", "url")  # keys of a part that say where its picture is
TURN_KEYS = ("from", "value", "weight")


class BadRow(ValueError):
    """A reason without its place; RowReader adds file and line."""


class RowReader:
    """Turns rows into samples. One per source: it knows where pictures are and counts keys it does not use.

    base    folder that relative picture paths start from
    source  what `Sample.source` says
    """

    def __init__(self, base: str, source: str, limits: Limits = DEFAULT_LIMITS):
        self.base, self.source, self.limits = base, source, limits
        self.unused: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def sample(self, row: dict[str, Any], segments: Iterable[Segment], where: str, **info: Any) -> Sample:
        """The sample of a row; raises RowError when nothing is in it or text cannot be encoded."""
        kept = tuple(segments)
        if not kept:
            raise BadRow("the row is empty")
        cost = 0
        for segment in kept:
            cost += text_cost(segment.data) if segment.kind == "text" else PICTURE_TOKENS
        return Sample(kept, id=str(row.get("id", where)), source=self.source, cost=cost, info=info)

    # -- layouts ---------------------------------------------------------------------------------------------------

    def chat(self, row: dict[str, Any], where: str) -> Sample:
        """OpenAI and Hugging Face messages, with an optional list `images` that placeholders refer to in order."""
        self.keys(row, ("messages", "images", "image", "id", "tools"), ("messages",))
        messages = filled_list(row, "messages")
        supply = self.supply(row, where, typed=any(_bare_picture(part) for part in _parts(messages)))
        segments: list[Segment] = []
        for number, message in enumerate(messages, 1):
            place = f"message {number}"
            if not isinstance(message, dict):
                raise BadRow(f"{place}: expected an object with role and content, found {show(message)}")
            self.keys(message, MESSAGE_KEYS, ("role", "content"), place)
            if message.get("tool_calls"):
                raise BadRow(f"{place}: tool_calls cannot be trained on yet; write the call as text in content")
            role = role_of(message["role"], ROLES, place)
            train = weight_of(message, place)
            common = {"role": role, "train": train, "call_id": message.get("tool_call_id")}
            before = len(segments)
            segments += self.content(message["content"], common, supply, f"{where} {place}", place)
            if len(segments) == before:
                raise BadRow(f"{place} ({role}): the content is empty")
        supply.finish()
        self.note_answers(segments)
        return self.sample(row, segments, where)

    def conversation(self, row: dict[str, Any], where: str) -> Sample:
        """LLaVA: turns from human and gpt, `<image>` in their text, `image` a path or a list of paths."""
        self.keys(row, ("conversations", "image", "images", "id", "model"), ("conversations",))
        supply = self.supply(row, where, typed=False)
        segments: list[Segment] = []
        for number, turn in enumerate(filled_list(row, "conversations"), 1):
            place = f"turn {number}"
            if not isinstance(turn, dict):
                raise BadRow(f"{place}: expected an object with from and value, found {show(turn)}")
            self.keys(turn, TURN_KEYS, ("from", "value"), place)
            if not isinstance(turn["value"], str) or not turn["value"]:
                raise BadRow(f"{place}: value must be text that is not empty, found {show(turn['value'])}")
            role = role_of(turn["from"], SPEAKERS, place)
            segments += supply.split(turn["value"], {"role": role, "train": weight_of(turn, place)})
        supply.finish()
        self.note_answers(segments)
        return self.sample(row, segments, where)

    def caption(
        self, row: dict[str, Any], where: str, picture: PictureFile, text: Any, prompt: str | None, **info: Any
    ) -> Sample:
        """A picture and its words: plain (all words trained), or as the answer to `prompt`."""
        if not isinstance(text, str) or not text.strip():
            raise BadRow(f"the caption must be text that is not empty, found {show(text)}")
        if prompt is None:
            return self.sample(row, (Segment("image", picture), Segment("text", text, train=True)), where, **info)
        asked = (Segment("image", picture, role="user"), Segment("text", prompt, role="user"))
        return self.sample(row, (*asked, Segment("text", text, role="assistant")), where, **info)

    def question(
        self,
        row: dict[str, Any],
        where: str,
        pictures: Iterable[PictureFile],
        answer: Any,
        instruction: str,
        **info: Any,
    ) -> Sample:
        """Pictures, a question and its answer; answer None leaves the question open (test sets)."""
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise BadRow(f"the question must be text that is not empty, found {show(question)}")
        segments = [Segment("image", picture, role="user") for picture in pictures]
        segments.append(Segment("text", question + instruction, role="user"))
        if answer is not None:
            if not isinstance(answer, str) or not answer.strip():
                raise BadRow(f"the answer must be text that is not empty, found {show(answer)}")
            segments.append(Segment("text", answer, role="assistant"))
        self.note_answers(segments)
        return self.sample(row, segments, where, **info)

    # -- pieces ----------------------------------------------------------------------------------------------------

    def keys(self, given: dict[str, Any], known: Iterable[str], needed: Iterable[str], place: str = "") -> None:
        """A missing or misspelt key is an error that suggests the nearest one; other keys are counted as unused."""
        prefix = f"{place}: " if place else ""
        known = tuple(known)
        extra = [key for key in given if key not in known]
        for key in extra:
            absent = [name for name in known if name not in given and len(name) > 3]
            if difflib.get_close_matches(key.lower(), absent, n=1, cutoff=MISSPELT):
                raise BadRow(f"{prefix}unknown key {key!r}: {nearest(key.lower(), absent)}")
        for name in needed:
            if name not in given:
                raise BadRow(f"{prefix}no key {name!r}; the keys are {', '.join(map(repr, given)) or 'none'}")
        self.unused.update(extra)

    def supply(self, row: dict[str, Any], where: str, typed: bool) -> Supply:
        """The pictures listed at the top of a row, to be placed one by one."""
        listed = row.get("images", row.get("image"))
        if "images" in row and "image" in row:
            raise BadRow("both 'image' and 'images' are given: keep one")
        if listed is None:
            return Supply(None, typed, self)
        listed = listed if isinstance(listed, list) else [listed]
        return Supply([self.picture(value, f"{where} image {n}") for n, value in enumerate(listed, 1)], typed, self)

    def content(
        self, content: Any, common: dict[str, Any], supply: Supply, where: str, place: str
    ) -> Iterable[Segment]:
        """The segments of one message."""
        if isinstance(content, str):
            return supply.split(content, common)
        if not isinstance(content, list):
            raise BadRow(f"{place}: content must be text or a list of parts, found {show(content)}")
        segments: list[Segment] = []
        for number, part in enumerate(content, 1):
            spot = f"{place} part {number}"
            if not isinstance(part, dict):
                raise BadRow(f"{spot}: expected an object with a type, found {show(part)}")
            self.keys(part, PART_KEYS, ("type",), spot)
            if part["type"] == "text":
                if not isinstance(part.get("text"), str):
                    raise BadRow(f"{spot}: text must be a string, found {show(part.get('text'))}")
                segments += supply.split(part["text"], common)
            elif part["type"] in ("image", "image_url"):
                if _bare_picture(part):
                    picture = supply.take(spot)
                else:
                    value = next(part[key] for key in SOURCES if part.get(key) is not None)
                    picture = self.picture(value, f"{where} part {number}")
                segments.append(Segment("image", picture, **common))
            elif part["type"] == "video":
                segments.append(Segment("video", self.clip(part, spot), **common))
            else:
                hint = nearest(str(part["type"]), ("text", "image", "image_url", "video"))
                raise BadRow(f"{spot}: unknown type {part['type']!r}: {hint}")
        return segments

    def picture(self, value: Any, name: str) -> PictureFile:
        """A lazy picture from a path, a data: or file: URL, encoded bytes, or {bytes, path} / {url}."""
        if isinstance(value, dict):
            inner = value.get("bytes") or value.get("path") or value.get("url")
            if inner is None:
                raise BadRow(f"a picture must have bytes, path or url, found the keys {sorted(value)}")
            return self.picture(inner, name)
        if isinstance(value, bytes):
            return PictureFile(value, name=name, limits=self.limits)
        if not isinstance(value, str) or not value:
            raise BadRow(f"a picture must be a path or a data: URL, found {show(value)}")
        if value.startswith("data:"):
            return PictureFile(_data_url(value), name=name, limits=self.limits)
        if value.startswith(("http://", "https://")):
            raise BadRow(f"pictures are not fetched from the network ({value[:80]}): download them first")
        path = unquote(urlsplit(value).path) if value.startswith("file://") else value
        return PictureFile(os.path.join(self.base, path), limits=self.limits)

    def clip(self, part: dict[str, Any], spot: str) -> ClipFile:
        """A lazy clip: {"type": "video", "video": path, "frames": how many are taken of it; left out: as the model
        has it}."""
        path, frames = part.get("video") or part.get("path"), part.get("frames")
        if not isinstance(path, str) or not (frames is None or (isinstance(frames, int) and frames >= 1)):
            raise BadRow(f"{spot}: a video has a path and a number of frames, found {show(path)} and {show(frames)}")
        return ClipFile(os.path.join(self.base, path), frames, self.limits)

    def note_answers(self, segments: Iterable[Segment]) -> None:
        if not any(segment.role == "assistant" and segment.train is not False for segment in segments):
            self.notes["rows with no answer to train on"] += 1


class Supply:
    """Pictures listed once at the top of a row and placed by `<image>` in text, or by {"type": "image"} parts."""

    def __init__(self, pictures: list[PictureFile] | None, typed: bool, reader: RowReader):
        self.pictures, self.typed, self.used, self.reader = pictures, typed, 0, reader

    def take(self, place: str) -> PictureFile:
        if self.pictures is None:
            raise BadRow(f"{place}: a picture part without a picture, and the row lists no 'images'")
        self.used += 1
        if self.used > len(self.pictures):
            raise BadRow(f"{place}: picture {self.used} is asked for, the row lists {len(self.pictures)}")
        return self.pictures[self.used - 1]

    def split(self, text: str, common: dict[str, Any]) -> Iterable[Segment]:
        """Text with its placeholders replaced. Without listed pictures `<image>` is plain text like any other."""
        if PLACEHOLDER not in text or self.pictures is None or self.typed:
            if PLACEHOLDER in text and self.pictures is None:
                self.reader.notes["texts with '<image>' in rows that list no pictures (kept as plain text)"] += 1
            return [Segment("text", text, **common)] if text else []
        segments = []
        for number, piece in enumerate(text.split(PLACEHOLDER)):
            if number:
                segments.append(Segment("image", self.take("placeholder"), **common))
            if piece:
                segments.append(Segment("text", piece, **common))
        return segments

    def finish(self) -> None:
        if self.pictures is not None and self.used != len(self.pictures):
            raise BadRow(f"the row lists {len(self.pictures)} pictures, its text has {self.used} places for them")


def text_cost(text: str) -> int:
    """Estimated tokens of a text: a quarter of its UTF-8 bytes, at least one. Raises BadRow for unpaired surrogates."""
    try:
        return max(1, -(-len(text.encode("utf-8")) // 4))
    except UnicodeEncodeError as error:
        raise BadRow(f"a text has half a character (\\u{ord(text[error.start]):04x}) at {error.start}") from error


def filled_list(row: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(row[key], list):
        raise BadRow(f"{key} must be a list, found {show(row[key])}")
    if not row[key]:
        raise BadRow(f"the conversation is empty: {key} has no elements")
    return row[key]


def role_of(given: Any, known: dict[str, str], place: str) -> str:
    if not isinstance(given, str) or given not in known:
        raise BadRow(f"{place}: unknown role {given!r}: {nearest(str(given), known)}")
    return known[given]


def weight_of(message: dict[str, Any], place: str) -> bool | None:
    """OpenAI's `weight`: 0 keeps an answer from being trained on, 1 trains it."""
    weight = message.get("weight")
    if weight is None:
        return None
    if weight not in (0, 1):
        raise BadRow(f"{place}: weight must be 0 or 1, found {show(weight)}")
    return bool(weight)


def show(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _parts(messages: list[Any]) -> Iterable[Any]:
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            yield from message["content"]


def _bare_picture(part: Any) -> bool:
    """A picture part that only marks the place."""
    return (
        isinstance(part, dict)
        and part.get("type") in ("image", "image_url")
        and all(part.get(key) is None for key in SOURCES)
    )


def _data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadRow(f"a data: URL must be data:image/...;base64,..., found {url[:40]!r}")
    try:
        return base64.b64decode(re.sub(r"\s", "", unquote(body)), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"the base64 of a data: URL is damaged: {error}") from error


def located(error: BadRow, where: str) -> RowError:
    return RowError(f"{where}: {error}")
