"""The table of a comparison for a terminal; the report has it as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sensorium.evaluate.result import ComparedRow, Comparison, Difference
from sensorium.evaluate.statistics import Evaluation
from sensorium.report.comparison import tasks_of
from sensorium.report.data import label_of
from sensorium.report.words import bare_text, plain_name
from sensorium.train.describe import count, size_of

COSTS = ("trained", "total", "FLOPs", "samples", "steps", "per s", "memory", "tokens")
"""Parameters trained and in all, FLOPs of training, samples trained on, optimizer steps, samples a second, peak memory,
tokens a picture becomes."""


def score_cell(score: Evaluation, spread: float | None = None) -> str:
    """41.0 % [35.6, 46.6], blind 25.0: of a mean over seeds with the standard deviation over them."""

    text = " ".join([
        bare_text(score, score.score), f"[{bare_text(score, score.low)}, {bare_text(score, score.high)}]",
        *([f"\u00b1 {bare_text(score, spread)} over seeds"] if spread is not None else []),
    ])  # fmt: skip
    return text + (f", blind {bare_text(score, score.blind)}" if score.blind is not None else "")


def cost_cells(row: ComparedRow) -> list[str]:
    tokens = "" if row.tokens_per_picture is None else f"{row.tokens_per_picture:g}"
    if not row.steps:  # it was never planned
        return [""] * len(COSTS)
    return [
        count(row.trained), count(row.parameters), f"{row.flops:.3g}", f"{row.samples:,}" if row.samples else "",
        f"{row.steps:,}", f"{row.samples_per_second:.3g}", size_of(row.peak_memory), tokens,
    ]  # fmt: skip


def named(row: ComparedRow, many: bool) -> str:
    if not many:
        return row.name
    return f"{row.name}, mean" if row.seed is None else f"{row.name}, seed {row.seed}"


def cells_of(row: ComparedRow, tasks: Sequence[str]) -> list[str]:
    """Of each task; of a row without scores, its error in the first."""
    if not row.scores:
        return [f"failed: {row.error}", *[""] * (len(tasks) - 1)]
    found = {
        label_of(score): score_cell(score, row.spread[index] if row.spread else None)
        for index, score in enumerate(row.scores)
    }
    return [found.get(task, "") for task in tasks]


def in_words(one: Difference) -> str:
    """One line: whether it is better, and by how much."""
    low, high = 100 * one.margin.low, 100 * one.margin.high
    margin = f"{100 * one.margin.mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
    if one.better is None:
        return f"{one.one} and {one.other}: {margin}, not decidable"
    first, second = (one.one, one.other) if one.better else (one.other, one.one)
    return f"{first} is better than {second}: {margin} for {one.one}"


def _table(title: str) -> Table:
    """With a column of designs, whose names are broken only where nothing else would be left; no frame, which would
    take what a terminal of 80 columns has for the numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("design", overflow="fold", min_width=12)
    return table


def table_of(comparison: Comparison) -> RenderableType:
    """Scores, then costs, then what is sure of the differences."""
    many = any(row.seed is None for row in comparison.rows)
    tasks = list(tasks_of(comparison)) or ["score"]
    scores = _table(f"{comparison.title}: scores in %, 95 % intervals")
    costs = _table(f"costs ({comparison.budget})")
    for task in tasks:
        scores.add_column(plain_name(task), overflow="fold")
    for name in COSTS:
        costs.add_column(name, justify="right")
    for row in comparison.rows:
        style = "bold" if many and row.seed is None else ""
        scores.add_row(named(row, many), *(Text(cell) for cell in cells_of(row, tasks)), style=style)
        if row.seed is not None:
            costs.add_row(named(row, many), *cost_cells(row), style=style)
    sure = [one for one in comparison.differences if one.better is not None]
    lines = [f"{plain_name(one.task)}: {in_words(one)}" for one in sure]
    if comparison.differences and not sure:
        lines = ["no design is better than another on any task, as far as these items tell"]
    return Group(scores, costs, *(Text(line) for line in lines), Text("\n".join(comparison.notes), style="dim"))
