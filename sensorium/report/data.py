"""What a report shows, and how it puts its numbers into words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sensorium.evaluate.result import ComparedRow, Comparison, Example, Picture, Table, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.report.curves import Curve, StageSpeed, smoothing_window
from sensorium.report.words import duration, plain_name, score_text

if TYPE_CHECKING:
    from sensorium.evaluate.item import TaskItem
    from sensorium.evaluate.records import Record

Kind = Literal["run", "evaluation", "comparison"]


@dataclass(kw_only=True)
class PartRow:
    """One part of the model. `trained` is {stage: how many of its parameters that stage trained}; absent means none."""

    name: str
    parameters: int
    trained: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    """Where its weights came from: the name of a pretrained model, or "from scratch"."""


@dataclass(kw_only=True)
class SkippedRows:
    """Bad rows of one source that training left out, for one reason."""

    source: str
    reason: str
    count: int
    first: str = ""
    """The first of them: file and row."""


@dataclass(kw_only=True)
class TaskRecords:
    """Every item of a task as it was asked and answered, for the sample browser.

    by      who answered: the name of a row, in a comparison; records of several rows stand side by side by their ids
    items   the items by the ids of their records: their options, boxes and pictures; without them, `record.pictures`
            that are files
    graded  scores are not of right and wrong (CIDEr, a mean IoU): they are shown as numbers. None: as the task's
            evaluation says
    """

    task: str
    split: str
    records: Sequence[Record]
    by: str = ""
    items: Mapping[str, TaskItem] = field(default_factory=dict)
    graded: bool | None = None


def task_records(results: Iterable[TaskResult], by: str = "") -> list[TaskRecords]:
    """The records of those tasks that have any, for `ReportData.records`. by: who answered, in a comparison."""
    return [
        TaskRecords(
            task=one.evaluations[0].task, split=one.evaluations[0].split, records=one.records, by=by, items=one.items
        )
        for one in results
        if one.records and one.evaluations
    ]


@dataclass(kw_only=True)
class ReportData:
    """Everything a report shows. Only the title is needed.

    title         what was trained, for example "LLaVA small, quickstart"
    kind          what it is of; what that has nothing of (the stages of an evaluation) is then not missed
    summary       one sentence of what happened; "" has it written from the numbers
    evaluations   the first ones are the headline
    curves, stages  from `sensorium.train.history.read_run(folder)`
    parts         trained and frozen parameters
    examples      samples with pictures, model answer, expected answer and blind answer
    records       all items of tasks, for the sample browser: up to thousands
    comparison    designs trained and asked alike
    tables, pictures  further numbers, and (title, picture), of evaluation tasks
    skipped       bad rows by source and reason
    seconds       wall-clock seconds by phase, in order (`Phases.seconds`)
    recipe        the resolved recipe as JSON, and as YAML for people
    environment   versions and machine, from `sensorium.report.environment`
    stopped       why the run ended before its last step; "" when it did not
    notes         anything else a reader must know, one sentence each
    """

    title: str
    kind: Kind = "run"
    summary: str = ""
    evaluations: Sequence[Evaluation] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[StageSpeed] = ()
    parts: Sequence[PartRow] = ()
    examples: Sequence[Example] = ()
    records: Sequence[TaskRecords] = ()
    comparison: Comparison | None = None
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, Picture]] = ()
    skipped: Sequence[SkippedRows] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_yaml: str = ""
    recipe_name: str = ""
    seed: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""
    notes: Sequence[str] = ()
    created: datetime = field(default_factory=lambda: datetime.now().astimezone())


def final_loss(data: ReportData, stage: str) -> dict[str, Any]:
    """Loss at the end of a stage (mean over a twentieth of its steps) and how many steps had none."""
    for curve in data.curves:
        if curve.stage == stage and curve.steps:
            last = [loss for loss in curve.loss[-smoothing_window(len(curve.loss)) :] if math.isfinite(loss)]
            return {"final_loss": sum(last) / len(last) if last else None, "bad_steps": len(curve.bad_steps)}
    return {"final_loss": None, "bad_steps": 0}


def summary(data: ReportData) -> str:
    """One or two sentences of what happened, from the numbers, unless the data brings its own."""
    if data.summary:
        return data.summary
    if data.comparison is not None:
        return _comparison_summary(data.comparison)
    training = f"{_training_summary(data.stages)} " if data.kind == "run" else ""
    if not data.evaluations:
        return f"{training}Nothing was evaluated, so this report cannot say how good the model is."
    first = data.evaluations[0]
    text = f"It scores {score_text(first, first.score)} on {plain_name(first.task)}, {first.split}"
    text += f" ({first.n:,} items, 95 % interval {score_text(first, first.low)} to {score_text(first, first.high)})"
    if first.blind is not None:
        text += f"; the same model with pictures shuffled across questions scores {score_text(first, first.blind)}"
    if first.chance is not None:
        chance = score_text(first, first.chance)
        text += f"{' and' if first.blind is not None else ';'} guessing would give {chance}"
    if first.blind is not None and not first.beats_blind:
        text += (
            ". The interval of the margin does not exclude zero: nothing here shows that the model uses what it sees"
        )
    return f"{training}{text}."


def _training_summary(stages: Sequence[StageSpeed]) -> str:
    if not stages:
        return "Nothing was trained yet."
    steps, samples = sum(stage.steps for stage in stages), sum(stage.samples for stage in stages)
    counted = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
    took = duration(sum(stage.seconds for stage in stages))
    return f"Trained in {counted} for {took}, {steps:,} steps on {samples:,} samples."


def unlearned(rows: Sequence[ComparedRow]) -> list[str]:
    """Labels of the tasks with a blind control that no design beats."""
    learned: dict[str, bool] = {}
    for score in (score for row in rows for score in row.scores if score.margin is not None):
        learned[label_of(score)] = learned.get(label_of(score), False) or score.beats_blind
    return [label for label, beaten in learned.items() if not beaten]


def _comparison_summary(comparison: Comparison) -> str:
    rows = headline_rows(comparison)
    scored = [row for row in rows if row.scores]
    text = f"{len(rows)} designs; budget: {comparison.budget}. "
    if not scored:
        return text + "None of them has a score."
    task = label_of(scored[0].scores[0])
    found = [(row, one) for row in scored for one in row.scores if label_of(one) == task]
    if task in unlearned(rows):
        text += f"On {plain_name(task)} no design is above its blind control: nothing was learned that it asks. "
    better = max if found[0][1].better == "higher" else min
    best, score = better(found, key=lambda pair: pair[1].score)
    equal = [row.name for row, one in found if one.score == score.score]
    if len(equal) > 1:
        text += f"On {plain_name(task)} {', '.join(equal)} share the best score: {score_text(score, score.score)}."
    else:
        interval = f"{score_text(score, score.low)} to {score_text(score, score.high)}"
        text += f"On {plain_name(task)} {best.name} scores best: {score_text(score, score.score)}"
        text += f" (95 % interval {interval})"
        rivals = [
            one.other if one.one == best.name else one.one
            for one in comparison.differences
            if one.task == task and best.name in (one.one, one.other) and one.better is None
        ]
        text += f"; against {', '.join(rivals)} that is not decidable." if rivals else "."
    if comparison.differences:
        sure = sum(one.better is not None for one in comparison.differences)
        text += f" Of {len(comparison.differences)} differences between two designs on a task, {sure} are decidable."
    return text


def headline_rows(comparison: Comparison) -> list[ComparedRow]:
    """One row of each design: the mean over its seeds where there are several."""
    found: dict[str, ComparedRow] = {}
    for row in comparison.rows:
        if row.name not in found or row.seed is None:
            found[row.name] = row
    return list(found.values())


def label_of(evaluation: Evaluation) -> str:
    """Task and split, as `Difference.task` has them."""
    return f"{evaluation.task} {evaluation.split}" if evaluation.split else evaluation.task


def verdict(evaluation: Evaluation) -> str:
    """CSS class of a margin over the blind control: above (better), unclear or below; "" without a control."""
    if evaluation.margin_low is None or evaluation.margin_high is None:
        return ""
    low, high = evaluation.margin_low, evaluation.margin_high
    if evaluation.better == "lower":
        low, high = -high, -low
    return "above" if low > 0 else "below" if high < 0 else "unclear"
