"""What the sources here share: rows of a file, values that are checked, pictures that are looked for once."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field

from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, RowReader, show
from sensorium.data.formats.values import encodable, words
from sensorium.data.media import DEFAULT_LIMITS, Limits, PictureFile
from sensorium.data.source import RowError
from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE, BadItem, Items, TaskItem, TaskSource
from sensorium.sequence import Segment

ONE_WORD = "Answer the question using a single word or phrase."
"""LLaVA-1.5 (arXiv 2310.03744, appendix A.1) for VQAv2, GQA, TextVQA, MME and POPE."""
LETTER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5 for ScienceQA, MMBench and SEED-Bench; MMMU has it so."""
Row = tuple[str, Any]
"""Its place for people, and what stands there: a BadRow where nothing can be read."""


class FileTask(TaskSource):
    """Questions of a file.

    path      the file, or the folder that has it under its published name
    pictures  the folder of the pictures; None: a folder beside the file that is called as published, else the file's
    limits    pictures beyond these are not decoded
    """

    layout: ClassVar[str] = ""
    """The files as published, for people."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of the file's published names, the likeliest first."""
    parts: ClassVar[tuple[str, ...]] = ()
    """The same of a folder that has a file for each part, in the order in which they are read."""
    shelves: ClassVar[tuple[str, ...]] = ()
    """Published names of the folder of the pictures."""

    path: str = Field(min_length=1)
    pictures: str | None = None
    limits: Limits = DEFAULT_LIMITS

    @property
    def file(self) -> str:
        """The file to read. Raises UserError where a folder has none, or several that are equally likely."""
        if not os.path.isdir(self.path):
            return self.path
        for pattern in self.files:
            found = sorted(glob.glob(os.path.join(glob.escape(self.path), pattern)))
            if len(found) > 1:
                names = ", ".join(os.path.basename(name) for name in found[:8])
                raise UserError(f"{self.path} has several files for {self.title} ({names}): give one as the path")
            if found:
                return found[0]
        raise UserError(f"{self.path} has no file for {self.title}; expected {self.layout}")

    def shelf(self) -> Pictures:
        beside = self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or "."
        likely = [os.path.join(beside, name) for name in self.shelves]
        folder = self.pictures or next((name for name in likely if os.path.isdir(name)), beside)
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder; `pictures` is where the pictures of {self.path} are")
        return Pictures(folder, self.limits)

    def gathered(self, rows: Iterable[Row], read: Reads, found: Gathering | None = None) -> Items:
        """All rows read; raises UserError when not one question can be asked."""
        found = Gathering() if found is None else found
        for where, row in rows:
            found.add(where, read, row)
        return found.given(f"{self.path} as {self.title}", self.layout)

    def gathered_parts(self, part_of: Callable[[str], str], read: Callable[[str, int, Any], TaskItem]) -> Items:
        """The rows of the file, or of the files of all parts that the folder has.

        part_of  a file's name -> its part
        read     part, number of the row in its file from 1, row -> what is asked; raises BadRow
        """
        paths = [self.path]
        if os.path.isdir(self.path):
            inside = glob.escape(self.path)
            paths = [path for one in self.parts for path in sorted(glob.glob(os.path.join(inside, one)))]
            if not paths:
                raise UserError(f"{self.path} has no file for {self.title}; expected {self.layout}")
        rows: Iterator[Row] = (
            (where, row if isinstance(row, BadRow) else (part_of(os.path.basename(path)), number, row))
            for path in dict.fromkeys(paths)
            for number, (where, row) in enumerate(rows_of(path), 1)
        )
        return self.gathered(rows, lambda row, where: read(*row))


Reads = Callable[[Any, str], TaskItem | Iterable[TaskItem]]
"""A row and its place -> what is asked; raises BadRow."""


class Gathering:
    """Items as they are read: what cannot be asked is kept with its place and reason."""

    def __init__(self) -> None:
        self.found: list[TaskItem] = []
        self.bad: list[BadItem] = []
        self._first: dict[str, str] = {}

    def refuse(self, where: str, reason: str) -> None:
        self.bad.append(BadItem(where, reason))

    def add(self, where: str, read: Reads, row: Any) -> None:
        try:
            if isinstance(row, BadRow):
                raise row
            made = read(row, where)
            items = [made] if isinstance(made, TaskItem) else list(made)
            for item in items:
                self._check(item)
        except BadRow as error:
            self.refuse(where, str(error))
            return
        for item in items:
            self._first[item.id] = where
        self.found += items

    def _check(self, item: TaskItem) -> None:
        if item.id in self._first:
            raise BadRow(f"the id {item.id!r} is given twice, first at {self._first[item.id]}")
        places = sum(text.count(PLACE) for text in (item.question, *item.options))
        if places > len(item.media):
            raise BadRow(f"its words have {places} places for pictures ({PLACE}), it has {len(item.media)} pictures")
        labels = [item.id, item.group, item.part]
        if item.info:
            labels.append(json.dumps(dict(item.info), ensure_ascii=False))
        for text in labels:
            encodable(text, "a name or a label")

    def given(self, what: str, layout: str = "") -> Items:
        if not self.found:
            first = f"; the first of {len(self.bad)}: {self.bad[0].where}: {self.bad[0].reason}" if self.bad else ""
            expected = f"; expected {layout}" if layout else ""
            raise UserError(f"no question can be asked of {what}{first}{expected}")
        return Items(self.found, self.bad)


