"""The plot of a comparison, of its page and of its drawing for itself: what each design scores against what it cost,
its name beside its mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sensorium.report.svg import Axis, framed, text_at, tick_label, wants_log

WIDTH, HEIGHT = 560, 320
LETTER, LINE = 8.0, 16  # room for a letter and a line of a label, in units of the drawing; letters grow on a phone
NAME = 24  # letters of a name at most
GAP = 10  # between a mark and its name


@dataclass(frozen=True)
class Mark:
    """A design: what it cost, its score with the ends of its interval, and a CSS class (c0 to c7). seeds: the scores
    that `score` is the mean of, drawn faintly."""

    name: str
    cost: float
    score: float
    low: float
    high: float
    style: str
    seeds: Sequence[float] = ()


@dataclass(frozen=True)
class Area:
    """Where in a drawing of a width the plot lies: the edges of what its axes span. Labels stand outside, to the left
    and below."""

    width: float
    left: float
    right: float
    top: float
    bottom: float


PAGE = Area(WIDTH, 58, WIDTH - 16, 14, HEIGHT - 46)


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Scores against costs. words: a score as it is written beside its mark; scale: what scores are multiplied with on
    the axis (100: %)."""

    marks: Sequence[Mark]
    title: str
    x_label: str
    y_label: str
    words: Callable[[float], str]
    chance: float | None = None
    scale: float = 1.0

    def svg(self) -> Markup:
        """The drawing as the page has it."""
        return framed(WIDTH, HEIGHT if self._shown else 60, self.title, self.parts(PAGE), "chart")

    @property
    def _shown(self) -> list[Mark]:
        return [mark for mark in self.marks if mark.cost > 0 and math.isfinite(mark.score)]

    def parts(self, area: Area) -> list[str]:
        """What is drawn within an area; without any mark, words that say so."""
        marks = self._shown
        if not marks:
            return [text_at(area.width / 2, area.top + 22, "no design has a score", "middle")]
        x, y = self._axes(marks, area)
        parts = _frame(x, y, area, self.x_label, self.y_label)
        if self.chance is not None:
            height = y(self.chance * self.scale)
            parts.append(f'<path class="chance" d="M{area.left} {height:.1f}H{area.right}"/>')
            parts.append(text_at(area.left + 4, height - 4, "chance", "start"))
        for mark in marks:
            seeds = (f'<circle cx="{x(mark.cost):.1f}" cy="{y(one * self.scale):.1f}" r="3"/>' for one in mark.seeds)
            parts += [f'<g class="dots {mark.style}" opacity=".35">{one}</g>' for one in seeds]
        places = []
        for mark in marks:
            across, down = x(mark.cost), y(mark.score * self.scale)
            low, high = y(mark.low * self.scale), y(mark.high * self.scale)
            ends = f"M{across:.1f} {low:.1f}V{high:.1f}M{across - 4:.1f} {low:.1f}h8M{across - 4:.1f} {high:.1f}h8"
            parts.append(f'<path class="line {mark.style}" d="{ends}"/>')
            parts.append(f'<g class="dots {mark.style}"><circle cx="{across:.1f}" cy="{down:.1f}" r="5"/></g>')
            places.append((across, down, (across - 6, across + 6, high - 2, low + 2), mark))
        return parts + _labels(places, area, self.words)

    def _axes(self, marks: Sequence[Mark], area: Area) -> tuple[Axis, Axis]:
        costs = [mark.cost for mark in marks]
        log = wants_log(costs, 12)
        if not log:
            costs = [*costs, 0.0]
        longest = max(len(_said(mark, self.words)) for mark in marks)
        room = min(190.0, LETTER * longest + GAP)  # for the name of the mark that is furthest to the right
        values = [value * self.scale for mark in marks for value in (mark.low, mark.high, *mark.seeds)]
        values += [] if self.chance is None else [self.chance * self.scale]
        return (
            Axis(costs, area.left, area.right - room, log, 0.08 if log else 0.0),
            Axis(values, area.bottom, area.top, False, 0.06),
        )


def _frame(x: Axis, y: Axis, area: Area, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{area.left} {y(tick):.1f}H{area.right}"/>')
        parts.append(text_at(area.left - 7, y(tick) + 4, tick_label(tick), "end"))
    for tick in x.ticks():
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {area.bottom}v5"/>')
        parts.append(text_at(x(tick), area.bottom + 18, cost_label(tick), "middle"))
    parts.append(f'<path class="axis" d="M{area.left} {area.bottom}H{area.right}"/>')
    parts.append(text_at((area.left + area.right) / 2, area.bottom + 38, x_label, "middle", "label"))
    middle = (area.top + area.bottom) / 2
    turned = f'transform="translate({area.left - 47} {middle:.1f}) rotate(-90)"'
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
    places: Sequence[tuple[float, float, Rectangle, Mark]], area: Area, words: Callable[[float], str]
) -> list[str]:
    """Names beside their marks, to the right where there is room: never on one another, on a mark or on a whisker."""
    taken = [rectangle for _, _, rectangle, _ in places]
    parts = []
    for across, down, _, mark in sorted(places, key=lambda place: place[1]):
        said = _said(mark, words)
        wide = LETTER * len(said)
        left, height = _free(across, down, wide, taken, area)
        start = across - GAP - wide if left else across + GAP
        taken.append((start, start + wide, height - LINE / 2, height + LINE / 2))
        if abs(height - down) > 6:
            edge = start + wide if left else start
            parts.append(f'<path class="lead" d="M{across:.1f} {down:.1f}L{edge:.1f} {height:.1f}"/>')
        place = across + (-GAP if left else GAP)
        parts.append(text_at(place, height + 4, said, "end" if left else "start", f"name {mark.style}"))
    return parts


def _said(mark: Mark, words: Callable[[float], str]) -> str:
    name = mark.name if len(mark.name) <= NAME else mark.name[: NAME - 1] + "…"
    return f"{name} {words(mark.score)}"


def _free(across: float, down: float, wide: float, taken: Sequence[Rectangle], area: Area) -> tuple[bool, float]:
    """Whether to write to the left, and at what height: the nearest place where nothing lies yet."""
    for step in range(0, 200, 3):
        for height in (down + step, down - step):
            for left in (False, True):
                start = across - GAP - wide if left else across + GAP
                level = area.top <= height <= area.bottom - 4
                inside = level and start > area.left and start + wide < area.width - 2
                clear = all(
                    right <= start or start + wide <= first or low <= height - LINE / 2 or height + LINE / 2 <= high
                    for first, right, high, low in taken
                )
                if inside and clear:
                    return left, height
    return across + GAP + wide > area.width, down
