"""A claim of a survey: designs that differ in what it is about, and a test that was fixed before anything was trained.

The test is a list of effects, differences of scores that the claim says are above zero. All designs answer the same
items; a bootstrap draws items anew, the same ones for every design, and every effect is computed of each draw. So the
interval of an effect, also of one such as a largest difference, is that of paired items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.claims.models import BATCH, COUNT, QUESTIONS
from sensorium.commands.compare import write_all
from sensorium.compare.alike import Data
from sensorium.compare.budget import Budget
from sensorium.compare.calibrate import calibrated
from sensorium.compare.plan import Entry, Plan, Wanted, planned
from sensorium.compare.row import kept
from sensorium.compare.run import SPEEDS, compare, write
from sensorium.compare.significance import Scored, means
from sensorium.errors import UserError
from sensorium.evaluate.result import Comparison
from sensorium.evaluate.statistics import Floats, Interval
from sensorium.evaluate.task import EvaluationTask
from sensorium.recipes.common import closed_evaluations
from sensorium.train.recipe import Recipe

LEVEL = 0.95
REPRODUCED, REFUTED, UNDECIDED = "reproduced", "not reproduced", "not decidable at this scale"


class Effect(NamedTuple):
    """A difference that the claim says is above zero.

    values   (1 + R): as measured, then of every bootstrap draw
    decides  whether the verdict hangs on it, or it only helps to read the others
    """

    name: str
    values: Floats
    decides: bool = True

    @property
    def interval(self) -> Interval:
        return self.at(LEVEL)

    def at(self, level: float) -> Interval:
        low, high = np.quantile(self.values[1:], [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(self.values[0]), float(low), float(high))


class Scores:
    """What every design scored: of `scores["design"]` (1 + R) numbers, as `Effect.values`; means over the tasks.

    tasks  labels of those that count
    """

    def __init__(self, found: Mapping[str, Sequence[Sequence[Scored]]], tasks: Sequence[str]) -> None:
        self.found, self.tasks = found, tuple(tasks)

    def __getitem__(self, name: str) -> Floats:
        return self.of(name, self.tasks)

    def of(self, name: str, tasks: Sequence[str]) -> Floats:
        seeds = self.found[name]
        values = []
        for number, label in enumerate(tasks):
            [places] = {tuple(i for i, one in enumerate(seed) if one.label == label) for seed in seeds}
            same = [seed[places[0]] for seed in seeds]
            scores = np.concatenate([one.scores for one in same])  # (seeds, N)
            # the same seed draws the same items for every design: their differences are paired
            values.append(np.append(scores.mean(), means(scores, same[0].groups, seed=number)))
        return np.mean(values, axis=0)

    def mean(self, *names: str) -> Floats:
        return np.mean([self[name] for name in names], axis=0)


def _questions() -> Data:
    return Data(QUESTIONS, QUESTIONS, "categories of emoji, counting in scenes")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """
    letter    of the list in docs/claims.md
    says      the claim, in one sentence; source: where it is made
    protocol  what is trained and asked here, and what differs from the source
    designs   (name, recipe)
    samples   that each is trained on
    effects   of the scores
    data      of all; own: of some designs alone
    needs     fetches what the data needs, once
    points    scores are shares, and effects points; otherwise nats
    """

    letter: str
    says: str
    source: str
    protocol: str
    designs: Sequence[tuple[str, Recipe]]
    effects: Callable[[Scores], list[Effect]]
    samples: int
    data: Data = field(default_factory=_questions)
    own: Mapping[str, Data] = field(default_factory=dict)
    tasks: tuple[EvaluationTask, ...] = closed_evaluations(COUNT)
    needs: Callable[[], object] = lambda: None
    points: bool = True


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with what was measured.

    idle     tasks that no design learned
    blank    designs that learned no task: what they score says that they were not trained well, and nothing else
    minutes  of all calls that this took
    """

    claim: Claim
    comparison: Comparison
    effects: list[Effect]
    verdict: str
    idle: list[str]
    blank: list[str]
    minutes: float
    seeds: int


def put_to_test(claim: Claim, folder: Path, console: Console, seeds: Sequence[int] = (0,)) -> Judged:
    """Train and ask what is not done yet in `folder`, and judge. Raises UserError when a design cannot be trained."""
    began = time.monotonic()
    claim.needs()
    wanted = Wanted(
        recipes=claim.designs, budget=Budget(claim.samples, "samples"), seeds=tuple(seeds), data=claim.data,
        own=claim.own, tasks=claim.tasks, language=False, batch=BATCH, count=COUNT,
    )  # fmt: skip
    say = partial(console.print, markup=False, soft_wrap=True)
    plan = planned(wanted, partial(calibrated, beside=folder / SPEEDS), say)
    done = all(kept(_row(folder, entry)) is not None for entry in plan.entries)
    comparison = compare(plan, folder, f"Claim {claim.letter}", console)
    write_all(comparison, folder)
    failed = [f"{row.name}: {row.error}" for row in comparison.rows if row.error]
    if failed:
        raise UserError(f"claim {claim.letter} is not tested: {'; '.join(failed)}")
    found, learned = _answers(plan, folder)
    tasks = {label: any(label in known for known in learned.values()) for label in _labels(found)}
    counted = [label for label, known in tasks.items() if known]
    blank = [name for name, known in learned.items() if not known]
    effects = claim.effects(Scores(found, counted)) if counted else []
    return Judged(
        claim=claim, comparison=comparison, effects=effects, verdict=UNDECIDED if blank else verdict(effects),
        idle=[label for label, known in tasks.items() if not known], blank=blank,
        minutes=_minutes(folder, None if done else began), seeds=len(seeds),
    )  # fmt: skip


def _answers(plan: Plan, folder: Path) -> tuple[dict[str, list[list[Scored]]], dict[str, set[str]]]:
    """Of each design: the scores of every seed, and the tasks that it learned, with any seed: those in which it beats
    its blind control, or that have none."""
    found: dict[str, list[list[Scored]]] = {}
    learned: dict[str, set[str]] = {}
    for entry in plan.entries:
        answered = kept(_row(folder, entry))
        assert answered is not None
        found.setdefault(entry.name, []).append(answered.items)
        pairs = zip(answered.evaluations, answered.items, strict=True)
        known = {items.label for score, items in pairs if score.blind is None or score.beats_blind}
        learned.setdefault(entry.name, set()).update(known)
    return found, learned


def _row(folder: Path, entry: Entry) -> Path:
    return folder / "rows" / f"{entry.place}.json"


def _labels(found: Mapping[str, Sequence[Sequence[Scored]]]) -> list[str]:
    [first, *_] = found.values()
    return [one.label for one in first[0]]


def verdict(effects: Sequence[Effect]) -> str:
    """Reproduced: every deciding effect's 95 % interval is above zero. Not reproduced: that of one is below it, with
    Bonferroni's correction over those that decide. Otherwise these items do not tell."""
    deciding = [one for one in effects if one.decides]
    if deciding and all(one.interval.low > 0 for one in deciding):
        return REPRODUCED
    strict = 1 - (1 - LEVEL) / max(1, len(deciding))
    return REFUTED if any(one.at(strict).high < 0 for one in deciding) else UNDECIDED


def _minutes(folder: Path, began: float | None) -> float:
    """Of all calls that trained or asked a design; began: when this one did, None where it only reads."""
    path = folder / "minutes.json"
    total = json.loads(path.read_text("utf-8")) if path.exists() else 0.0
    if began is not None:
        total += (time.monotonic() - began) / 60
        write(path, json.dumps(total))
    return total