# -- files -------------------------------------------------------------------------------------------------------------


def rows_of(path: str, field: str | None = None) -> Iterator[Row]:
    """The rows of JSON Lines, of an array, or of the array `field` of one object. UserError for other formats."""
    table = JsonRows(path, field)
    for index in range(len(table)):
        where = table.where(index)
        try:
            yield where, table.row(index)
        except RowError as error:
            yield where, BadRow(str(error).removeprefix(f"{where}: "))


class _Object(dict[str, Any]):
    """A JSON object in which keys stood twice."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    found, seen, twice = _Object(plain), set[str](), set[str]()
    for key, _ in pairs:
        (twice if key in seen else seen).add(key)
    found.twice = frozenset(twice)
    return found


def whole(path: str) -> Any:
    """The value of a JSON file. Bytes that are not UTF-8 stay as such in their text: `words` refuses it there.

    Raises UserError: it cannot be read, or is not JSON.
    """
    text = text_of(path)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: malformed JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from error


def text_of(path: str) -> str:
    """A file's text; bytes that are not UTF-8 stay as such, for `words` to refuse. Raises UserError."""
    try:
        with open(path, "rb") as stream:
            return stream.read().removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def keyed(path: str) -> Iterator[tuple[str, str, Any]]:
    """(place, key, row) of a file with one object by id. Raises UserError when it is of another format."""
    value = whole(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one object with a question by its id, found {kind_of(value)}")
    twice = value.twice if isinstance(value, _Object) else frozenset()
    for key, row in value.items():
        if key in twice:
            row = BadRow(f"the id {key!r} is given twice")
        elif not isinstance(row, dict):
            row = BadRow(f"expected an object {{...}}, found {show(row)}")
        yield f"{path} question {key}", key, row


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# -- pictures ----------------------------------------------------------------------------------------------------------


class Pictures:
    """The pictures of a folder by name. Each is looked for once; none is opened."""

    def __init__(self, folder: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.folder = folder
        self._reader = RowReader(folder, folder, limits)
        self._there: dict[str, bool] = {}
        self._found: dict[str, PictureFile] = {}

    def one(self, value: Any, name: str = "") -> PictureFile:
        """A path from the folder, a data: URL, or what a Parquet cell has. Raises BadRow when there is none."""
        if not isinstance(value, str) or value.startswith("data:"):
            return self.check(self._reader.picture(value, name))
        if value not in self._found:  # several questions are about one picture
            self._found[value] = self.check(self._reader.picture(words(value, "a picture's name"), name))
        return self._found[value]

    def check(self, picture: PictureFile) -> PictureFile:
        if picture.path is not None and not self._is_there(str(picture.path)):
            raise BadRow(f"there is no picture {picture.path}, or it is empty")
        return picture

    def first(self, names: Iterable[str]) -> PictureFile:
        """The first of some names that is there: a picture is published under several."""
        tried = []
        for name in names:
            tried.append(name)
            if name in self._found:
                return self._found[name]
            if self._is_there(os.path.join(self.folder, words(name, "a picture's name"))):
                return self.one(name)
        raise BadRow(f"there is no picture {' or '.join(tried)} in {self.folder}")

    def several(self, values: Sequence[Any], name: str) -> list[PictureFile]:
        """Raises BadRow also when a picture is named twice."""
        named = [value for value in values if isinstance(value, str)]
        twice = next((value for number, value in enumerate(named) if value in named[:number]), None)
        if twice is not None:
            raise BadRow(f"the picture {twice[:80]!r} is named twice")
        return [self.one(value, f"{name} image {number}") for number, value in enumerate(values, 1)]

    def _is_there(self, path: str) -> bool:
        if path not in self._there:
            try:
                self._there[path] = os.path.isfile(path) and os.path.getsize(path) > 0
            except ValueError:  # a null character in the path
                self._there[path] = False
        return self._there[path]


def shown(*pictures: Any) -> tuple[Segment, ...]:
    """Pictures as the media of an item."""
    return tuple(Segment("image", picture, role="user") for picture in pictures)


def file_of(folder: str, names: Iterable[str], what: str) -> str:
    """The first of some files that a folder has. Raises UserError."""
    tried = list(names)
    for name in tried:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    raise UserError(f"{folder} has no {' or '.join(tried)}: {what}")
