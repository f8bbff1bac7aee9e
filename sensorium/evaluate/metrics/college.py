"""Multiple choice in two further ways: in circles (MMBench), and mixed with open questions (MMMU)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.answers import BRIEFLY
from sensorium.evaluate.metrics.base import Score, words_of
from sensorium.evaluate.metrics.choices import Choice
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods


class Circular(Choice):
    """CircularEval of MMBench (Liu et al. 2023, arXiv 2307.06281, section 4.2): a question that is asked with its
    options in every rotation is right when each is. `accuracy` is of the single askings.

    Items of one question share `info["circle"]`; an item without it is a question by itself.
    Statistics: 1/k for a right question asked k times, 1/k, right, 1: so a question counts once, and all its askings
    carry its score.
    """

    names = (Score("circular accuracy"), Score("accuracy"))

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        right = self.each(items, parsed)
        rows = np.zeros((len(items), 4))
        for places in _circles(items):
            rows[places, 0], rows[places, 1] = right[places].min() / len(places), 1 / len(places)
        rows[:, 2], rows[:, 3] = right, 1
        return rows

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]], axis=-1)

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        """Guessing anew each time."""
        circles = _circles(items)
        guessed = [np.prod([1 / len(items[place].options) for place in places]) for places in circles]
        return float(np.mean(guessed)) if guessed else None


def _circles(items: Sequence[TaskItem]) -> list[list[int]]:
    """The places of the items of each question."""
    found: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        circle = item.info.get("circle")
        found[(circle is not None, str(item.id if circle is None else circle))].append(place)
    return list(found.values())


_CONCLUDES = re.compile(r"(?:\b(?:could be|so|is|thus|therefore|final|answer|result)\b|=)\s*:?", re.IGNORECASE)
"""Words before an answer, those of the benchmark's own program."""
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?")


class Mmmu(Choice):
    """MMMU (Yue et al. 2023, arXiv 2311.16502): questions with options as `choice` reads them, and open ones, which are
    right when a right answer stands in what is said: a text as whole words, a number to two decimals. Where sentences
    announce an answer (`so`, `is`, `=` ...), only what stands behind the last such word of each is read.

    Parsed: the option's number, or of an open question what is said.
    """

    def parse(self, said: str | Likelihoods, item: TaskItem) -> Any:
        return super().parse(said, item) if item.options else words_of(said) or None

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        right = [
            answer is not None and (answer == item.answer if item.options else says(answer, item.answers))
            for item, answer in zip(items, parsed)
        ]
        return np.array(right, dtype=np.float64)

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        """An open question is not guessed."""
        return float(np.mean([1 / len(item.options) if item.options else 0 for item in items])) if items else None

    def prompt(self, item: TaskItem) -> str:
        return super().prompt(item) if item.options else BRIEFLY


def says(said: str, answers: Sequence[str]) -> bool:
    """Whether an open answer holds one of the right ones."""
    sentences = [one for one in re.split(r"\.\s|\n", said) if one.strip()]
    announced = [_CONCLUDES.split(one)[-1] for one in sentences if _CONCLUDES.search(one)]
    read = [one for one in announced if one.strip(" .,:;")] or [said]
    numbers = {_rounded(number) for one in read for number in _NUMBER.findall(one)}
    words = [_plain(one) for one in read]
    for answer in answers:
        if _NUMBER.fullmatch(answer.strip()):
            if _rounded(answer.strip()) in numbers:
                return True
        elif any(re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", one) for one in words):
            return True
    return False


def _rounded(number: str) -> float:
    return round(float(number.replace(",", "")), 2)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")
