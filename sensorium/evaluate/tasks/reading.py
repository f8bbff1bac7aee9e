"""What the sources here share: rows of a file, values that are checked, pictures that are looked for once."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NoReturn

from pydantic import Field

from sensorium.data.boxes import Box
from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, RowReader, show
from sensorium.data.media import DEFAULT_LIMITS, Limits, PictureFile
from sensorium.data.source import RowError
from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import PLACE, BadItem, Items, TaskItem, TaskSource
from sensorium.sequence import Segment

ONE_WORD = "Answer the question using a single word or phrase."
"""LLaVA-1.5 (arXiv 2310.03744, appendix A.1) for VQAv2, GQA, TextVQA, MME and POPE."""
LETTER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5 for ScienceQA, MMBench and SEED-Bench; MMMU has it so."""
SLACK = 1.0
"""Pixels by which a published box may leave its picture: COCO's are rounded."""

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


def pickled(path: str) -> NoReturn:
    raise UserError(
        f"{path} is a pickle: reading one may run any program in it, so none is read here. Load it in a Python of your "
        "own where you trust its origin, and save it with json.dump(refs, file); then give the .json"
    )


# -- values ------------------------------------------------------------------------------------------------------------


def words(text: Any, what: str) -> str:
    """Text with something in it. Raises BadRow for other types, blanks and what is not UTF-8."""
    if not isinstance(text, str) or not text.strip():
        raise BadRow(f"{what} must be text that is not empty, found {show(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise BadRow(f"{what}: byte 0x{code - 0xDC00:02x} is not UTF-8; save the file as UTF-8") from error
        raise BadRow(f"{what} has half a character (\\u{code:04x}) at {error.start}") from error
    return text


def proper(text: Any, what: str) -> str:
    """Text that may be empty, of proper characters."""
    return text if text == "" else words(text, what)


def member(row: Any, key: str) -> Any:
    """Raises BadRow that suggests the nearest key."""
    if key not in row:
        raise BadRow(f"no key {key!r}: {nearest(key, map(str, row))}")
    return row[key]


def text_in(row: Any, key: str) -> str:
    return words(member(row, key), key)


def id_in(row: Any, key: str) -> str:
    """An id, a number or text, as text."""
    value = member(row, key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise BadRow(f"{key} must be a number or text, found {show(value)}")
    return words(str(value), key)


def hint_in(row: Any, key: str) -> str:
    """Text that may be left out: "" then, and for null, blanks and the nan of a table."""
    text = row.get(key)
    if text is None or text == "" or (isinstance(text, str) and text.strip().lower() in ("", "nan")):
        return ""
    return words(text, key)


def list_in(row: Any, key: str) -> list[Any]:
    value = member(row, key)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key} must be a list that is not empty, found {show(value)}")
    return value


def texts_in(row: Any, key: str) -> tuple[str, ...]:
    return tuple(words(text, f"{key} {number}") for number, text in enumerate(list_in(row, key), 1))


def options_of(texts: Iterable[Any], least: int = 2) -> tuple[str, ...]:
    """The options of a multiple choice. Raises BadRow: an empty one, fewer than `least`."""
    options = tuple(words(text, f"option {number}") for number, text in enumerate(texts, 1))
    if len(options) < least:
        raise BadRow(f"a multiple choice has {least} options at least, found {len(options)}")
    return options


def letter_in(row: Any, key: str, options: Sequence[str]) -> int:
    """The number of the option that a letter names."""
    letter = words(member(row, key), key).strip().upper()
    number = ord(letter) - ord("A") if len(letter) == 1 else -1
    if not 0 <= number < len(options):
        raise BadRow(f"{key} must be a letter from A to {chr(ord('A') + len(options) - 1)}, found {show(row[key])}")
    return number


def pixel_box(numbers: Any, width: Any, height: Any, corners: bool = False) -> Box:
    """x, y, width, height in pixels, or two corners, as a Box in [0, 1]. Raises BadRow for a malformed one."""
    wide, high = (_size(side, name) for side, name in ((width, "width"), (height, "height")))
    x0, y0, x1, y1 = four(numbers)
    if not corners:
        x1, y1 = x0 + x1, y0 + y1
    check_corners((x0, y0, x1, y1), numbers)
    if x0 < -SLACK or y0 < -SLACK or x1 > wide + SLACK or y1 > high + SLACK:
        raise BadRow(f"the box {show(numbers)} leaves its picture of {wide:g} x {high:g} pixels")
    inside = max(0.0, x0) / wide, max(0.0, y0) / high, min(wide, x1) / wide, min(high, y1) / high
    check_corners(inside, numbers)
    return inside


def four(numbers: Any) -> tuple[float, float, float, float]:
    if not isinstance(numbers, list | tuple) or len(numbers) != 4:
        raise BadRow(f"a box has four numbers, found {show(numbers)}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise BadRow(f"a box has four numbers, found {show(numbers)}")
    x0, y0, x1, y1 = map(float, numbers)
    return x0, y0, x1, y1


def check_corners(box: Box, given: Any) -> None:
    if not (box[0] < box[2] and box[1] < box[3]):
        raise BadRow(f"the box {show(given)} has no area: its right lower corner is not right of and below the other")


def _size(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
        raise BadRow(f"the picture's {name} must be a positive number, found {show(value)}")
    return float(value)


# -- pictures ----------------------------------------------------------------------------------------------------------


class Pictures:
    """The pictures of a folder by name. Each is looked for once; none is opened."""

    def __init__(self, folder: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.folder = folder
        self._reader = RowReader(folder, folder, limits)
        self._there: dict[str, bool] = {}

    def one(self, value: Any, name: str = "") -> PictureFile:
        """A path from the folder, a data: URL, or what a Parquet cell has. Raises BadRow when there is none."""
        if isinstance(value, str):
            words(value, "a picture's name")
        return self.check(self._reader.picture(value, name))

    def check(self, picture: PictureFile) -> PictureFile:
        if picture.path is not None and not self._is_there(str(picture.path)):
            raise BadRow(f"there is no picture {picture.path}, or it is empty")
        return picture

    def first(self, names: Iterable[str]) -> PictureFile:
        """The first of some names that is there: a picture is published under several."""
        tried = list(names)
        for name in tried:
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
