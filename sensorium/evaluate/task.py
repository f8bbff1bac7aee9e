"""What every evaluation task is, and what it asks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from sensorium.config import Config
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.result import TaskResult
from sensorium.infer.engine import Engine
from sensorium.models.wiring import Wiring
from sensorium.render import Renderer

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""

SHOWN = 16
"""Examples of a task in the report."""

T = TypeVar("T")


class Subject:
    """A trained model as it is asked.

    renderer  its `load` may give features from a cache in place of pixels
    judge     a contrastive model that knows pictures by their names, for a model that makes pictures
    """

    def __init__(
        self, model: Wiring, renderer: Renderer, *, tokens: int = 4096, items: int = 64, judge: Engine | None = None
    ) -> None:
        self.model, self.renderer, self.tokens, self.items = model, renderer, tokens, items
        self.judge = judge

    @cached_property
    def engine(self) -> Engine:
        """Answers, likelihoods, vectors; made when it is first asked for."""
        return Engine(self.model, self.renderer, tokens=self.tokens, items=self.items)


class EvaluationTask(Config):
    """A question to a trained model, always beside its blind control: the same with pictures shuffled across items.

    name   what it is called in tables
    split  of the data, never one that the model was trained or tuned on
    n      items at most
    """

    name: str
    split: str
    n: int

    @property
    def headline(self) -> str:
        """What its first score is called, of which its records are."""
        return self.name

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        """Ask the model. Raises UserError when it is of a kind that cannot be asked this."""
        raise NotImplementedError(f"{self.tag()} asks nothing")

    def shown_items(self) -> dict[str, TaskItem]:
        """What it asks by the ids of its records, with the pictures, for a report of answers that were kept without
        them; empty where it keeps none. Raises UserError where questions of a file cannot be read."""
        return {}


def shuffled(count: int, seed: int) -> list[int]:
    """For each of `count` items another one, along a seeded cycle through all: none keeps its own (but an only one)."""
    cycle = list(range(count))
    random.Random(seed).shuffle(cycle)
    order = [0] * count
    for item, other in zip(cycle, cycle[1:] + cycle[:1]):
        order[item] = other
    return order


def drawn(items: Sequence[T], count: int = SHOWN) -> list[T]:
    """Some of the items as they are, drawn at random, good and bad."""
    return random.Random(0).sample(list(items), min(count, len(items)))
