"""Rows of JSON files by byte offset: a file of any size is indexed, never held in memory.

`JsonRows` reads JSON Lines (one value per line), a JSON array, or one array inside a JSON object (COCO, VQA). Offsets
cost 16 bytes a row. Errors name the file, the line and the reason.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from sensorium.data.source import RowError
from sensorium.errors import UserError

WINDOW = 1 << 22
LARGEST_VALUE = 1 << 28  # bytes of one row; beyond it a missing quote or bracket is likelier than a real row
LONGEST_BLANK = 16  # a longer line of nothing but white space is reported as malformed
SPACES = " \t\n\r"


class JsonRows:
    """Random access to the rows of one JSON file.

    path   the file
    field  None: the file is JSON Lines or one array, its first character decides; a name: the rows are the elements
           of that array in the one object of the file
    key    with `field`: the member of each row that `keys` collects, in the order of the rows
    """

    def __init__(self, path: str, field: str | None = None, key: str | None = None):
        self.path = path
        self._lock = threading.Lock()
        self._open()
        self._array = field is not None or first_character(path) == "["
        self.keys: list[int | str | None] = []
        self._index = _index_array(path, field, key, self.keys) if self._array else _index_lines(path)

    def __len__(self) -> int:
        return len(self._index.offsets)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes open the file themselves."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_stream")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        version = self._version
        self._open()
        self._version = version

    def raw(self, index: int) -> bytes:
        """The bytes of one row. Raises UserError when the file has changed since it was indexed."""
        offset, length = self._index.offsets[index], self._index.lengths[index]
        with self._lock:
            if self._stat() != self._version:
                raise UserError(f"{self.path} has changed since it was indexed: leave data alone while it is used")
            self._stream.seek(offset)
            return self._stream.read(length)

    def row(self, index: int) -> dict[str, Any]:
        """One row, parsed. Raises RowError naming file and line: malformed, not UTF-8, not an object."""
        raw = self.raw(index)
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise self.error(
                index, f"byte {error.start + 1} of the row (0x{byte:02x}) is not UTF-8; save the file as UTF-8"
            ) from error
        except json.JSONDecodeError as error:
            raise self.error(index, f"malformed JSON: {error.msg} (column {error.pos + 1} of the row)") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
            raise self.error(index, f"malformed JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.error(index, f"expected an object {{...}}, the row is {json.dumps(value)[:60]}")
        return value

    def line(self, index: int) -> int:
        """1-based line on which a row begins."""
        return self._index.lines[index] if self._index.lines is not None else index + 1

    def where(self, index: int) -> str:
        element = f" (element {index + 1})" if self._array else ""
        return f"{self.path} line {self.line(index)}{element}"

    def error(self, index: int, reason: str) -> RowError:
        return RowError(f"{self.where(index)}: {reason}")

    def _open(self) -> None:
        try:
            self._stream: BinaryIO = open(self.path, "rb")  # noqa: SIM115 - open as long as the rows are used
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from error
        self._version = self._stat()

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._stream.fileno())
        return status.st_size, status.st_mtime_ns


class Index(NamedTuple):
    """Where rows are: byte offset, length in bytes, and line; lines None when row i is on line i + 1."""

    offsets: array[int]
    lengths: array[int]
    lines: array[int] | None


class Element(NamedTuple):
    """One element of a JSON array: `field` is the array's name, None for a top-level array.

    An empty array gives one Element of length 0; so does a member that is no array, with its value.
    """

    field: str | None
    offset: int
    length: int
    line: int
    value: Any


def first_character(path: str) -> str:
    """The first character that is not white space; "" in an empty file."""
    try:
        with open(path, "rb") as stream:
            while block := stream.read(4096):
                text = block.removeprefix(b"\xef\xbb\xbf").strip()
                if text:
                    return chr(text[0])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return ""


def _blocks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while block := stream.read(WINDOW):
            yield block


def _index_array(path: str, field: str | None, key: str | None, keys: list[int | str | None]) -> Index:
    offsets, lengths, lines = array("q"), array("q"), array("q")
    found = False
    for element in scan(path):
        if element.field == field:
            found = True
            if element.length:
                offsets.append(element.offset)
                lengths.append(element.length)
                lines.append(element.line)
                if key is not None:
                    value = element.value.get(key) if isinstance(element.value, dict) else None
                    keys.append(value if isinstance(value, int | str) else None)
    if not found:
        raise UserError(f"{path}: expected an array {field!r} in the one object of the file")
    return Index(offsets, lengths, lines)


def _index_lines(path: str) -> Index:
    """Offset and length of every line that is not blank."""
    found, position = [], 0
    for block in _blocks(path):
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + position)
        position += len(block)
    ends = np.concatenate([*found, np.array([position])]).astype(np.int64)  # the last line may have no newline
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    with open(path, "rb") as stream:
        if stream.read(3) == b"\xef\xbb\xbf":
            starts[0] = 3
        filled = ends > starts
        for index in np.flatnonzero(filled & (ends - starts <= LONGEST_BLANK)):
            stream.seek(starts[index])
            filled[index] = bool(stream.read(ends[index] - starts[index]).strip())
    offsets, lengths = array("q"), array("q")
    offsets.frombytes(starts[filled].tobytes())
    lengths.frombytes((ends - starts)[filled].tobytes())
    lines = None
    if not filled[: len(offsets)].all():
        lines = array("q")
        lines.frombytes((np.flatnonzero(filled) + 1).astype(np.int64).tobytes())
    return Index(offsets, lengths, lines)


class _Cursor:
    """A JSON text read in windows. Decoded as Latin-1, one character a byte: JSON's own characters are ASCII, so
    positions stay byte offsets, and text is decoded properly only where a row is read."""

    def __init__(self, path: str):
        self.path = path
        self._stream = open(path, "rb")  # noqa: SIM115 - closed by scan()
        self.base = 3 if self._stream.read(3) == b"\xef\xbb\xbf" else 0
        self._stream.seek(self.base)
        self.text = ""
        self.place = 0
        self._line, self._counted = 1, 0
        self.ended = False
        self._decoder = json.JSONDecoder()
        self._more(WINDOW)

    def close(self) -> None:
        self._stream.close()

    @property
    def offset(self) -> int:
        return self.base + self.place

    def _more(self, amount: int) -> None:
        self.line()
        self._counted = 0
        block = self._stream.read(amount)
        self.ended = len(block) < amount
        self.base += self.place
        self.text = self.text[self.place :] + block.decode("latin-1")
        self.place = 0

    def line(self) -> int:
        """1-based line of the current place."""
        self._line += self.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self._line

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in SPACES:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._more(WINDOW)

    def take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            self.fail(f"expected {expected!r}, found {found!r}" if found else f"expected {expected!r}, the file ends")
        self.place += 1

    def value(self) -> Any:
        """One whole value; the window grows until it fits."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.place > LARGEST_VALUE:
                    self.place = min(error.pos, len(self.text))
                    self.fail(error.msg)
            except RecursionError:
                self.fail("brackets are nested too deeply")
            else:
                if self.ended or len(self.text) - end >= 3:  # a number may go on behind the window: 1 of 1e+5
                    self.place = end
                    return value
            self._more(max(WINDOW, len(self.text) - self.place))

    def fail(self, reason: str) -> NoReturn:
        raise UserError(f"{self.path} line {self.line()}: malformed JSON: {reason}")


