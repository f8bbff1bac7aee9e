"""What a report shows, and how it puts its numbers into words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sensorium.evaluate.result import Example, Picture, Table
from sensorium.evaluate.statistics import Evaluation
from sensorium.report.curves import Curve, StageSpeed, smoothing_window
from sensorium.report.words import duration, percent, plain_name


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
class ReportData:
    """Everything a report shows. Only the title is needed.

    title         what was trained, for example "LLaVA small, quickstart"
    summary       one sentence of what happened; "" has it written from the numbers
    evaluations   the first ones are the headline
    curves, stages  from `sensorium.train.history.read_run(folder)`
    parts         trained and frozen parameters
    examples      samples with pictures, model answer, expected answer and blind answer
    tables, pictures  further numbers, and (title, picture), of evaluation tasks
    skipped       bad rows by source and reason
    seconds       wall-clock seconds by phase, in order (`Phases.seconds`)
    recipe        the resolved recipe as JSON, and as YAML for people
    environment   versions and machine, from `sensorium.report.environment`
    stopped       why the run ended before its last step; "" when it did not
    notes         anything else a reader must know, one sentence each
    """

    title: str
    summary: str = ""
    evaluations: Sequence[Evaluation] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[StageSpeed] = ()
    parts: Sequence[PartRow] = ()
    examples: Sequence[Example] = ()
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
    training = _training_summary(data.stages)
    if not data.evaluations:
        return f"{training} Nothing was evaluated, so this report cannot say how good the model is."
    first = data.evaluations[0]
    text = f"It scores {percent(first.score)} on {plain_name(first.task)}, {first.split}"
    text += f" ({first.n:,} items, 95 % interval {percent(first.low)} to {percent(first.high)})"
    if first.blind is not None:
        text += f"; the same model with pictures shuffled across questions scores {percent(first.blind)}"
    if first.chance is not None:
        text += f"{' and' if first.blind is not None else ';'} guessing would give {percent(first.chance)}"
    if first.blind is not None and not first.beats_blind:
        text += (
            ". The interval of the margin does not exclude zero: nothing here shows that the model uses what it sees"
        )
    return f"{training} {text}."


def _training_summary(stages: Sequence[StageSpeed]) -> str:
    if not stages:
        return "Nothing was trained yet."
    steps, samples = sum(stage.steps for stage in stages), sum(stage.samples for stage in stages)
    counted = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
    took = duration(sum(stage.seconds for stage in stages))
    return f"Trained in {counted} for {took}, {steps:,} steps on {samples:,} samples."


def verdict(evaluation: Evaluation) -> str:
    """CSS class of a margin: above, unclear or below, by its interval; "" without a control."""
    if evaluation.margin_low is None or evaluation.margin_high is None:
        return ""
    return "above" if evaluation.margin_low > 0 else "below" if evaluation.margin_high < 0 else "unclear"
