"""Multiple choice about one picture: ScienceQA, MMBench, SEED-Bench."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from sensorium.data.formats.files import scan
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import (
    hint_in,
    id_in,
    label_in,
    letter_in,
    list_in,
    member,
    options_of,
    text_in,
    words,
)
from sensorium.data.media import PictureFile
from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import Items, TaskItem
from sensorium.evaluate.tasks.reading import (
    LETTER,
    FileTask,
    Gathering,
    Pictures,
    Row,
    file_of,
    keyed,
    rows_of,
    shown,
    whole,
)


class ScienceQA(FileTask):
    """problems.json {id: {question, choices, answer, hint, image, lecture, subject ...}} and pid_splits.json.

    path     the folder of both files
    split    a list of pid_splits.json: test, val, train, minival ...
    only     image: questions with a picture alone (the figure called ScienceQA-IMG)
    hint     the passage stands before the question, as LLaVA-1.5 was asked
    lecture  the lecture too

    The part of an item is its subject. Questions share nothing but pictures, so each is its own group.
    """

    title: ClassVar[str] = "ScienceQA"
    metric: ClassVar[str] = "choice"
    asks: ClassVar[str] = LETTER
    layout: ClassVar[str] = "problems.json, pid_splits.json and images/ with pictures test/11/image.png"
    files: ClassVar[tuple[str, ...]] = ("problems.json",)
    shelves: ClassVar[tuple[str, ...]] = ("images",)

    split: str = "test"
    only: Literal["all", "image"] = "all"
    hint: bool = True
    lecture: bool = False

    def load(self) -> Items:
        pictures, chosen = self.shelf(), self._chosen()
        left = dict.fromkeys(chosen, 0)

        def read(given: Any, where: str) -> TaskItem | list[TaskItem]:
            key, row = given
            left.pop(key, None)
            if isinstance(row, BadRow):
                raise row
            options = options_of(list_in(row, "choices"))
            answer = member(row, "answer")
            if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
                raise BadRow(f"answer must be a number from 0 to {len(options) - 1}, found {show(answer)}")
            name = hint_in(row, "image")
            if not name and self.only == "image":
                return []
            return TaskItem(
                id=key,
                question=self._question(row),
                media=shown(pictures.first((f"{self.split}/{key}/{name}", f"{key}/{name}"))) if name else (),
                options=options,
                answer=answer,
                group=key,
                part=hint_in(row, "subject"),
                info={"grade": hint_in(row, "grade"), "topic": hint_in(row, "topic")},
            )

        found = Gathering()
        for where, key, row in keyed(self.file):
            if key in chosen:
                found.add(where, read, (key, row))
        for key in left:
            found.refuse(f"{self.file} question {key}", f"split {self.split!r} has it, the problems do not")
        return found.given(f"{self.file} as {self.title}", self.layout)

    def _question(self, row: Any) -> str:
        passage, lecture = hint_in(row, "hint"), hint_in(row, "lecture")
        before = [f"Context: {passage}"] if self.hint and passage else []
        before += [f"Lecture: {lecture}"] if self.lecture and lecture else []
        return "\n".join([*before, text_in(row, "question")])

    def _chosen(self) -> frozenset[str]:
        path = file_of(os.path.dirname(self.file), ["pid_splits.json"], f"{self.title} needs the ids of its splits")
        splits = whole(path)
        if not isinstance(splits, dict):
            raise UserError(f"{path}: expected one object of lists of ids")
        if not isinstance(splits.get(self.split), list):
            raise UserError(f"{path} has no split {self.split!r}: {nearest(self.split, splits)}")
        return frozenset(map(str, splits[self.split]))


LETTERS = "ABCDEFGHIJ"
REFERENCE = 32
"""A shorter picture cell is the index of the row that has the picture."""


class MMBench(FileTask):
    """A table (tabs) of index, question, hint, A, B, C, D, answer, category, image (base64) (arXiv 2307.06281).

    circular  every question is asked as often as it has options, each time with them shifted by one, and is right when
              all are (the benchmark's CircularEval): `info["circle"]` says which items go together
    part      the column that parts are called by: category, or l2-category

    A cell left empty behind the last option is none; one between two options is a bad row.
    """

    title: ClassVar[str] = "MMBench"
    metric: ClassVar[str] = "choice"
    asks: ClassVar[str] = LETTER
    layout: ClassVar[str] = "mmbench_dev_20230712.tsv with the columns index, question, A, B, answer, image (base64)"
    files: ClassVar[tuple[str, ...]] = ("*dev*.tsv", "*.tsv")

    circular: bool = False
    part: str = "category"

    def metric_for(self, items: Sequence[TaskItem]) -> str:
        return "circular" if self.circular else self.metric

    def load(self) -> Items:
        pictures, kept = self.shelf(), dict[str, PictureFile]()

        def read(row: Any, where: str) -> list[TaskItem]:
            index = id_in(row, "index")
            kept[index] = picture = _cell_picture(pictures, kept, member(row, "image"), where)
            options = _columns(row)
            answer = letter_in(row, "answer", options)
            passage = hint_in(row, "hint")
            item = TaskItem(
                id=index,
                question=f"{passage}\n{text_in(row, 'question')}" if passage else text_in(row, "question"),
                media=shown(picture),
                options=options,
                answer=answer,
                group=index,
                part=label_in(row, self.part),
            )
            return circle(item) if self.circular else [item]

        return self.gathered(table_rows(self.file, ("index", "question", "A", "B", "answer", "image")), read)


def circle(item: TaskItem) -> list[TaskItem]:
    """A question with its options in every rotation: the first as it is."""
    assert item.answer is not None
    made = []
    for shift in range(len(item.options)):
        made.append(
            TaskItem(
                id=f"{item.id}/{shift}",
                question=item.question,
                media=item.media,
                options=item.options[shift:] + item.options[:shift],
                answer=(item.answer - shift) % len(item.options),
                group=item.group,
                part=item.part,
                info={**item.info, "circle": item.id, "of": len(item.options)},
            )
        )
    return made


def _columns(row: Any) -> tuple[str, ...]:
    cells = [hint_in(row, letter) for letter in LETTERS]
    filled = [number for number, cell in enumerate(cells) if cell]
    return options_of(cells[: filled[-1] + 1] if filled else [])


def _cell_picture(pictures: Pictures, kept: dict[str, PictureFile], cell: str, where: str) -> PictureFile:
    text = words(cell, "image").strip()
    if len(text) < REFERENCE and text.isdigit():
        if text not in kept:
            raise BadRow(f"its picture is that of row {text}, which does not stand before it")
        return kept[text]
    return pictures.one(f"data:image/jpeg;base64,{text}", f"{where} image")


def table_rows(path: str, needed: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a table with tabs and a header, as objects. Raises UserError when a column is missing."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a picture is a cell
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            table = csv.reader(stream, delimiter="\t", strict=True)
            header = next(table, [])
            for column in needed:
                if column not in header:
                    raise UserError(f"{path} line 1: no column {column!r}: {nearest(column, header)}")
            line = table.line_num
            for cells in table:
                where, line = f"{path} line {line + 1}", table.line_num
                if len(cells) == len(header):
                    yield where, dict(zip(header, cells))
                elif cells:
                    yield where, BadRow(f"{len(cells)} cells, the header has {len(header)}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except csv.Error as error:
        raise UserError(f"{path}: malformed table: {error}") from error
    finally:
        csv.field_size_limit(before)


class SEEDBench(FileTask):
    """{"questions": [{question, choice_a, ..., answer, data_id, data_type, question_type_id}]} (arXiv 2307.16125).

    Questions on pictures alone (question types 1 to 9), the figure called SEED-Bench image: those on clips
    (data_type "video") are left aside. The part of an item is its question type, named by the file's "question_type".
    """

    title: ClassVar[str] = "SEED-Bench"
    metric: ClassVar[str] = "choice"
    asks: ClassVar[str] = LETTER
    layout: ClassVar[str] = "SEED-Bench.json and SEED-Bench-image/ with pictures 1454426_2591111986"
    files: ClassVar[tuple[str, ...]] = ("SEED-Bench.json", "*SEED*.json")
    shelves: ClassVar[tuple[str, ...]] = ("SEED-Bench-image", "images")

    choices: int = Field(default=4, ge=2, le=len(LETTERS))

    def load(self) -> Items:
        pictures, file = self.shelf(), self.file
        named = next((one.value for one in scan(file) if one.field == "question_type"), None)
        kinds = {str(number): name for name, number in named.items()} if isinstance(named, dict) else {}

        def read(row: Any, where: str) -> TaskItem | list[TaskItem]:
            if row.get("data_type", "image") == "video":
                return []
            keys = [f"choice_{letter.lower()}" for letter in LETTERS[: self.choices]]
            options = options_of(text_in(row, key) for key in keys)
            name, kind = id_in(row, "data_id"), id_in(row, "question_type_id")
            return TaskItem(
                id=id_in(row, "question_id"),
                question=text_in(row, "question"),
                media=shown(pictures.first((name, f"{name}.jpg", f"{name}.png"))),
                options=options,
                answer=letter_in(row, "answer", options),
                group=name,
                part=kinds.get(kind, kind),
            )

        return self.gathered(rows_of(file, "questions"), read)
