"""Captions against references: CIDEr-D, BLEU and ROUGE-L as the COCO evaluation computes them (Chen et al. 2015,
arXiv 1504.00325, section 3), and METEOR."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Mean, Metric, Score, words_of
from sensorium.evaluate.metrics.distance import common
from sensorium.evaluate.metrics.tokenize import caption_tokens
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

Words = tuple[str, ...]
Grams = Counter[Words]
LONGEST = 4


def grams(words: Words, n: int) -> Grams:
    """How often each run of n words stands in a text."""
    return Counter(words[start : start + n] for start in range(len(words) - n + 1))


class _Captions:
    """What metrics of captions share: parsed is the caption; None where it has no words."""

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        text = words_of(said)
        return text if caption_tokens(text) else None

    def prompt(self, item: TaskItem) -> str:
        return "Describe the picture in one sentence."


class Cider(_Captions, Mean):
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, sections 3 and 5), times ten.

    For n of 1 to 4, n-grams weigh by their number times log(items / items whose references have it), so a score is one
    among all `items`, which have to be given at once. A caption's weights are clipped to the reference's in the
    product, and a difference in length costs exp(-difference^2 / (2 sigma^2)).
    """

    names = (Score("CIDEr-D", percent=False),)
    sigma: float = 6.0

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        references = [[_all_grams(caption_tokens(text)) for text in item.answers] for item in items]
        documents: Counter[Words] = Counter()
        for those in references:
            documents.update({gram for one in those for level in one for gram in level})
        whole = math.log(len(items)) if items else 0.0
        rarity = {gram: whole - math.log(count) for gram, count in documents.items()}
        scores = []
        for said, those in zip(parsed, references):
            given = _Weighted(_all_grams(caption_tokens(said or "")), rarity, whole)
            each = [given.likeness(_Weighted(one, rarity, whole), self.sigma) for one in those]
            scores.append(10 * sum(each) / len(each) if each else 0.0)
        return np.array(scores)


def _all_grams(words: Words) -> list[Grams]:
    return [grams(words, n) for n in range(1, LONGEST + 1)]


class _Weighted:
    """A caption's n-grams by n, weighted by how many there are and how rare they are."""

    def __init__(self, counts: list[Grams], rarity: dict[Words, float], rarest: float) -> None:
        self.weights = [
            {gram: count * rarity.get(gram, rarest) for gram, count in level.items()} for level in counts
        ]  # fmt: skip
        self.norms = [math.sqrt(sum(weight * weight for weight in level.values())) for level in self.weights]
        self.length = sum(counts[1].values())

    def likeness(self, reference: _Weighted, sigma: float) -> float:
        """The mean over n of the clipped cosine, with the penalty of another length."""
        total = 0.0
        for mine, theirs, norm, other in zip(self.weights, reference.weights, self.norms, reference.norms):
            if norm and other:
                shared = sum(
                    min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs
                )
                total += shared / (norm * other)
        return total / LONGEST * math.exp(-((self.length - reference.length) ** 2) / (2 * sigma**2))


class Bleu(_Captions, Metric):
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002): clipped n-gram precisions, and the brevity penalty against
    the reference closest in length (of two the shorter). The headline is BLEU-4.

    The COCO evaluation adds 1e-15 to what matches and 1e-9 to what could, which keeps logarithms finite; so does this.
    Statistics: matched n-grams and n-grams for n of 1 to 4, words, words of the closest references.
    """

    names = (Score("BLEU-4"), Score("BLEU-3"), Score("BLEU-2"), Score("BLEU-1"))

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        rows = [self._row(caption_tokens(said or ""), item) for item, said in zip(items, parsed)]
        return np.array(rows, dtype=np.float64).reshape(-1, 2 * LONGEST + 2)

    def _row(self, said: Words, item: TaskItem) -> list[int]:
        those = [caption_tokens(text) for text in item.answers]
        matched = []
        for n in range(1, LONGEST + 1):
            most: Grams = Counter()
            for words in those:
                most |= grams(words, n)
            matched.append(sum((grams(said, n) & most).values()))
        possible = [max(0, len(said) - n + 1) for n in range(1, LONGEST + 1)]
        closest = min((abs(len(words) - len(said)), len(words)) for words in those)[1] if those else 0
        return [*matched, *possible, len(said), closest]

    def scores(self, sums: Floats) -> Floats:
        matched, possible = sums[..., :LONGEST] + 1e-15, sums[..., LONGEST : 2 * LONGEST] + 1e-9
        mean = np.cumsum(np.log(matched / possible), axis=-1) / np.arange(1, LONGEST + 1)
        ratio = (sums[..., -2] + 1e-15) / (sums[..., -1] + 1e-9)
        brevity = np.minimum(0, 1 - 1 / ratio)
        return np.exp(mean + brevity[..., None])[..., ::-1]


class RougeL(_Captions, Mean):
    """ROUGE-L (Lin 2004, section 3.1): the F of the longest common subsequence, recall weighing `beta` as much as
    precision, each of the reference that has most of it; the mean over items.
    """

    names = (Score("ROUGE-L"),)
    beta: float = 1.2

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._one(caption_tokens(said or ""), item) for item, said in zip(items, parsed)])

    def _one(self, said: Words, item: TaskItem) -> float:
        those = [words for text in item.answers if (words := caption_tokens(text))]
        if not said or not those:
            return 0.0
        shared = [common(said, words) for words in those]
        precision = max(shared) / len(said)
        recall = max(length / len(words) for length, words in zip(shared, those))
        if not precision:
            return 0.0
        return (1 + self.beta**2) * precision * recall / (recall + self.beta**2 * precision)
