"""A user's own questions, without code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sensorium.data.formats.rows import BadRow, RowReader, show
from sensorium.data.formats.values import (
    check_corners,
    four,
    id_in,
    label_in,
    list_in,
    member,
    options_of,
    picked,
    pixel_box,
    text_in,
    text_or_number,
)
from sensorium.data.media import DEFAULT_LIMITS, Limits
from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE, Items, TaskItem, TaskSource
from sensorium.evaluate.tasks.reading import Gathering, Pictures, rows_of, shown
from sensorium.sequence import MediaError, Segment

KEYS = ("image", "images", "messages", "question", "answer", "answers", "choices", "boxes", "id", "group", "part")
ASKED = ("answer", "answers", "boxes")
PEOPLE = 10
"""Answers of that many annotators are VQA's."""
PHRASE = 4
"""Words from which on several references are captions, not short answers."""


class Jsonl(TaskSource):
    """Rows of JSON Lines, or of one array: {"image" or "images" or "messages", "question", what is right}.

    What is right is one of
        "answer": text or a number                one right answer
        "answers": [texts]                        any of them, or the annotators'
        "choices": [texts], "answer": one         its text, its letter ("B"), or its number from 0
        "boxes": [[x0, y0, x1, y1], ...]          in [0, 1] of the picture, or pixels where `boxes` says so
    `<image>` in the question is the place of a picture. `messages` are a chat whose last turn is the question, or the
    answer to the question before it; turns before that are asked along. "id" (else the line), "group" (questions that
    belong together; else the pictures) and "part" (for tables by part) may stand too; other keys go into `info`.

    path      the file
    pictures  where relative paths start; None: the folder of the file
    boxes     fraction: numbers in [0, 1]; pixels: of the picture, whose size is read from its header
    """

    title: ClassVar[str] = "own rows"
    layout: ClassVar[str] = '{"image": "a.png", "question": "What is it?", "answer": "a dog"} on every line'

    path: str = Field(min_length=1)
    pictures: str | None = None
    boxes: Literal["fraction", "pixels"] = "fraction"
    limits: Limits = DEFAULT_LIMITS

    def load(self) -> Items:
        folder = self.pictures or os.path.dirname(self.path) or "."
        pictures = Pictures(folder, self.limits)
        reader = RowReader(folder, self.path, self.limits)
        found = Gathering()
        for number, (where, row) in enumerate(rows_of(self.path), 1):
            found.add(where, lambda row, where, number=number: self._item(row, where, number, pictures, reader), row)
        return found.given(f"{self.path} as {self.title}", self.layout)

    def metric_for(self, items: Sequence[TaskItem]) -> str:
        """What fits all rows: grounding, choice, vqa (answers of ten), pope (yes and no), cider (several references of
        more than a few words), else exact. Raises UserError when rows differ in kind: the metric has to be named."""
        kinds = {_kind(item) for item in items}
        if len(kinds) > 1:
            raise UserError(
                f"rows are of several kinds ({', '.join(sorted(kinds))}): name the metric, or split the file"
            )
        if not kinds:
            raise UserError("there is no row that a metric could fit")
        kind = kinds.pop()
        if kind != "answers":
            return kind
        answers = [answer for item in items for answer in item.answers]
        if all(answer.strip().strip(".").lower() in ("yes", "no") for answer in answers):
            return "pope"
        if all(len(item.answers) == PEOPLE for item in items):
            return "vqa"
        length = sum(len(answer.split()) for answer in answers) / len(answers)
        return "cider" if length > PHRASE and all(len(item.answers) > 1 for item in items) else "exact"

    def _item(self, row: Any, where: str, number: int, pictures: Pictures, reader: RowReader) -> TaskItem:
        reader.keys(row, KEYS, ())
        chat = "messages" in row
        if chat and "question" in row:
            raise BadRow("both 'messages' and 'question' are given: keep one")
        before, media, question, said = _chat(row, where, pictures, reader) if chat else _asked(row, where, pictures)
        if said is not None and any(key in row for key in ASKED):
            raise BadRow("the messages end with an answer, and the row has another: keep one")
        row = row if said is None else {**row, "answer": said}
        options, answer = _options(row)
        group = id_in(row, "group") if "group" in row else _group(media)
        boxes = tuple(self._box(one, media) for one in list_in(row, "boxes")) if "boxes" in row else ()
        answers = () if options or boxes else _answers(row)
        return TaskItem(
            id=id_in(row, "id") if "id" in row else str(number),
            question=question,
            media=media,
            before=before,
            answers=answers,
            options=options,
            answer=answer,
            boxes=boxes,
            group=group,
            part=label_in(row, "part"),
            info={key: value for key, value in row.items() if key not in KEYS},
        )

    def _box(self, numbers: Any, media: Sequence[Segment]) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = box = four(numbers)
        if len(media) != 1:
            raise BadRow(f"boxes are of one picture, the row has {len(media)}")
        if self.boxes == "pixels":
            try:
                height, width = media[0].data.shape()
            except MediaError as error:
                raise BadRow(str(error)) from error
            return pixel_box(numbers, width, height, corners=True)
        if not all(0 <= edge <= 1 for edge in (x0, y0, x1, y1)):
            raise BadRow(f"the box {show(numbers)} leaves [0, 1]; boxes in pixels need the setting boxes = 'pixels'")
        check_corners(box, numbers)
        return box


