"""MMMU: college questions with several pictures, of which some are options."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from sensorium.data.formats.parquet import open_parquet, parquet_files
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import id_in, letter_in, member, options_of, text_in, words
from sensorium.data.media import DEFAULT_LIMITS, Limits
from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE, Items, TaskItem, TaskSource
from sensorium.evaluate.tasks.reading import Gathering, Pictures, Row, rows_of, shown

MENTION = re.compile(r"<image (\d+)>")
SUBJECT = re.compile(r"(?:dev|validation|test)_(.+)_\d+")
CHUNK = 64  # rows of a Parquet file at a time: pictures are in them


class MMMU(TaskSource):
    """Rows {id, question, options, answer, question_type, image_1 ... image_7} (arXiv 2311.16502).

    path      a .parquet file as published, a .json or .jsonl file of the same columns, or a folder of subjects with
              Parquet files, of which those of `split` are read
    pictures  where relative paths in a JSON file start; None: its folder

    `options` is a list, or a list written as text ("['1', '2']"), empty for an open question, whose `answer` may be
    such a list of several right ones. `<image 2>` in the question or an option is the place of image_2; pictures that
    are mentioned nowhere stand before the words. The part of an item is its subject.
    """

    title: ClassVar[str] = "MMMU"
    metric: ClassVar[str] = "mmmu"
    layout: ClassVar[str] = "Accounting/validation-00000-of-00001.parquet ..., or .json rows of the same columns"

    path: str = Field(min_length=1)
    split: str = "validation"
    pictures: str | None = None
    limits: Limits = DEFAULT_LIMITS

    def load(self) -> Items:
        folder = self.pictures or (self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or ".")
        pictures = Pictures(folder, self.limits)
        found = Gathering()
        for where, row in self._rows():
            found.add(where, lambda row, where: _item(row, where, pictures), row)
        return found.given(f"{self.path} as {self.title}", self.layout)

    def _rows(self) -> Iterator[Row]:
        if os.path.isdir(self.path) or self.path.endswith(".parquet"):
            paths = parquet_files(self.path)
            if os.path.isdir(self.path):
                paths = [path for path in paths if os.path.basename(path).startswith(self.split)]
                if not paths:
                    raise UserError(f"{self.path} has no {self.split}-*.parquet; expected {self.layout}")
            for path in paths:
                yield from _parquet_rows(path)
        else:
            yield from rows_of(self.path)


def _parquet_rows(path: str) -> Iterator[Row]:
    file = open_parquet(path)
    for column in ("id", "question", "options", "answer"):
        if column not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {column!r}, its columns are {', '.join(file.schema_arrow.names)}")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=CHUNK):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read behind row {number}: {error}") from error


def _item(row: Any, where: str, pictures: Pictures) -> TaskItem:
    key = id_in(row, "id")
    options = tuple(words(one, f"option {number}") for number, one in enumerate(_listed(row, "options"), 1))
    question = text_in(row, "question")
    texts = [question, *options]
    mentioned = [int(found) for text in texts for found in MENTION.findall(text)]
    given = {number for number in range(1, 8) if row.get(f"image_{number}") is not None}
    missing = next((number for number in mentioned if number not in given), None)
    if missing is not None:
        raise BadRow(f"<image {missing}> is mentioned, and there is no image_{missing}")
    apart = sorted(given - set(mentioned))
    media = {number: pictures.one(row[f"image_{number}"], f"{where} image_{number}") for number in sorted(given)}
    if PLACE in "".join(texts):
        raise BadRow(f"its words hold {PLACE}, which is no mention of a numbered picture")
    question, *options = (MENTION.sub(PLACE, text) for text in texts)
    known = SUBJECT.fullmatch(key)
    common: dict[str, Any] = {
        "id": key,
        "question": question,
        "media": shown(*(media[number] for number in [*mentioned, *apart])),
        "group": key,
        "part": known[1] if known else "",
        "info": {"question_type": "multiple-choice" if options else "open"},
    }
    if options:
        options = options_of(options)
        return TaskItem(**common, options=options, answer=letter_in(row, "answer", options))
    answers = tuple(words(str(one), "answer") for one in _listed(row, "answer"))
    if not answers:
        raise BadRow("answer is an empty list")
    return TaskItem(**common, answers=answers)


def _listed(row: Any, key: str) -> list[Any]:
    """A list, or one that is written as text; plain text is a list of one."""
    value = member(row, key)
    if isinstance(value, list):
        return value
    text = words(value, key).strip()
    if not text.startswith("["):
        return [text]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadRow(f"{key} is no list: {show(text)}") from error
    if not isinstance(value, list):
        raise BadRow(f"{key} is no list: {show(text)}")
    return value
