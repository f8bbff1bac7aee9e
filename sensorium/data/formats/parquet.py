"""Parquet files with a column map. pyarrow is imported when a file is opened, never before."""

from __future__ import annotations

import bisect
import importlib
import os
import threading
from collections import OrderedDict
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, field_validator

from sensorium.data.formats.base import RowSource
from sensorium.data.formats.rows import BadRow, RowReader
from sensorium.data.media import Limits
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError, nearest
from sensorium.sequence import Sample

ColumnRole = Literal["id", "image", "text", "question", "answer", "messages", "conversations"]
ALIASES: dict[ColumnRole, tuple[str, ...]] = {
    "id": ("id",),
    "image": ("image", "images"),
    "text": ("text", "caption"),
    "question": ("question",),
    "answer": ("answer", "multiple_choice_answer"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
LAYOUTS: tuple[ColumnRole, ...] = ("messages", "conversations", "question", "text")
GROUPS_KEPT = 4


class Parquet(SourceConfig):
    """Rows of one Parquet file, or of every .parquet file of a folder in the order of their names.

    columns       what each column holds, for example {"image": "jpg", "text": "caption_en"}: `messages` (chat),
                  `conversations` (LLaVA), `question` and `answer`, or `text` (a caption), each with `image`.
                  `image` holds encoded bytes, a path, {bytes, path}, or a list of those
    picture_root  folder that relative picture paths start from; None: the folder of the file
    prompt        for captions: None gives plain samples, text is what the caption answers
    instruction   put behind every question

    Rows are read a row group at a time and a few groups are kept: files with small groups are fastest in random order.
    """

    path: str = Field(min_length=1)
    columns: dict[ColumnRole, str]
    picture_root: str | None = None
    prompt: str | None = None
    instruction: str = ""
    limits: Limits = Limits()

    @field_validator("columns")
    @classmethod
    def _one_layout(cls, columns: dict[ColumnRole, str]) -> dict[ColumnRole, str]:
        given = [role for role in LAYOUTS if role in columns]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(LAYOUTS)}, given: {', '.join(given) or 'none'}")
        if given == ["text"] and "image" not in columns:
            raise ValueError("a caption (text) needs its picture: give the image column too")
        return columns

    def build(self) -> ParquetSource:
        return ParquetSource(self)


class ParquetSource(RowSource):
    def __init__(self, config: Parquet):
        folder = config.path if os.path.isdir(config.path) else os.path.dirname(config.path)
        root = folder if config.picture_root is None else config.picture_root
        self.reader = RowReader(root, config.path, config.limits)
        self._config = config
        self._paths = parquet_files(config.path)
        self._starts: list[int] = []  # first row of each (file, group), counted over all files
        self._places: list[tuple[int, int, int]] = []  # file, group, first row of the group within its file
        self._count = 0
        self._open()
        if not self._count:
            raise UserError(f"{config.path} has no rows")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_files", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._starts, self._places, self._count = [], [], 0
        self._open()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._files = [open_parquet(path) for path in self._paths]
        for number, (path, file) in enumerate(zip(self._paths, self._files)):
            names = file.schema_arrow.names
            for role, column in self._config.columns.items():
                if column not in names:
                    raise UserError(f"{path}: no column {column!r} (for {role}): {nearest(column, names)}")
            row = 0
            for group in range(file.metadata.num_row_groups):
                self._starts.append(self._count)
                self._places.append((number, group, row))
                row += file.metadata.row_group(group).num_rows
                self._count += file.metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        number = bisect.bisect_right(self._starts, index) - 1
        file, _, first = self._places[number]
        return f"{self._paths[file]} row {first + index - self._starts[number] + 1}"

    def convert(self, index: int) -> Sample:
        number = bisect.bisect_right(self._starts, index) - 1
        cells = self._group(number).slice(index - self._starts[number], 1).to_pylist()[0]
        row: dict[str, Any] = {role: cells[column] for role, column in self._config.columns.items()}
        if row.get("id", "") is None:
            del row["id"]
        where = self.where(index)
        if "messages" in row:
            return self.reader.chat(_named(row), where)
        if "conversations" in row:
            return self.reader.conversation(_named(row), where)
        listed = row.get("image")
        values = listed if isinstance(listed, list) else [] if listed is None else [listed]
        pictures = [self.reader.picture(value, where) for value in values]
        if "question" in row:
            return self.reader.question(row, where, pictures, row.get("answer"), self._config.instruction)
        if len(pictures) != 1:
            raise BadRow(
                f"a caption belongs to one picture, column {self._config.columns['image']!r} has {len(pictures)}"
            )
        return self.reader.caption(row, where, pictures[0], row["text"], self._config.prompt)

    def _group(self, number: int) -> Any:
        """The table of one row group, from the few that are kept. Raises BadRow when it cannot be read."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            file, group, _ = self._places[number]
            try:
                table = self._files[file].read_row_group(group, columns=list(self._config.columns.values()))
            except (OSError, ValueError) as error:
                raise BadRow(f"its row group cannot be read: {error}") from error
            self._kept[number] = table
            if len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
            return table


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row of chat or conversations: its pictures under the key that those layouts read."""
    return {"images" if key == "image" else key: value for key, value in row.items()}


def pyarrow_parquet() -> ModuleType:
    """pyarrow.parquet, or a UserError that names the extra to install."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'sensorium[data]'"
        ) from error


def open_parquet(path: str) -> Any:
    """A pyarrow ParquetFile; raises UserError naming the file."""
    parquet = pyarrow_parquet()
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def parquet_files(path: str) -> list[str]:
    """The file itself, or the .parquet files anywhere in a folder, sorted."""
    if not os.path.isdir(path):
        return [path]
    found = sorted(
        os.path.join(place, name) for place, _, names in os.walk(path) for name in names if name.endswith(".parquet")
    )
    if not found:
        raise UserError(f"{path} has no .parquet file")
    return found


def guess_columns(path: str) -> dict[ColumnRole, str]:
    """The columns whose names say what they hold. Raises UserError that lists the columns when none does."""
    names = open_parquet(parquet_files(path)[0]).schema_arrow.names
    found: dict[ColumnRole, str] = {}
    for role, aliases in ALIASES.items():
        column = next((alias for alias in aliases if alias in names), None)
        if column is not None:
            found[role] = column
    layout = next((role for role in LAYOUTS if role in found), None)
    if layout is None or (layout == "text" and "image" not in found):
        raise UserError(
            f"{path}: its columns are {', '.join(names)}; say what they hold, for example columns="
            '{"image": "...", "text": "..."}; possible: ' + ", ".join(ALIASES)
        )
    wanted = {"id", "image", layout} | ({"answer"} if layout == "question" else set())
    return {role: column for role, column in found.items() if role in wanted}
