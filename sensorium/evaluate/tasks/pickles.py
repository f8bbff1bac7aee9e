"""Pickles of plain values: lists, dicts, text and numbers, as published annotations are written.

A pickle is a program for a machine with a stack. `pickletools` says its instructions without carrying them out; here
those that make plain values are followed, and a file with any other (they find classes, call them, or refer to what is
outside) is refused.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable
from typing import Any

from sensorium.errors import UserError

SUFFIXES = (".p", ".pkl", ".pickle")
BYTES = 1 << 30
"""Files larger than this are not read: the largest published one has 60 MB."""
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
GIVEN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
BYTE_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IDLE = {"PROTO", "FRAME", "STOP"}
_MARK = object()


def is_pickle(path: str) -> bool:
    """By its name or its first byte."""
    if path.endswith(SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"\x80"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def plain_pickle(path: str) -> Any:
    """The value of a pickle, of Python 2 (its byte strings are text in UTF-8) or 3.

    Raises UserError for a file that is broken, or that says more than plain values.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > BYTES:
                raise UserError(f"{path} has more than {BYTES >> 30} GiB: expected a file of annotations")
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _Plain().follow(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a pickle: {error}") from error


class _Plain:
    """The stack, and what was put aside by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.aside: dict[int, Any] = {}

    def follow(self, data: bytes) -> Any:
        given: Any  # what an instruction carries: its own kind knows which type
        for code, given, place in pickletools.genops(data):
            name = code.name
            if name in GIVEN:
                self.stack.append(given)
            elif name in BYTE_STRINGS:  # pickletools reads bytes as Latin-1
                self.stack.append(given.encode("latin-1").decode("utf-8"))
            elif name in VALUES:
                self.stack.append(VALUES[name])
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name == "MARK":
                self.stack.append(_MARK)
            elif name == "MEMOIZE":
                self.aside[len(self.aside)] = self.stack[-1]
            elif name.endswith("PUT"):
                self.aside[given] = self.stack[-1]
            elif name.endswith("GET"):
                self.stack.append(self.aside[given])
            elif name not in IDLE and not self._gather(name):
                said = f" {given}" if isinstance(given, str) else ""
                raise ValueError(
                    f"it says {name}{said} at byte {place}, and only lists, dicts, text and numbers are read"
                )
        [value] = self.stack
        return value

    def _gather(self, name: str) -> bool:
        """Carry out an instruction that puts values of the stack together; False: it is none of these."""
        match name:
            case "LIST" | "TUPLE":
                self.stack.append((list if name == "LIST" else tuple)(self._marked()))
            case "DICT":
                self.stack.append(_pairs(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = TUPLES[name]
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "APPEND" | "APPENDS":
                more = self._marked() if name == "APPENDS" else [self.stack.pop()]
                self.stack[-1].extend(more)
            case "SETITEM" | "SETITEMS":
                more = self._marked() if name == "SETITEMS" else [self.stack.pop(-2), self.stack.pop()]
                self.stack[-1].update(_pairs(more))
            case _:
                return False
        return True

    def _marked(self) -> list[Any]:
        """What stands above the last mark, which goes with it."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("it ends a list that it never began")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn."""
    if len(flat) % 2:
        raise ValueError("a key has no value")
    return dict(zip(flat[::2], flat[1::2]))
