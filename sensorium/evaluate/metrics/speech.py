"""Word and character error rates of transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.metrics.distance import edits
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods


class _ErrorRate(Metric):
    """Edits per symbol of the reference, over all items: statistics are edits and symbols.

    Of several references (`item.answers`) the one with the lowest rate counts. Nothing said is as many edits as the
    reference has symbols. A rate may exceed 1.

    ignore_case, ignore_punctuation  off: transcripts are compared as they are, but for runs of white space
    """

    ignore_case: bool = False
    ignore_punctuation: bool = False
    letters: ClassVar[bool] = False

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        return words_of(said) or None

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._row(item, said or "") for item, said in zip(items, parsed)], np.float64).reshape(-1, 2)

    def _row(self, item: TaskItem, said: str) -> tuple[int, int]:
        mine = self._symbols(said)
        found = [(edits(mine, theirs), len(theirs)) for theirs in map(self._symbols, item.answers)]
        return min(found, key=lambda row: row[0] / max(row[1], 1), default=(0, 0))

    def _symbols(self, text: str) -> str | list[str]:
        if self.ignore_punctuation:
            text = "".join(letter if letter.isalnum() or letter in "'’" else " " for letter in text)
        words = (text.casefold() if self.ignore_case else text).split()
        return " ".join(words) if self.letters else words

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sums[..., 1:] > 0, sums[..., :1] / sums[..., 1:], np.nan)

    def single(self, rows: Floats) -> Floats:
        """An item whose reference is empty is right (0) where nothing was said, and wrong (1) where something was."""
        return np.where(rows[:, 1] > 0, rows[:, 0] / np.maximum(rows[:, 1], 1), (rows[:, 0] > 0).astype(np.float64))

    def prompt(self, item: TaskItem) -> str:
        return "Write down what is said, word by word."


class Wer(_ErrorRate):
    """Word error rate (Levenshtein 1966; as jiwer and torchmetrics compute it)."""

    names = (Score("WER", better="lower"),)


class Cer(_ErrorRate):
    """Character error rate, spaces included, runs of them as one."""

    names = (Score("CER", better="lower"),)
    letters = True
