"""The plot of a comparison: what each design scores against what it cost, its name beside its mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sensorium.report.svg import Axis, framed, text_at, tick_label, wants_log

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 320, 58, 16, 14, 46
LETTER, LINE = 8.0, 16  # room for a letter and a line of a label, in units of the drawing; letters grow on a phone
NAME = 24  # letters of a name at most
GAP = 10  # between a mark and its name


@dataclass(frozen=True)
class Mark:
    """A design: what it cost, its score with the ends of its interval, and a CSS class of the page (c0 to c7)."""

    name: str
    cost: float
    score: float
    low: float
    high: float
    style: str


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x_label: str,
    y_label: str,
    words: Callable[[float], str],
    chance: float | None = None,
    scale: float = 1.0,
) -> Markup:
    """words: a score as it is written beside its mark; scale: what scores are multiplied with on the axis (100: %)."""
    marks = [mark for mark in marks if mark.cost > 0 and math.isfinite(mark.score)]
    if not marks:
        return framed(WIDTH, 60, title, [text_at(WIDTH / 2, 36, "no design has a score", "middle")], "chart")
    bottom = HEIGHT - BOTTOM
    costs = [mark.cost for mark in marks]
    log = wants_log(costs, 12)
    if not log:
        costs = [*costs, 0.0]
    values = [value * scale for mark in marks for value in (mark.low, mark.high)]
    x = Axis(costs, LEFT, WIDTH - RIGHT - 60, log, 0.08 if log else 0.0)
    y = Axis([*values, *([] if chance is None else [chance * scale])], bottom, TOP, False, 0.06)
    parts = _frame(x, y, bottom, x_label, y_label)
    if chance is not None:
        height = y(chance * scale)
        parts.append(f'<path class="chance" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text_at(WIDTH - RIGHT, height - 4, "chance", "end"))
    for mark in marks:
        across, low, high = x(mark.cost), y(mark.low * scale), y(mark.high * scale)
        ends = f"M{across:.1f} {low:.1f}V{high:.1f}M{across - 4:.1f} {low:.1f}h8M{across - 4:.1f} {high:.1f}h8"
        parts.append(f'<path class="line {mark.style}" d="{ends}"/>')
        parts.append(
            f'<g class="dots {mark.style}"><circle cx="{across:.1f}" cy="{y(mark.score * scale):.1f}" r="5"/></g>'
        )
    places = []
    for mark in marks:
        across = x(mark.cost)
        around = (across - 6, across + 6, y(mark.high * scale) - 2, y(mark.low * scale) + 2)
        places.append((across, y(mark.score * scale), around, mark))
    parts += _labels(places, bottom, words)
    return framed(WIDTH, HEIGHT, title, parts, "chart")


def _frame(x: Axis, y: Axis, bottom: float, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text_at(LEFT - 7, y(tick) + 4, tick_label(tick), "end"))
    for tick in x.ticks():
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {bottom}v5"/>')
        parts.append(text_at(x(tick), bottom + 18, cost_label(tick), "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle", "label"))
    middle = (TOP + bottom) / 2
    turned = f'transform="translate(11 {middle:.1f}) rotate(-90)"'
    parts.append(text_at(0, 0, y_label, "middle", "label").replace('x="0.0" y="0.0"', turned))
    return parts


def cost_label(value: float) -> str:
    """300, 12k, 2.5e13."""
    if value < 1e9:
        return tick_label(value)
    mantissa, power = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


Rectangle = tuple[float, float, float, float]
"""left, right, top, bottom"""


def _labels(
    places: Sequence[tuple[float, float, Rectangle, Mark]], bottom: float, words: Callable[[float], str]
) -> list[str]:
    """Names beside their marks, to the right where there is room: never on one another, on a mark or on a whisker."""
    taken = [rectangle for _, _, rectangle, _ in places]
    parts = []
    for across, down, _, mark in sorted(places, key=lambda place: place[1]):
        name = mark.name if len(mark.name) <= NAME else mark.name[: NAME - 1] + "…"
        said = f"{name} {words(mark.score)}"
        wide = LETTER * len(said)
        left, height = _free(across, down, wide, taken, bottom)
        start = across - GAP - wide if left else across + GAP
        taken.append((start, start + wide, height - LINE / 2, height + LINE / 2))
        if abs(height - down) > 6:
            edge = start + wide if left else start
            parts.append(f'<path class="lead" d="M{across:.1f} {down:.1f}L{edge:.1f} {height:.1f}"/>')
        place = across + (-GAP if left else GAP)
        parts.append(text_at(place, height + 4, said, "end" if left else "start", f"name {mark.style}"))
    return parts


def _free(across: float, down: float, wide: float, taken: Sequence[Rectangle], bottom: float) -> tuple[bool, float]:
    """Whether to write to the left, and at what height: the nearest place where nothing lies yet."""
    for step in range(0, 200, 3):
        for height in (down + step, down - step):
            for left in (False, True):
                start = across - GAP - wide if left else across + GAP
                inside = start > LEFT and start + wide < WIDTH - 2 and TOP <= height <= bottom - 4
                clear = all(
                    right <= start or start + wide <= first or low <= height - LINE / 2 or height + LINE / 2 <= high
                    for first, right, high, low in taken
                )
                if inside and clear:
                    return left, height
    return across + GAP + wide > WIDTH, down
