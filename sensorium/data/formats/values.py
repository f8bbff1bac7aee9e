"""Values of a row, checked: what each must be, and a BadRow that says what was found instead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sensorium.data.boxes import Box
from sensorium.data.formats.rows import BadRow, show
from sensorium.errors import nearest

SLACK = 1.0
"""Pixels by which a published box may leave its picture: COCO's are rounded."""


def words(text: Any, what: str) -> str:
    """Text with something in it. Raises BadRow for other types, blanks and what is not UTF-8."""
    if not isinstance(text, str) or not text.strip():
        raise BadRow(f"{what} must be text that is not empty, found {show(text)}")
    encodable(text, what)
    return text


def encodable(text: str, what: str) -> None:
    """Raises BadRow for bytes that were no UTF-8, and for half a character, which JSON can spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise BadRow(f"{what}: byte 0x{code - 0xDC00:02x} is not UTF-8; save the file as UTF-8") from error
        raise BadRow(f"{what} has half a character (\\u{code:04x}) at {error.start}") from error


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


def label_in(row: Any, key: str) -> str:
    """What parts are called by: text or a number, "" where it is left out."""
    return "" if row.get(key) in (None, "") else id_in(row, key)


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


def picked(answer: Any, options: Sequence[str]) -> int:
    """The number of the option that an answer is: its text, its letter ("B"), or its number from 0. Raises BadRow."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(options):
            raise BadRow(f"answer is number {answer}, choices are numbered from 0 to {len(options) - 1}")
        return answer
    text = words(answer, "answer")
    alike = [number for number, option in enumerate(options) if option.strip() == text.strip()]
    if len(alike) > 1:
        raise BadRow(f"the answer {show(text)} is several of the choices: give its letter or its number from 0")
    letter = ord(text.strip()) - ord("A") if len(text.strip()) == 1 else -1
    if not alike and not 0 <= letter < len(options):
        raise BadRow(f"the answer {show(text)} is none of the choices, nor the letter of one, nor a number from 0")
    return alike[0] if alike else letter


def text_or_number(value: Any, what: str) -> str:
    """Text with something in it, or a number, as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{what} must be text or a number, found {show(value)}")
    return words(value, what)


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
