"""The plot of a comparison: the score of each design against what it cost, and every task beside its blind control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from sensorium.compare.run import AVERAGE
from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.statistics import Evaluation
from sensorium.report.data import headline_rows, label_of
from sensorium.report.svg import log_ticks, tick_label, ticks, wants_log
from sensorium.report.words import plain_name

WIDTH, LEFT, RIGHT, HEAD, TALL, FOOT = 900, 64, 24, 66, 300, 46
ROW, COLUMNS, GAP, NAMES = 22, 3, 26, 128
COLOURS = ("#0b62a4", "#c8500a", "#1b7f5c", "#a6398b", "#7a5c00", "#3d3d9e", "#b3122d", "#4d6b75")
STYLE = """text{font:13px system-ui,sans-serif;fill:#222}.head{font-size:17px;font-weight:600}
.soft{fill:#5c5c5c;font-size:12px}.name{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:4px}.grid{stroke:#e3e3e3}.axis{stroke:#888}
.chance{stroke:#777;stroke-dasharray:4 4}.lead{stroke:#999}.blind{fill:#fff;stroke:#555;stroke-width:1.4}"""


class _Span:
    """Numbers along one direction."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool = False, pad: float = 0.06) -> None:
        from math import log10

        self.place = log10 if log else float
        self.log, self.start, self.end = log, start, end
        low, high = self.place(min(values)), self.place(max(values))
        room = (high - low) * pad or (abs(high) * 0.3 or 0.5)
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return self.start + (self.place(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, target: int = 5) -> list[float]:
        return log_ticks(10**self.low, 10**self.high) if self.log else ticks(self.low, self.high, target)


class _Mark(NamedTuple):
    row: ComparedRow
    score: Evaluation
    cost: float
    colour: str


def plot_svg(comparison: Comparison) -> Markup:
    """A drawing for itself: no script, no font, nothing fetched. Without any score, a drawing that says so."""
    rows = headline_rows(comparison)
    names = list(dict.fromkeys(row.name for row in comparison.rows))
    colour = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    parts = [_text(LEFT - 40, 26, comparison.title, "head"), _text(LEFT - 40, 46, _under(comparison), "soft")]
    scored = [row for row in rows if row.scores]
    if not scored:
        parts.append(_text(WIDTH / 2, HEAD + 60, "no design has a score", "soft", "middle"))
        return _svg(HEAD + 110, comparison.title, parts)
    costs, label = _costs(scored)
    marks = [_Mark(row, _headline(row), cost, colour[row.name]) for row, cost in zip(scored, costs)]
    seeds = [row for row in comparison.rows if row.seed is not None and row.scores and row not in rows]
    parts.append(_scatter(marks, seeds, label))
    bottom = HEAD + TALL + FOOT + 14
    drawn, height = _forest(rows, colour, bottom)
    return _svg(bottom + height + 8, comparison.title, [*parts, drawn])


def _headline(row: ComparedRow) -> Evaluation:
    """The mean of all tasks, or the first score where tasks have no mean."""
    return next((score for score in row.scores if score.task == AVERAGE), row.scores[0])


def _under(comparison: Comparison) -> str:
    return f"{comparison.budget}; whiskers are 95 % intervals"


def _costs(rows: Sequence[ComparedRow]) -> tuple[list[float], str]:
    """What tells the rows apart: their FLOPs, or, where a budget made these equal, their seconds."""
    flops = [row.flops for row in rows]
    if min(flops) <= 0 or (len(rows) > 1 and max(flops) < 1.1 * min(flops)):
        return [row.seconds for row in rows], "seconds of training"
    return flops, "training FLOPs"


def _scatter(marks: Sequence[_Mark], seeds: Sequence[ComparedRow], label: str) -> str:
    percent = _percent(marks[0].score)
    chance = {mark.score.chance for mark in marks} - {None}
    values = [value for mark in marks for value in (mark.score.low, mark.score.high)] + [one for one in chance if one]
    bottom = HEAD + TALL
    costs = [mark.cost for mark in marks]
    x = _Span(costs, LEFT, WIDTH - RIGHT - NAMES, wants_log(costs, 12), 0.08)
    y = _Span(values, bottom, HEAD + 8)
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, _number(tick, percent), "soft", "end"))
    for tick in x.ticks():
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {bottom}v5"/>')
        parts.append(_text(x(tick), bottom + 20, _cost(tick), "soft", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, label, "soft", "middle"))
    task = plain_name(label_of(marks[0].score))
    parts.append(_text(LEFT, HEAD - 2, f"{task}, {'%' if percent else 'score'}", "soft"))
    for one in sorted(one for one in chance if one is not None):
        parts.append(f'<path class="chance" d="M{LEFT} {y(one):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(WIDTH - RIGHT, y(one) - 5, "chance", "soft", "end"))
    colour = {mark.row.name: mark for mark in marks}
    for row in seeds:
        mark = colour[row.name]
        parts.append(
            f'<circle cx="{x(mark.cost):.1f}" cy="{y(_headline(row).score):.1f}" r="3" fill="{mark.colour}" '
            'opacity=".35"/>'
        )
    for mark in marks:
        parts.append(_whisker(x(mark.cost), y(mark.score.low), y(mark.score.high), mark.colour))
        parts.append(_dot(x(mark.cost), y(mark.score.score), mark.colour, 6))
    parts.append(_labels([(x(mark.cost), y(mark.score.score), mark) for mark in marks], bottom))
    return "".join(parts)


def _labels(places: Sequence[tuple[float, float, _Mark]], bottom: float) -> str:
    """A name beside each mark; names that would lie on each other move apart, and a line leads to them."""
    parts: list[str] = []
    taken = [(across - 9, across + 9, down + 4) for across, down, _ in places]
    for across, down, mark in sorted(places, key=lambda place: place[1]):
        said = f"{mark.row.name}  {_number(mark.score.score, _percent(mark.score))}"
        start, end = across + 12, across + 20 + 7.4 * len(said)
        height = down + 4
        while any(left < end and start < right and abs(height - middle) < 17 for left, right, middle in taken):
            height += 3
        if height > bottom - 4:  # no room below: upwards
            height = down + 4
            while any(left < end and start < right and abs(height - middle) < 17 for left, right, middle in taken):
                height -= 3
        taken.append((start, end, height))
        if abs(height - down - 4) > 5:
            parts.append(
                f'<path class="lead" fill="none" d="M{across + 7:.1f} {down:.1f}L{start + 4:.1f} {height - 4:.1f}"/>'
            )
        parts.append(
            f'<text class="name" x="{start + 6:.1f}" y="{height:.1f}" style="fill:{mark.colour}">{escape(said)}</text>'
        )
    return "".join(parts)


def _forest(rows: Sequence[ComparedRow], colour: dict[str, str], top: float) -> tuple[str, float]:
    """A small panel for each task: designs below each other, score with interval, blind control, chance."""
    tasks = list(dict.fromkeys(label_of(score) for row in rows for score in row.scores))
    columns = min(COLUMNS, len(tasks))
    inner = (WIDTH - RIGHT - NAMES - GAP * (columns - 1)) / columns
    tall = len(rows) * ROW + 52
    parts = []
    for number, task in enumerate(tasks):
        down, across = top + number // columns * (tall + 8), NAMES + number % columns * (inner + GAP)
        if number % columns == 0:
            for index, row in enumerate(rows):
                name = f'<text class="name" x="{NAMES - 14}" y="{down + 30 + index * ROW:.1f}" text-anchor="end" '
                parts.append(f'{name}style="fill:{colour[row.name]}">{escape(_short(row.name))}</text>')
        parts.append(_panel(task, rows, colour, down, across, inner))
    lines = -(-len(tasks) // columns)
    legend = top + lines * (tall + 8) + 8
    parts.append(_blind(NAMES + 6, legend - 4))
    parts.append(_text(NAMES + 18, legend, "blind control: the same questions with pictures shuffled", "soft"))
    parts.append(f'<path class="chance" d="M{NAMES + 372} {legend - 4:.1f}h24"/>')
    parts.append(_text(NAMES + 402, legend, "chance", "soft"))
    return "".join(parts), legend - top + 4


def _panel(task: str, rows: Sequence[ComparedRow], colour: dict[str, str], top: float, left: float, wide: float) -> str:
    scores = {row.name: score for row in rows for score in row.scores if label_of(score) == task}
    shown = list(scores.values())
    percent = _percent(shown[0])
    values = [value for one in shown for value in (one.low, one.high, one.blind, one.chance) if value is not None]
    x = _Span(values, left, left + wide, pad=0.05)
    bottom = top + 16 + len(rows) * ROW
    parts = [_text(left, top + 6, plain_name(task), "soft")]
    for tick in x.ticks(4):
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top + 14}V{bottom:.1f}"/>')
        parts.append(_text(x(tick), bottom + 15, _number(tick, percent), "soft", "middle"))
    for chance in {one.chance for one in shown if one.chance is not None}:
        parts.append(f'<path class="chance" d="M{x(chance):.1f} {top + 14}V{bottom:.1f}"/>')
    for index, row in enumerate(rows):
        middle = top + 26 + index * ROW
        score = scores.get(row.name)
        if score is None:
            parts.append(_text(left + 4, middle + 4, "no score", "soft"))
            continue
        line = f'stroke="{colour[row.name]}" stroke-width="2" fill="none"'
        parts.append(f'<path {line} d="M{x(score.low):.1f} {middle}H{x(score.high):.1f}"/>')
        if score.blind is not None:
            parts.append(_blind(x(score.blind), middle))
        parts.append(_dot(x(score.score), middle, colour[row.name], 4.5))
    return "".join(parts)


def _whisker(x: float, low: float, high: float, colour: str) -> str:
    path = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 5:.1f} {low:.1f}h10M{x - 5:.1f} {high:.1f}h10"
    return f'<path stroke="{colour}" stroke-width="1.8" fill="none" d="{path}"/>'


def _dot(x: float, y: float, colour: str, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def _blind(x: float, y: float) -> str:
    return f'<path class="blind" d="M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'


def _percent(score: Evaluation) -> bool:
    return score.percent


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}" if percent else f"{value:.3g}"


def _cost(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e") if value >= 1e6 else tick_label(value)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "\u2026"


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> Markup:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    )
    back = f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return Markup(f"{head}<title>{escape(title)}</title>{back}{''.join(parts)}</svg>\n")
