"""What every metric is: it reads answers, and reduces each item to numbers whose sums give the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sensorium.config import Config
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.result import Table
from sensorium.evaluate.statistics import Floats, Score
from sensorium.infer.likelihoods import Likelihoods

__all__ = ["Mean", "Metric", "Needs", "Score", "words_of"]

Needs = Literal["words", "likelihoods"]


def words_of(said: str | Likelihoods) -> str:
    """What was said, without white space around it. Raises TypeError for likelihoods: the metric reads words."""
    if not isinstance(said, str):
        raise TypeError(f"this metric reads words, given {type(said).__name__}")
    return said.strip()


class Metric(Config):
    """Answers of a task -> scores.

    Each item becomes a row of K sufficient statistics (right and asked; the four counts of a yes/no task; matched and
    possible n-grams), and scores are a function of the rows' sum. So a score of a whole corpus, such as BLEU or F1, has
    a bootstrap interval like any mean: resample items, or groups of them, add up, apply `scores`.

    needs   "words": what the model says; "likelihoods": of the item's options
    names   what `scores` returns, the first is the headline
    """

    needs: ClassVar[Needs] = "words"
    names: ClassVar[tuple[Score, ...]]

    def parse(self, said: str | Likelihoods, item: TaskItem) -> Any:
        """The answer read out of what was said, in plain JSON; None where there is none to be read: that is never
        right, and is counted."""
        raise NotImplementedError

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        """(N, K) of N items and what was parsed of their answers (None: no answer)."""
        raise NotImplementedError

    def scores(self, sums: Floats) -> Floats:
        """(..., K) sums -> (..., len(names)). Nothing to divide by gives nan."""
        raise NotImplementedError

    def single(self, rows: Floats) -> Floats:
        """(N, K) -> (N): the headline of each item by itself, for records and for paired comparisons."""
        return self.scores(rows)[..., 0]

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        """What guessing is expected to score; None where guessing has no score."""
        return None

    def prompt(self, item: TaskItem) -> str:
        """What is asked of the form of an answer, behind the question; a task may say it otherwise."""
        return ""

    def options(self, item: TaskItem) -> Sequence[str]:
        """The answers whose likelihoods `parse` reads, where it needs likelihoods."""
        return item.options

    def tables(self, items: Sequence[TaskItem], rows: Floats) -> list[Table]:
        """Further numbers for people, from the statistics (N, K) of all items."""
        return []


class Mean(Metric):
    """A metric that gives each item a score, whose mean is the score: statistics are (score, 1)."""

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        """(N): the score of each item."""
        raise NotImplementedError

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        values = np.asarray(self.each(items, parsed), dtype=np.float64)
        return np.stack([values, np.ones_like(values)], axis=-1)

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[..., :1] / sums[..., 1:]