Turn = tuple[tuple[Segment, ...], tuple[Segment, ...], str, str | None]
"""Segments before, media of the question, its words with places, and the answer where a chat ends with one."""


def _asked(row: Any, where: str, pictures: Pictures) -> Turn:
    if "image" in row and "images" in row:
        raise BadRow("both 'image' and 'images' are given: keep one")
    given = row.get("image", row.get("images", []))
    given = [] if given is None else given if isinstance(given, list) else [given]
    return (), shown(*pictures.several(given, where)), text_in(row, "question"), None


def _chat(row: Any, where: str, pictures: Pictures, reader: RowReader) -> Turn:
    listed = row.get("images", row.get("image"))
    if isinstance(listed, list):
        pictures.several(listed, where)
    chat = {key: row[key] for key in ("messages", "image", "images") if key in row}
    segments = reader.chat(chat, where).segments
    for segment in segments:
        if segment.kind == "image":
            pictures.check(segment.data)
    turns: list[list[Segment]] = []
    for segment in segments:
        if not turns or turns[-1][0].role != segment.role:
            turns.append([])
        turns[-1].append(segment)
    said = None
    if turns[-1][0].role == "assistant":
        if any(segment.kind != "text" for segment in turns[-1]):
            raise BadRow("the last message, the answer, must be text")
        said = "".join(segment.data for segment in turns.pop())
    if not turns or turns[-1][0].role != "user":
        raise BadRow("the last message must be the user's question, or the assistant's answer to it")
    asked = turns.pop()
    question = "".join(segment.data if segment.kind == "text" else PLACE for segment in asked)
    typed = sum(segment.data.count(PLACE) for segment in asked if segment.kind == "text")
    if typed:
        raise BadRow(f"the question holds {PLACE} as plain text: it would be taken for a picture's place")
    before = tuple(segment for turn in turns for segment in turn)
    return before, tuple(segment for segment in asked if segment.kind != "text"), question, said


def _options(row: Any) -> tuple[tuple[str, ...], int | None]:
    if "choices" not in row:
        return (), None
    options = options_of(list_in(row, "choices"))
    return options, picked(member(row, "answer"), options)


def _answers(row: Any) -> tuple[str, ...]:
    given = [key for key in ("answer", "answers") if key in row]
    if len(given) != 1:
        raise BadRow("a row has one of 'answer', 'answers', 'boxes', or 'choices' with 'answer'")
    values = list_in(row, "answers") if given == ["answers"] else [row["answer"]]
    return tuple(text_or_number(value, given[0]) for value in values)


def _group(media: Sequence[Segment]) -> str:
    """Questions about the same pictures belong together."""
    return " ".join(segment.data.name for segment in media if hasattr(segment.data, "name"))


def _kind(item: TaskItem) -> str:
    return "grounding" if item.boxes else "choice" if item.options else "answers"