def scan(path: str) -> Iterator[Element]:
    """Stream every element of a JSON file's array, or of its object's arrays, holding a few megabytes at a time.

    Raises UserError with file and line for malformed JSON.
    """
    try:
        cursor = _Cursor(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if cursor.peek() == "[":
            yield from _elements(cursor, None)
        else:
            cursor.take("{")
            while cursor.peek() != "}":
                name = cursor.value()
                if not isinstance(name, str):
                    cursor.fail("expected a key in double quotes")
                cursor.take(":")
                if cursor.peek() == "[":
                    yield from _elements(cursor, name)
                else:
                    yield Element(name, cursor.offset, 0, cursor.line(), _proper(cursor.value()))
                if cursor.peek() != "}":
                    cursor.take(",")
            cursor.take("}")
        if cursor.peek():
            cursor.fail("something follows the end of the value")
    finally:
        cursor.close()


def _elements(cursor: _Cursor, field: str | None) -> Iterator[Element]:
    cursor.take("[")
    if cursor.peek() == "]":
        yield Element(field, cursor.offset, 0, cursor.line(), None)
    while cursor.peek() != "]":
        start, line = cursor.offset, cursor.line()
        value = cursor.value()
        yield Element(field, start, cursor.offset - start, line, _proper(value))
        if cursor.peek() != "]":
            cursor.take(",")
            if cursor.peek() == "]":
                cursor.fail("a comma before the closing bracket")
    cursor.take("]")


def _proper(value: Any) -> Any:
    """Undo the Latin-1 reading in the strings of a value, where it is of a kind that the readers use as a key."""
    if isinstance(value, str) and not value.isascii():
        try:
            return value.encode("latin-1").decode("utf-8")
        except UnicodeError:  # written with escapes: already proper
            return value
    if isinstance(value, dict):
        return {key: _proper(item) for key, item in value.items()}
    return value
