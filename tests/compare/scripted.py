"""Rows that no one trains: plans and answers for tests of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from sensorium.compare.alike import built_in
from sensorium.compare.budget import Budget
from sensorium.compare.plan import Entry, Plan, Wanted
from sensorium.compare.row import Answered
from sensorium.compare.significance import Scored
from sensorium.evaluate.statistics import Evaluation
from sensorium.recipes.catalog import find

RECIPE = find("llava", "tiny")
RIGHT = {"good": 0.8, "fair": 0.55, "poor": 0.5, "idle": 0.25}
ITEMS = 120
QUIET = Console(quiet=True)


def plan(names: Sequence[str] = ("good", "poor"), seeds: tuple[int, ...] = (0,), **changes: object) -> Plan:
    entries = [
        Entry(name=name, title=name, seed=seed, recipe=RECIPE, parameters=1000, trained=100 * (1 + place), steps=(2, 3),
              flops=1e9 * (1 + place), seconds=5.0, speed=16.0, peak_memory=10**8, tokens_per_picture=64.0)
        for seed in seeds
        for place, name in enumerate(names)
    ]  # fmt: skip
    wanted = Wanted(
        recipes=[(name, RECIPE) for name in names], budget=Budget(80, "samples"), seeds=seeds, data=built_in([RECIPE])
    )
    fields = {"wanted": wanted, "entries": entries, "tasks": (), "notes": ["scripted"], **changes}
    return Plan(**fields)  # type: ignore[arg-type]


def answer(entry: Entry) -> Answered:
    """Two tasks of 0 and 1, as often right as the name says, the same items for all."""
    evaluations, items = [], []
    for number, task in enumerate(("names", "places")):
        drawn = np.random.default_rng(100 * number + entry.seed).random(ITEMS)  # the same luck for every design
        scores = (drawn < RIGHT[entry.name]).astype(np.float64)
        evaluations.append(Evaluation.of(task, "val", scores, blind=drawn < 0.25, chance=0.25))
        items.append(Scored(f"{task} val", tuple(str(one) for one in range(ITEMS)), scores[None]))
    return Answered(evaluations=evaluations, items=items, samples=80, seconds=4.5)


class Worker:
    """Answers by name; `fails` raise, and before `stops` is worked on a signal comes."""

    def __init__(self, fails: Sequence[str] = (), stops: str = "") -> None:
        self.fails, self.stops = fails, stops
        self.worked: list[str] = []

    def __call__(self, entry: Entry, folder: Path, tasks: object, console: Console) -> Answered:
        from sensorium.train.trainer import Stopped

        if entry.place == self.stops:
            raise Stopped("stopped")
        if entry.name in self.fails:
            raise ValueError("loss is not finite")
        self.worked.append(entry.place)
        return answer(entry)
