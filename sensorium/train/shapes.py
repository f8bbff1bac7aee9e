"""Shapes, colours and signs of the drawings in `sensorium.train.draw`, as pieces of SVG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, MARGIN, FIGURE = 1240, 36, 800  # pixels; the figure's own width, the cards stand to its right
CELL, GAP = 24, 5  # of a token in the stream

INK, SOFT, LINE = "#1f2733", "#5b6675", "#9aa5b1"
FROZEN, FROZEN_EDGE = "#dcebf9", "#3b7dbd"
TRAINED, TRAINED_EDGE = "#ffe3c7", "#d9730d"
TEXT, TEXT_EDGE = "#eceff3", "#9aa5b1"
ITEM, ITEM_EDGE = "#d8cdf0", "#7a5fc0"
ANSWER, ANSWER_EDGE = "#cfeccf", "#3f9142"


@dataclass(frozen=True, slots=True)
class Box:
    """x, y of the upper left corner, width and height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def middle(self) -> float:
        return self.x + self.w / 2

    @property
    def bottom(self) -> float:
        return self.y + self.h


def rect(box: Box, fill: str, edge: str, radius: float, width: float) -> str:
    return (
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.w:g}" height="{box.h:g}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{edge}" stroke-width="{width:g}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.2"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """An upright arrow from (x1, y1) up to (x2, y2)."""
    head = f"M{x2 - 4:g},{y2 + 7:g} L{x2:g},{y2:g} L{x2 + 4:g},{y2 + 7:g} Z"
    return line(x1, y1, x2, y2 + 6, SOFT) + f'<path d="{head}" fill="{SOFT}"/>'


def text(
    x: float, y: float, text: str, *, size: float, colour: str = INK, weight: str = "normal", anchor: str = "middle",
    style: str = "normal",
) -> str:  # fmt: skip
    extra = f" font-weight={quoteattr(weight)}" if weight != "normal" else ""
    extra += f" font-style={quoteattr(style)}" if style != "normal" else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}{extra}>{escape(text)}</text>"


def mark(x: float, y: float, label: str, trained: bool) -> Iterable[str]:
    """The badge of one stage on the edge of a part."""
    edge = TRAINED_EDGE if trained else FROZEN_EDGE
    yield f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="#ffffff" stroke="{edge}" stroke-width="1.6"/>'
    yield text(x, y + 4, label, size=11, colour=edge, weight="bold")


def picture(box: Box, tiles: tuple[int, int] | None) -> Iterable[str]:
    """A landscape, cut into tiles where the encoder sees tiles."""
    x, y, w, h = box.x, box.y, box.w, box.h
    yield rect(box, "#eaf4fb", INK, radius=3, width=1.4)
    yield f'<circle cx="{x + w * 0.76:g}" cy="{y + h * 0.27:g}" r="{h * 0.12:g}" fill="#f2c14e"/>'
    near = f"M{x + 1:g},{y + h - 1:g} L{x + w * 0.33:g},{y + h * 0.38:g} L{x + w * 0.66:g},{y + h - 1:g} Z"
    far = f"M{x + w * 0.4:g},{y + h - 1:g} L{x + w * 0.7:g},{y + h * 0.55:g} L{x + w - 1:g},{y + h - 1:g} Z"
    yield f'<path d="{far}" fill="#a3c9a8"/><path d="{near}" fill="#6a9c78"/>'
    rows, cols = tiles or (1, 1)
    for row in range(1, rows):
        yield line(x, y + h * row / rows, x + w, y + h * row / rows, INK)
    for col in range(1, cols):
        yield line(x + w * col / cols, y, x + w * col / cols, y + h, INK)


def snowflake(x: float, y: float, colour: str) -> Iterable[str]:
    arm = "M0,0 L0,-7 M0,-4.5 L-2,-6.3 M0,-4.5 L2,-6.3"
    arms = "".join(f'<path d="{arm}" transform="rotate({angle})"/>' for angle in range(0, 360, 60))
    yield f'<g transform="translate({x:g},{y:g})" stroke="{colour}" stroke-width="1.3" fill="none">{arms}</g>'


def flame(x: float, y: float, colour: str) -> Iterable[str]:
    outer = (
        "M0,-8 C1,-4 5,-3 5,2 C5,6 2.5,7.5 0,7.5 C-2.5,7.5 -5,6 -5,2 C-5,-0.5 -3.5,-1.5 -2.8,-3.5 "
        "C-1.5,-2.5 -0.6,-4.5 0,-8 Z"
    )
    inner = "M0,0.5 C1,2 2.4,2.6 2.4,4.6 C2.4,6.3 1.2,7 0,7 C-1.2,7 -2.4,6.3 -2.4,4.6 C-2.4,2.8 -0.6,2.2 0,0.5 Z"
    paths = f'<path d="{outer}" fill="{colour}"/><path d="{inner}" fill="#ffd9a0"/>'
    yield f'<g transform="translate({x:g},{y:g})">{paths}</g>'
