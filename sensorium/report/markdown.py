"""The report as Markdown, for a pull request or an issue: the tables, and a few answers as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sensorium.evaluate.result import Comparison, Example
from sensorium.report.comparison import COSTS, matrices, table_of, tasks_of
from sensorium.report.data import ReportData, final_loss, summary
from sensorium.report.words import compact, duration, margin_text, plain_name, score_text

EXAMPLES = 6  # how many right and how many wrong answers are quoted


def report_markdown(data: ReportData) -> str:
    """The report without pictures and curves. Text of users and models is only ever quoted as code."""
    lines = [f"# {_escape(data.title)}", "", _escape(summary(data)), ""]
    if data.stopped:
        lines += [f"**Stopped early:** {_escape(data.stopped)}", ""]
    lines += [f"- {_escape(note)}" for note in data.notes] + ([""] if data.notes else [])
    if data.comparison is not None:
        lines += _comparison(data.comparison)
    if data.evaluations or data.comparison is None:
        lines += ["## Evaluation", "", *_evaluations(data), ""]
    for table in data.tables:
        rows = [[code_span(row[0]), *map(_escape, row[1:])] for row in table.rows]
        right = "".join(f">{column}" for column in range(1, len(table.header)))
        lines += [f"### {_escape(table.title)}", "", *_table([*map(_escape, table.header)], rows, right), ""]
    if data.stages or (data.kind == "run" and data.comparison is None):
        lines += ["## Stages", "", *_stages(data), ""]
    if data.parts:
        lines += ["## Parameters", "", *_parts(data), ""]
    if data.skipped:
        rows = [[code_span(r.source), code_span(r.reason), f"{r.count:,}", code_span(r.first)] for r in data.skipped]
        lines += ["## Skipped rows", "", *_table(["source", "reason", "rows", "first"], rows, ">2"), ""]
    if data.examples:
        lines += ["## Answers as they are", "", *_examples(data.examples), ""]
    if data.recipe_yaml:
        fence = _fence(data.recipe_yaml, 3)
        lines += ["<details><summary>Resolved recipe</summary>", "", f"{fence}yaml", data.recipe_yaml.rstrip(), fence]
        lines += ["", "</details>", ""]
    facts = ([] if data.seed is None else [f"seed {data.seed}"]) + [f"{k} {v}" for k, v in data.environment.items()]
    if facts:
        lines += [_escape(", ".join(facts)), ""]
    return "\n".join(lines)


def _evaluations(data: ReportData) -> list[str]:
    if not data.evaluations:
        return ["Nothing was evaluated."]
    rows = []
    for result in data.evaluations:
        margin = "not run"
        if result.margin is not None and result.margin_low is not None and result.margin_high is not None:
            low, high = margin_text(result, result.margin_low), margin_text(result, result.margin_high)
            margin = f"{margin_text(result, result.margin)} ({low} to {high})"
        low, high = score_text(result, result.low), score_text(result, result.high)
        metric = code_span(result.metric) + (", lower is better" if result.better == "lower" else "")
        rows.append(
            [
                code_span(plain_name(result.task)),
                metric,
                code_span(result.split),
                f"{result.n:,}",
                f"**{score_text(result, result.score)}** ({low} to {high})",
                "not run" if result.blind is None else score_text(result, result.blind),
                "" if result.chance is None else score_text(result, result.chance),
                margin,
            ]
        )
    names = ["task", "metric", "split", "n", "score (95 % interval)", "blind", "chance", "above blind (95 % interval)"]
    return _table(names, rows, ">3>4>5>6>7")


def _comparison(comparison: Comparison) -> list[str]:
    """Scores with intervals, costs, and every difference."""
    tasks = tasks_of(comparison)
    lines = [f"Budget: {_escape(comparison.budget)}. Data: {_escape(comparison.data)}.", ""]
    lines += [f"- {_escape(note)}" for note in comparison.notes] + ([""] if comparison.notes else [])
    table = table_of(comparison)
    scores = []
    for line in table:
        cells = [cell.text for cell in line.scores] or [""]
        if line.row.error and not line.row.scores:
            cells[0] = "failed: " + code_span(line.row.error)
        scores.append([code_span(line.name), *cells])
    units = [
        f"{code_span(plain_name(task))}, {'%' if like.percent else code_span(like.metric)}"
        for task, like in tasks.items()
    ]
    aligned = "".join(f">{column}" for column in range(1, len(units) + 1))
    lines += [
        "## Scores",
        "",
        "With 95 % intervals.",
        "",
        *_table(["design", *(units or ["score"])], scores, aligned),
        "",
    ]
    costs = [[code_span(line.name), *(cell.text for cell in line.costs)] for line in table if line.row.steps]
    aligned = "".join(f">{column}" for column in range(1, len(COSTS) + 1))
    if costs:
        lines += ["## Costs", "", *_table(["design", *COSTS], costs, aligned), ""]
    for matrix in matrices(comparison):
        title = f"### {_escape(plain_name(matrix.task))}, {_escape(matrix.unit)}: row minus column"
        rows = []
        for name, row in zip(matrix.names, matrix.rows):
            cells = ["" if one is None else f"{one.text} ({one.interval}), {one.word}" for one in row]
            rows.append([code_span(name), *cells])
        lines += [title, "", *_table(["", *map(code_span, matrix.names)], rows, ""), ""]
    return lines


def _stages(data: ReportData) -> list[str]:
    if not data.stages:
        return ["Nothing was trained yet."]
    rows = []
    for stage in data.stages:
        last = final_loss(data, stage.name)["final_loss"]
        rows.append(
            [
                code_span(stage.name),
                f"{stage.steps:,}" + (f" of {stage.planned_steps:,}" if stage.planned_steps else ""),
                duration(stage.seconds),
                f"{stage.samples:,}",
                compact(stage.samples_per_second),
                compact(stage.tokens_per_second),
                "" if last is None else f"{last:.3f}",
            ]
        )
    names = ["stage", "steps", "time", "samples", "samples/s", "tokens/s", "last loss"]
    return _table(names, rows, ">1>2>3>4>5>6")


def _parts(data: ReportData) -> list[str]:
    stages = [stage.name for stage in data.stages]
    rows = []
    for part in data.parts:
        trained = [f"{part.trained[name]:,}" if part.trained.get(name) else "frozen" for name in stages]
        rows.append([code_span(part.name), f"{part.parameters:,}", *trained])
    names = ["part", "parameters", *(f"trained in {_escape(name)}" for name in stages)]
    return _table(names, rows, "".join(f">{column}" for column in range(1, len(names))))


def _examples(examples: Sequence[Example]) -> list[str]:
    quoted = [e for e in examples if e.right][:EXAMPLES] + [e for e in examples if e.right is False][:EXAMPLES]
    quoted += [e for e in examples if e.right is None][:EXAMPLES]
    marks = {True: "right", False: "wrong", None: "not scored"}
    rows = []
    for example in quoted:
        blind = "not run" if example.blind is None else code_span(example.blind)
        texts = [code_span(text) for text in (example.question, example.answer, example.expected)]
        rows.append([marks[example.right], *texts, blind])
    return _table(["", "question", "answer", "expected", "blind answer"], rows, "")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """`right` lists the right-aligned columns, for example ">2>3"."""
    aligned = {int(column) for column in right.split(">")[1:]}
    rule = ["--:" if column in aligned else "--" for column in range(len(names))]
    return [f"| {' | '.join(cells)} |" for cells in (names, rule, *rows)]


def code_span(text: str) -> str:
    """Text as a code span within a table cell: no mention, link, picture or tag can come of it."""
    flat = " ".join(text.split()) or "(empty)"
    fence = _fence(flat, 1)
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}".replace("|", "\\|")


def _fence(text: str, least: int) -> str:
    """Backticks enough to enclose `text`."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def _escape(text: str) -> str:
    """One line of prose in which no character is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!@&])", r"\\\1", " ".join(text.split()))
