"""Short answers against references: exactly, within 5 % of a number, or by edit distance."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Mean, Score, words_of
from sensorium.evaluate.metrics.distance import edits
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

BRIEFLY = "Answer the question using a single word or phrase."
_AROUND = string.punctuation + string.whitespace + "。！？、，；：“”‘’「」…"


class BestOf(Mean):
    """A metric whose item scores as high as the best of its references: `item.answers`, or the right option's text."""

    def one(self, said: str, reference: str) -> float:
        """The score of an answer, in [0, 1]."""
        raise NotImplementedError

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        return words_of(said) or None

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._best(item, answer) for item, answer in zip(items, parsed)], dtype=np.float64)

    def _best(self, item: TaskItem, answer: str | None) -> float:
        if answer is None:
            return 0.0
        return max((self.one(answer, reference) for reference in references(item)), default=0.0)

    def prompt(self, item: TaskItem) -> str:
        return BRIEFLY


def references(item: TaskItem) -> tuple[str, ...]:
    """The right answers as words."""
    if item.answers or item.answer is None or not item.options:
        return item.answers
    return (item.options[item.answer],)


class Exact(BestOf):
    """The same words as a reference (GQA, ScienceQA, classes of pictures).

    ignore_case         `Paris` is `paris`
    ignore_punctuation  around the answer, not inside it: `Paris.` is `Paris`, `3.5` is not `35`; where nothing but
                        marks is left (`+`), they count
    """

    names = (Score("exact match"),)
    ignore_case: bool = True
    ignore_punctuation: bool = True

    def one(self, said: str, reference: str) -> float:
        return float(self._plain(said) == self._plain(reference))

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        if self.ignore_punctuation:
            text = text.strip(_AROUND) or text
        return text.casefold() if self.ignore_case else text


class Relaxed(BestOf):
    """Relaxed accuracy of ChartQA (Masry et al. 2022, arXiv 2203.10244, section 5.1; Methani et al. 2020): a number is
    right within `tolerance` of the reference, `%` divides by a hundred; other answers, and zero, have to be the same
    but for case.
    """

    names = (Score("relaxed accuracy"),)
    tolerance: float = 0.05

    def one(self, said: str, reference: str) -> float:
        value, right = _number(said), _number(reference)
        if value is not None and right:
            return float(abs(value - right) / abs(right) <= self.tolerance)
        return float(said.strip().lower() == reference.strip().lower())


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class Anls(BestOf):
    """Average normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648, equation 1): 1 minus edits per
    character of the longer, 0 from `threshold` edits per character on. Case and runs of spaces do not count.
    """

    names = (Score("ANLS"),)
    threshold: float = 0.5

    def one(self, said: str, reference: str) -> float:
        one, other = (" ".join(text.lower().split()) for text in (said, reference))
        if one == other:
            return 1.0
        distance = edits(one, other) / max(len(one), len(other))
        return 1 - distance if distance < self.threshold else 0.0
