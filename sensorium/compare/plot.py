"""A comparison as one drawing for itself: score against cost, and every task beside its blind control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from sensorium.compare.run import AVERAGE
from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.statistics import Evaluation
from sensorium.report.comparison import plot_of, styles_of, tasks_of
from sensorium.report.data import headline_rows, label_of
from sensorium.report.scatter import Area
from sensorium.report.svg import Axis, diamond, text_at, ticks
from sensorium.report.words import plain_name

WIDTH, LEFT, RIGHT, HEAD, TALL, FOOT = 900, 64, 24, 66, 300, 46
ROW, COLUMNS, GAP, NAMES = 22, 3, 26, 128
COLOURS = ("#2457c5", "#c2410c", "#14774a", "#8e3fb0", "#0e7c86", "#a16207", "#be185d", "#64748b")
"""Those of the page, c0 to c7."""
STYLE = """text{font:13px system-ui,sans-serif;fill:#222}.head{font-size:17px;font-weight:600}
.soft,.tick,.label{fill:#5c5c5c;font-size:12px}.name{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:4px}
.grid{stroke:#e3e3e3}.axis{stroke:#888}.chance{stroke:#777;stroke-dasharray:4 4}.lead{stroke:#999;fill:none}
.blind{fill:#fff;stroke:#555;stroke-width:1.4}.line{fill:none;stroke-width:2}
""" + "".join(f".line.c{i}{{stroke:{one}}}.dots.c{i},text.c{i}{{fill:{one}}}" for i, one in enumerate(COLOURS))


def plot_svg(comparison: Comparison) -> Markup:
    """A drawing for itself: no script, no font, nothing fetched. Without any score, a drawing that says so."""
    under = f"{comparison.budget}; whiskers are 95 % intervals"
    parts = [text_at(LEFT - 40, 26, comparison.title, "start", "head"), text_at(LEFT - 40, 46, under, "start", "soft")]
    tasks = tasks_of(comparison)
    if not tasks:
        parts.append(text_at(WIDTH / 2, HEAD + 60, "no design has a score", "middle", "soft"))
        return _svg(HEAD + 110, comparison.title, parts)
    # the mean of all tasks, or the first score where tasks have no mean
    task = next((label for label, one in tasks.items() if one.task == AVERAGE), next(iter(tasks)))
    bottom = HEAD + TALL
    parts.append(text_at(LEFT, HEAD - 2, plain_name(task), "start", "soft"))
    parts += plot_of(comparison, task).parts(Area(WIDTH, LEFT, WIDTH - RIGHT, HEAD + 8, bottom))
    drawn, height = _forest(comparison, tasks, bottom + FOOT + 14)
    return _svg(bottom + FOOT + 14 + height + 8, comparison.title, [*parts, drawn])


def _forest(comparison: Comparison, tasks: Mapping[str, Evaluation], top: float) -> tuple[str, float]:
    """A small panel for each task: designs below each other, score with interval, blind control, chance."""
    rows, styles = headline_rows(comparison), styles_of(comparison)
    columns = min(COLUMNS, len(tasks))
    inner = (WIDTH - RIGHT - NAMES - GAP * (columns - 1)) / columns
    tall = len(rows) * ROW + 52
    parts = []
    for number, task in enumerate(tasks):
        down, across = top + number // columns * (tall + 8), NAMES + number % columns * (inner + GAP)
        if number % columns == 0:
            for index, row in enumerate(rows):
                name = _short(row.name)
                parts.append(text_at(NAMES - 14, down + 30 + index * ROW, name, "end", f"name {styles[row.name]}"))
        parts.append(_panel(task, rows, styles, down, across, inner))
    lines = -(-len(tasks) // columns)
    legend = top + lines * (tall + 8) + 8
    parts.append(diamond(NAMES + 6, legend - 4))
    control = "blind control: the same questions with pictures shuffled"
    parts.append(text_at(NAMES + 18, legend, control, "start", "soft"))
    parts.append(f'<path class="chance" d="M{NAMES + 372} {legend - 4:.1f}h24"/>')
    parts.append(text_at(NAMES + 402, legend, "chance", "start", "soft"))
    return "".join(parts), legend - top + 4


def _panel(
    task: str, rows: Sequence[ComparedRow], styles: Mapping[str, str], top: float, left: float, wide: float
) -> str:
    scores = {row.name: score for row in rows for score in row.scores if label_of(score) == task}
    shown = list(scores.values())
    values = [value for one in shown for value in (one.low, one.high, one.blind, one.chance) if value is not None]
    x = Axis(values, left, left + wide, False, 0.05)
    bottom = top + 16 + len(rows) * ROW
    parts = [text_at(left, top + 6, plain_name(task), "start", "soft")]
    for tick in ticks(x.low, x.high, 4):
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top + 14}V{bottom:.1f}"/>')
        parts.append(text_at(x(tick), bottom + 15, _number(tick, shown[0].percent), "middle", "soft"))
    for chance in dict.fromkeys(one.chance for one in shown if one.chance is not None):
        parts.append(f'<path class="chance" d="M{x(chance):.1f} {top + 14}V{bottom:.1f}"/>')
    for index, row in enumerate(rows):
        middle = top + 26 + index * ROW
        score = scores.get(row.name)
        if score is None:
            parts.append(text_at(left + 4, middle + 4, "no score", "start", "soft"))
            continue
        parts.append(f'<path class="line {styles[row.name]}" d="M{x(score.low):.1f} {middle}H{x(score.high):.1f}"/>')
        if score.blind is not None:
            parts.append(diamond(x(score.blind), middle))
        mark = f'<circle cx="{x(score.score):.1f}" cy="{middle}" r="4.5"/>'
        parts.append(f'<g class="dots {styles[row.name]}">{mark}</g>')
    return "".join(parts)


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g}" if percent else f"{value:.3g}"


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "\u2026"


def _svg(height: float, title: str, parts: Sequence[str]) -> Markup:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    )
    back = f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return Markup(f"{head}<title>{escape(title)}</title>{back}{''.join(parts)}</svg>\n")
