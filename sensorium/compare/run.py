"""A comparison from its plan to its table: row after row, each kept when it is done."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sensorium.compare.plan import Entry, Plan
from sensorium.compare.row import Answered, Worker, keep, kept, row_of, work
from sensorium.compare.significance import Scored, differences, interval, means
from sensorium.errors import UserError
from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.statistics import Evaluation, Interval
from sensorium.report.data import label_of, unlearned
from sensorium.report.words import duration, plain_name
from sensorium.train.trainer import Stopped

AVERAGE = "average"
SPEEDS = "calibrations"
"""Where a comparison keeps the speeds that it was planned with."""
HOLM = (
    "A margin has its own 95 % interval, by paired bootstrap over the same items{seeds}; a design is called better "
    "only after Holm's correction over all margins ({count})."
)
UNLEARNED = (
    "No design is above its blind control on {tasks}: within this budget nothing was learned that this asks, and its "
    "scores say nothing about designs. Give a larger budget, or pretrained parts (--size small)."
)
ONE_SEED = "One seed: intervals are about items, and say nothing about the luck of a seed."


def compare(plan: Plan, out: Path, title: str, console: Console, worker: Worker = work) -> Comparison:
    """Train and ask every row that is not done yet; returns the whole comparison.

    Everything lies in `out`: the plan, a run for each row, and what each row said. Raises UserError when `out` holds
    another comparison, and Stopped when a signal asks to stop; the same call then goes on. A recipe that fails does not
    stop the others; it is tried again by the next call.
    """
    _claim(plan, out)
    answered: list[Answered | None] = []
    errors: list[str] = []
    for number, entry in enumerate(plan.entries, 1):
        path = out / "rows" / f"{entry.place}.json"
        found, error = kept(path), entry.error
        if found is None and not error:
            about = f"{sum(entry.steps):,} steps, about {duration(entry.seconds)}"
            console.print(f"{number} of {len(plan.entries)}: {entry.name}, seed {entry.seed}, {about}", markup=False)
            found, error = _worked(entry, out, plan, console, worker)
            if found is not None:
                keep(path, found)
        if error:
            console.print(f"{entry.name}, seed {entry.seed}: {error}", markup=False, soft_wrap=True)
        answered.append(found)
        errors.append(error)
    _write_clock(plan, answered, out)
    return _together(plan, answered, errors, title)


def _worked(entry: Entry, out: Path, plan: Plan, console: Console, worker: Worker) -> tuple[Answered | None, str]:
    """A row, or why there is none: one design that fails must not cost the others their rows."""
    try:
        return worker(entry, out / "runs" / entry.place, plan.tasks, console), ""
    except Stopped:
        raise
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever it is, it is this row's result; where it came from is kept beside the rows
        result = f"{type(error).__name__}: {error}"
        write(out / "rows" / f"{entry.place}.error.txt", traceback.format_exc())
        return None, result


def _claim(plan: Plan, out: Path) -> None:
    """Write the plan into an empty folder, or find the same one there."""
    path, said = out / "plan.json", json.dumps(plan.to_json(), indent=1, ensure_ascii=False)
    if path.exists():
        before, now = json.loads(path.read_text("utf-8")), json.loads(said)
        if before != now:
            what = ", ".join(key for key in now if before.get(key) != now[key])
            raise UserError(f"{out} holds another comparison ({what} differ): choose another --out, or repeat the "
                            "command that began it")  # fmt: skip
        return
    if out.is_dir() and any(not one.name.startswith(".") and one.name != SPEEDS for one in out.iterdir()):
        raise UserError(f"{out} holds other files: choose an empty --out")
    out.mkdir(parents=True, exist_ok=True)
    write(path, said)


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, "utf-8")
    os.replace(draft, path)


def _write_clock(plan: Plan, answered: Sequence[Answered | None], out: Path) -> None:
    """What the clock said of training, which no second run repeats."""
    rows = [
        {"name": entry.name, "seed": entry.seed, "planned_seconds": round(entry.seconds, 3), "seconds": one.seconds}
        for entry, one in zip(plan.entries, answered)
        if one is not None
    ]
    write(out / "timing.json", json.dumps(rows, indent=1))


def _together(plan: Plan, answered: Sequence[Answered | None], errors: Sequence[str], title: str) -> Comparison:
    rows, designs = [], []
    many = len(plan.wanted.seeds) > 1
    for name in dict.fromkeys(entry.name for entry in plan.entries):
        places = [index for index, entry in enumerate(plan.entries) if entry.name == name]
        own = []
        for index in places:
            row = row_of(plan.entries[index], answered[index], errors[index])
            found = answered[index]
            if found is not None:
                row.scores = [*row.scores, *_average(found)]
            own.append(row)
        done = [found for index in places if (found := answered[index]) is not None]
        rows += own
        if many and done:
            rows.append(_mean(own, done))
        if len(done) == len(places):
            stacked = _stacked(done)
            designs.append((name, [*stacked, *([pooled(stacked)] if _average(done[0]) else [])]))
    found = differences(designs)
    notes = [*plan.notes, *_lost(plan, answered)]
    if found:
        notes.append(HOLM.format(seeds=" and over seeds" if many else "", count=len(found)))
    idle = [plain_name(label) for label in unlearned(rows)]
    if idle:
        notes.append(UNLEARNED.format(tasks=", ".join(idle)))
    if not many:
        notes.append(ONE_SEED)
    return Comparison(
        title=title, budget=f"{plan.wanted.budget} each", data=plan.wanted.data.title, rows=rows, differences=found,
        notes=notes,
    )  # fmt: skip


def _lost(plan: Plan, answered: Sequence[Answered | None]) -> list[str]:
    """What is in no score, or counts as wrong without being an answer: of the questions, then of each design."""
    done = [(entry, one) for entry, one in zip(plan.entries, answered) if one is not None]
    many = len(plan.wanted.seeds) > 1
    unasked = list(dict.fromkeys(line for _, one in done for line in one.unasked))
    lost = [
        (f"{entry.name}, seed {entry.seed}" if many else entry.name, line) for entry, one in done for line in one.lost
    ]
    return [f"{line}." for line in unasked] + [f"{name}: {line}." for name, line in lost]


def _average(answered: Answered) -> list[Evaluation]:
    """The mean of all tasks, each as weighty as another, where all are shares and more than one."""
    if len(answered.evaluations) < 2 or len(answered.items) != len(answered.evaluations):
        return []
    if any(one.lower for one in answered.items):
        return []
    return [_averaged(answered.evaluations, answered.items)]


def _averaged(evaluations: Sequence[Evaluation], items: Sequence[Scored]) -> Evaluation:
    """Mean score, blind and chance of tasks; items are resampled within each task."""
    found = over_tasks(items)
    blind = [one.blind for one in evaluations if one.blind is not None]
    chance = [one.chance for one in evaluations if one.chance is not None]
    whole = len(evaluations)
    return Evaluation(
        task=AVERAGE, split="all tasks", n=sum(one.n for one in evaluations), score=found.mean, low=found.low,
        high=found.high, blind=sum(blind) / whole if len(blind) == whole else None,
        chance=sum(chance) / whole if len(chance) == whole else None, margin=None, margin_low=None, margin_high=None,
    )  # fmt: skip


def over_tasks(items: Sequence[Scored]) -> Interval:
    """The mean over tasks, with its interval; every task's items are drawn for themselves, its seeds with them."""

    drawn = np.mean([means(one.scores, one.groups, seed=number) for number, one in enumerate(items)], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.mean([one.scores.mean() for one in items])), float(low), float(high))


