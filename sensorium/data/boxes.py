"""The conventions in which systems write boxes as text. A Box is x0 y0 x1 y1 in [0, 1] of the upright picture.

hundred    {<12><34><56><78>}           integers in [0, 100]: MiniGPT-v2 (arXiv 2310.09478, section 2.2)
thousand   [12, 34, 567, 890]           integers in [0, 999]: InternVL and CogVLM, who double the brackets
decimal    [0.12, 0.34, 0.56, 0.78]     LLaVA-1.5 (two digits), Shikra (arXiv 2306.15195; three)
loc        <loc_12><loc_34> ...         1,000 bins: OFA (arXiv 2202.03052)
pairs      (12,34),(567,890)            integers in [0, 1000): Qwen-VL (arXiv 2308.12966, section 3.2), Qwen2-VL
patches    <patch_index_0003><patch_index_0015>   first and last cell of 32 x 32, in rows: Kosmos-2 (arXiv 2306.14824)
loc_rows   <loc0034><loc0012> ...       1,024 bins, y before x: PaliGemma (arXiv 2407.07726, section 3.2.5)

Absolute pixels (Fuyu, Qwen2.5-VL) are not among them: nothing in the text says of how large a picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from sensorium.errors import UserError, nearest

Box = tuple[float, float, float, float]
BoxFormat = Literal["hundred", "thousand", "decimal", "loc", "pairs", "patches", "loc_rows"]

CELLS = 32


def _integers(pattern: str, scale: int) -> Callable[[Box], str]:
    return lambda box: pattern.format(*(round(edge * scale) for edge in box))


def _bins(pattern: str, bins: int, order: Sequence[int] = (0, 1, 2, 3)) -> Callable[[Box], str]:
    return lambda box: "".join(pattern.format(min(bins - 1, int(box[edge] * bins))) for edge in order)


def _patches(box: Box) -> str:
    first = [min(CELLS - 1, math.floor(edge * CELLS)) for edge in box[:2]]
    last = [max(one, math.ceil(edge * CELLS) - 1) for one, edge in zip(first, box[2:])]  # a box has one cell at least
    return "".join(f"<patch_index_{row * CELLS + column:04d}>" for column, row in (first, last))


BOX_FORMATS: dict[str, Callable[[Box], str]] = {
    "hundred": _integers("{{<{}><{}><{}><{}>}}", 100),
    "thousand": _integers("[{}, {}, {}, {}]", 999),
    "decimal": lambda box: "[" + ", ".join(f"{edge:.2f}" for edge in box) + "]",
    "loc": _bins("<loc_{}>", 1000),
    "pairs": lambda box: "({},{}),({},{})".format(*(min(999, int(edge * 1000)) for edge in box)),
    "patches": _patches,
    "loc_rows": _bins("<loc{:04d}>", 1024, (1, 0, 3, 2)),
}
"""How a box is written, by convention."""


def _scaled(scale: float, shift: float = 0.0) -> Callable[[Sequence[float]], Box]:
    return lambda numbers: tuple((number + shift) / scale for number in numbers)  # type: ignore[return-value]


def _cells(numbers: Sequence[float]) -> Box:
    """Between the middles of two cells, or around both where they share a row or a column (so does the reference)."""
    (row0, column0), (row1, column1) = (divmod(int(number), CELLS) for number in numbers)
    if row0 == row1 or column0 == column1:
        edges = column0, row0, column1 + 1, row1 + 1
    else:
        edges = column0 + 0.5, row0 + 0.5, column1 + 0.5, row1 + 0.5
    x0, y0, x1, y1 = (edge / CELLS for edge in edges)
    return x0, y0, x1, y1


def _rows_first(numbers: Sequence[float]) -> Box:
    y0, x0, y1, x1 = (number / 1024 for number in numbers)
    return x0, y0, x1, y1


def _listed(number: str) -> str:
    """Four numbers in brackets, or one of several boxes that share a pair of brackets."""
    return r"(?:\[|(?<=;))\s*" + r",\s*".join([f"({number})"] * 4) + r"\s*(?:\]|(?=;))"


_READERS: dict[str, tuple[str, Callable[[Sequence[float]], Box]]] = {
    "hundred": (r"\{<(\d+)><(\d+)><(\d+)><(\d+)>\}", _scaled(100)),
    "thousand": (_listed(r"\d{1,4}"), _scaled(999)),
    "decimal": (_listed(r"[01]\.\d+"), _scaled(1)),
    "loc": (r"<loc_(\d+)><loc_(\d+)><loc_(\d+)><loc_(\d+)>", _scaled(1000, 0.5)),
    "pairs": (r"\((\d{1,3}),\s*(\d{1,3})\),?\s*\((\d{1,4}),\s*(\d{1,4})\)", _scaled(1000)),
    "patches": (r"<patch_index_(\d{4})><patch_index_(\d{4})>", _cells),
    "loc_rows": (r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>", _rows_first),
}


def format_box(box: Box, convention: str) -> str:
    """A box in [0, 1] as text. Raises UserError for an unknown convention."""
    if convention not in BOX_FORMATS:
        raise UserError(f"boxes have no convention {convention!r}: {nearest(convention, BOX_FORMATS)}")
    return BOX_FORMATS[convention](box)


def parse_box(text: str, convention: str) -> Box | None:
    """The first box in a text, in [0, 1], or None when there is none that is well formed."""
    if convention not in _READERS:
        raise UserError(f"boxes have no convention {convention!r}: {nearest(convention, _READERS)}")
    pattern, read = _READERS[convention]
    found = re.search(pattern, text)
    return None if found is None else _inside(read, found)


def _inside(read: Callable[[Sequence[float]], Box], found: re.Match[str]) -> Box | None:
    x0, y0, x1, y1 = box = read([float(group) for group in found.groups()])
    return box if 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1 else None


class FoundBox(NamedTuple):
    """A box in a text, with what the text says is in it, or None."""

    box: Box
    label: str | None


_NAMED = re.compile(
    r"<(p|ref|phrase)>(?P<tagged>.*?)</\1>|<\|object_ref_start\|>(?P<marked>.*?)<\|object_ref_end\|>", re.DOTALL
)
"""How a phrase is marked as the name of the box behind it: MiniGPT-v2, Qwen-VL and InternVL, Kosmos-2; Qwen2-VL."""

_BETWEEN = re.compile(r"(?:[\s,;:\[\]()]|<[^<>]*>)*")
"""What may stand between a name and its boxes."""

_FOLLOWS = re.compile(r"\s*([^<>;\n]+)")


def find_boxes(text: str) -> list[FoundBox]:
    """All well formed boxes of a text, in every convention above, in their order.

    A label is the marked phrase right before a box (or before several of them), or PaliGemma's words right behind it.
    """
    events: list[tuple[int, int, str | None, Box | None]] = []
    for named in _NAMED.finditer(text):
        label = named["tagged"] if named["tagged"] is not None else named["marked"]
        events.append((named.start(), named.end(), " ".join(label.split()), None))
    for convention, (pattern, read) in _READERS.items():
        for found in re.finditer(pattern, text):
            box = _inside(read, found)
            if box is not None:
                follows = _FOLLOWS.match(text, found.end()) if convention == "loc_rows" else None
                events.append((found.start(), found.end(), follows[1].strip() if follows else None, box))
    boxes: list[FoundBox] = []
    name, end = None, 0
    for start, stop, label, box in sorted(events, key=lambda event: event[:2]):
        if box is None:
            name, end = label, stop
            continue
        if not _BETWEEN.fullmatch(text, end, start):
            name = None
        boxes.append(FoundBox(box, label or name or None))
        end = stop
    return boxes
