"""A comparison as tables and plots: one view for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.statistics import Evaluation
from sensorium.report import svg
from sensorium.report.data import headline_rows, label_of
from sensorium.report.scatter import Mark, Scatter, cost_label
from sensorium.report.words import bare_text, compact, duration, margin_text, plain_name, score_text

COSTS = ("trained", "parameters", "FLOPs", "samples", "steps", "time", "samples/s", "memory", "tokens/picture")


@dataclass(frozen=True)
class Cell:
    """text: for people; value: what the column is sorted by, None where there is nothing."""

    text: str
    value: float | None
    score: Evaluation | None = None


@dataclass(frozen=True)
class Line:
    """One row of the table. mean: over several seeds."""

    row: ComparedRow
    name: str
    mean: bool
    scores: list[Cell]
    costs: list[Cell]


@dataclass(frozen=True)
class Against:
    """One cell of a matrix: the row's design minus the column's. style: above (better), below (worse), unclear."""

    text: str
    interval: str
    style: str
    word: str


@dataclass(frozen=True)
class Matrix:
    """All designs against each other on one task; None on the diagonal, and for pairs that were not compared."""

    task: str
    unit: str
    names: list[str]
    rows: list[list[Against | None]]


def tasks_of(comparison: Comparison) -> dict[str, Evaluation]:
    """Task and split -> one of its evaluations, which says how its scores are written. In order of appearance."""
    found: dict[str, Evaluation] = {}
    for row in comparison.rows:
        for score in row.scores:
            found.setdefault(label_of(score), score)
    return found


def table_of(comparison: Comparison) -> list[Line]:
    """Every row, those of single seeds too."""
    tasks = tasks_of(comparison)
    many = any(row.seed is None for row in comparison.rows)
    lines = []
    for row in comparison.rows:
        of = {label_of(score): score for score in reversed(row.scores)}
        mean = many and row.seed is None
        name = row.name + ((", mean" if row.seed is None else f", seed {row.seed}") if many else "")
        lines.append(Line(row, name, mean, [_score(of.get(task)) for task in tasks], _costs(row)))
    return lines


def _score(score: Evaluation | None) -> Cell:
    if score is None:
        return Cell("", None)
    text = f"{bare_text(score, score.score)} ({bare_text(score, score.low)} to {bare_text(score, score.high)})"
    return Cell(text, score.score, score)


def _costs(row: ComparedRow) -> list[Cell]:
    if not row.steps:  # it was never trained
        return [Cell("", None) for _ in COSTS]
    tokens = row.tokens_per_picture
    return [
        Cell(compact(row.trained), row.trained),
        Cell(compact(row.parameters), row.parameters),
        Cell(cost_label(row.flops) if row.flops else "", row.flops or None),
        Cell(f"{row.samples:,}", row.samples),
        Cell(f"{row.steps:,}", row.steps),
        Cell(duration(row.seconds), row.seconds),
        Cell(compact(row.samples_per_second), row.samples_per_second),
        Cell(f"{compact(row.peak_memory)}B" if row.peak_memory else "", row.peak_memory or None),
        Cell("none" if tokens is None else f"{tokens:g}", tokens),
    ]


def scale_of(comparison: Comparison, task: str) -> tuple[float, float]:
    """The ends of the small bars of one column: 0 to 100 %, or what the scores of the task span."""
    scores = [score for row in comparison.rows for score in row.scores if label_of(score) == task]
    if all(score.percent for score in scores):
        return 0.0, 1.0
    values = [value for score in scores for value in (score.low, score.high, score.blind) if value is not None]
    return min(0.0, *values), max(0.0, *values)


def bar(score: Evaluation, scale: tuple[float, float]) -> Markup:
    """A score as a small bar with its interval."""
    return svg.interval_bar(
        score.score, score.low, score.high, score.blind, score.chance, scale=scale,
        words=lambda value: score_text(score, value),
    )  # fmt: skip


def styles_of(comparison: Comparison) -> dict[str, str]:
    """Design -> the CSS class of its colour."""
    return {row.name: f"c{index % 8}" for index, row in enumerate(headline_rows(comparison))}


def plots(comparison: Comparison) -> list[tuple[str, Scatter]]:
    """(task, plot) for each task: score against cost."""
    return [(task, plot_of(comparison, task)) for task in tasks_of(comparison)]


def plot_of(comparison: Comparison, task: str) -> Scatter:
    """Score on one task against cost; of a mean over seeds with the score of each."""
    rows = [row for row in headline_rows(comparison) if row.scores]
    label, costs = cost_axis(rows)
    like, styles = tasks_of(comparison)[task], styles_of(comparison)
    marks, chance = [], None
    for row, cost in zip(rows, costs):
        score = _on(row, task)
        if score is not None:
            chance = score.chance if chance is None else chance
            own = [one for one in comparison.rows if one.name == row.name and row.seed is None and one.seed is not None]
            seeds = [found.score for one in own if (found := _on(one, task)) is not None]
            marks.append(Mark(row.name, cost, score.score, score.low, score.high, styles[row.name], seeds))
    return Scatter(
        marks=marks,
        title=f"{plain_name(task)}: score by {label}",
        x_label=label,
        y_label="score, %" if like.percent else like.metric,
        words=lambda value: bare_text(like, value),
        chance=chance,
        scale=100.0 if like.percent else 1.0,
    )


def _on(row: ComparedRow, task: str) -> Evaluation | None:
    return next((score for score in row.scores if label_of(score) == task), None)


def cost_axis(rows: Sequence[ComparedRow]) -> tuple[str, list[float]]:
    """What tells the rows apart: their FLOPs, or where a budget made these equal, their seconds."""
    flops = [row.flops for row in rows]
    if not rows or min(flops) <= 0 or (len(rows) > 1 and max(flops) < 1.1 * min(flops)):
        return "seconds of training", [row.seconds for row in rows]
    return "training FLOPs", flops


def matrices(comparison: Comparison) -> list[Matrix]:
    """A matrix for each task that has differences."""
    tasks = tasks_of(comparison)
    found: dict[str, dict[tuple[str, str], Against]] = {}
    for one in comparison.differences:
        like = tasks.get(one.task)
        if like is None:
            continue
        cells = found.setdefault(one.task, {})
        mean, low, high = one.margin
        cells[one.one, one.other] = _against(like, mean, low, high, one.better)
        better = None if one.better is None else not one.better
        cells[one.other, one.one] = _against(like, -mean, -high, -low, better)
    drawn = []
    for task, cells in found.items():
        names = [row.name for row in headline_rows(comparison) if any(row.name in pair for pair in cells)]
        unit = "percentage points" if tasks[task].percent else tasks[task].metric
        drawn.append(Matrix(task, unit, names, [[cells.get((one, other)) for other in names] for one in names]))
    return drawn


def _against(like: Evaluation, mean: float, low: float, high: float, better: bool | None) -> Against:
    style, word = {True: ("above", "better"), False: ("below", "worse"), None: ("unclear", "not decidable")}[better]
    interval = f"{margin_text(like, low)} to {margin_text(like, high)}"
    return Against(margin_text(like, mean), interval, style, word)