def pooled(items: Sequence[Scored]) -> Scored:
    """All items of all tasks, so weighted that their mean is the mean of the tasks' means."""
    total = sum(len(one.ids) for one in items)
    scores = [one.scores * total / (len(items) * len(one.ids)) for one in items]
    groups = tuple(f"{one.label} {of}" for one in items for of in (one.groups or one.ids))
    ids = tuple(f"{one.label} {of}" for one in items for of in one.ids)
    return Scored(f"{AVERAGE} all tasks", ids, np.concatenate(scores, axis=1), groups)


def _stacked(done: Sequence[Answered]) -> list[Scored]:
    """The items of all seeds of one design: (seeds, N) scores of each task."""
    first = done[0].items
    return [
        replace(one, scores=np.concatenate([answered.items[index].scores for answered in done]))
        for index, one in enumerate(first)
    ]


def _mean(rows: Sequence[ComparedRow], done: Sequence[Answered]) -> ComparedRow:
    """The mean over seeds of one design: intervals over seeds and items, and the spread (standard deviation) of each
    score over seeds."""
    ready = [row for row in rows if not row.error]
    stacked = {one.label: one for one in _stacked(done)}
    scores, spread = [], []
    for index, score in enumerate(ready[0].scores):
        same = [row.scores[index] for row in ready]
        whole = stacked.get(label_of(score))
        if whole is not None:
            found = interval(whole.scores, whole.groups)
        elif score.task == AVERAGE:
            found = over_tasks(list(stacked.values()))
        else:  # items are not told apart: the widest that any seed says
            found = Interval(_of(same, "score"), min(one.low for one in same), max(one.high for one in same))
        changes: dict[str, Any] = {"score": found.mean, "low": found.low, "high": found.high}
        changes |= {name: _of(same, name) if getattr(score, name) is not None else None for name in ("blind", "chance")}
        changes |= {"margin": None, "margin_low": None, "margin_high": None}
        scores.append(replace(score, **changes))
        spread.append(float(np.std([one.score for one in same], ddof=1)) if len(same) > 1 else 0.0)
    failed = len(rows) - len(ready)
    lost = f"{failed} of {len(rows)} seeds failed" if failed else ""
    return replace(ready[0], seed=None, scores=scores, spread=spread, error=lost, folder="")


def _of(same: Sequence[Evaluation], name: str) -> float:
    return float(np.mean([getattr(one, name) for one in same]))
