"""CLIPScore: how near a caption is to its picture in the space of a contrastive model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from pydantic import PrivateAttr

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.statistics import Floats
from sensorium.infer.engine import Engine
from sensorium.infer.likelihoods import Likelihoods
from sensorium.infer.vectors import picture_vectors, text_vectors
from sensorium.objectives.contrastive import similarity


class ClipScore(Metric):
    """CLIPScore and RefCLIPScore (Hessel et al. 2021, arXiv 2104.08718, section 3).

    `weight` times the cosine of picture and caption, at least 0; with references the harmonic mean of it and of the
    largest cosine of caption and reference. Any contrastive model judges: `judged_by(engine)` gives the metric its
    judge, and each item its first picture. Nothing said scores 0.

    weight  2.5 in the paper
    prefix  stands before a caption, as in the paper
    """

    judge_needed = True
    names = (Score("CLIPScore", percent=False), Score("RefCLIPScore", percent=False))
    weight: float = 2.5
    prefix: str = "A photo depicts "
    _judge: Engine | None = PrivateAttr(default=None)

    def judged_by(self, judge: Engine) -> Self:
        """The same metric, asking this model."""
        metric = self.replace()
        metric._judge = judge
        return metric

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        return words_of(said) or None

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        """(N, 4): score and 1; with references, the score with them and 1. Raises UserError without a judge."""
        if self._judge is None:
            raise UserError(
                "clipscore is measured with a contrastive model: give it one as a judge (a run of clip, say)"
            )
        rows = np.zeros((len(items), 4))
        rows[:, 1] = 1
        said = [index for index, one in enumerate(parsed) if one is not None]
        cosines = clip_cosines(self._judge, [_picture(items[index]) for index in said],
                               [self.prefix + parsed[index] for index in said])  # fmt: skip
        rows[said, 0] = self.weight * np.clip(cosines, 0, None)
        for index, item in enumerate(items):
            rows[index, 3] = bool(item.answers)
            if item.answers and parsed[index] is not None:
                texts = [self.prefix + one for one in (parsed[index], *item.answers)]
                vectors = text_vectors(self._judge, texts).cpu().double().numpy()
                nearest = max(float((vectors[1:] @ vectors[0]).max()), 0.0)
                both = rows[index, 0] + nearest
                rows[index, 2] = 2 * rows[index, 0] * nearest / both if both else 0.0
        return rows

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[..., ::2] / sums[..., 1::2]

    def prompt(self, item: TaskItem) -> str:
        return "Describe the picture in one sentence."


def clip_cosines(judge: Engine, pictures: Sequence[Any], texts: Sequence[str]) -> Floats:
    """(N) pictures and (N) texts -> (N): the cosine of each pair."""
    if not texts:
        return np.zeros(0)
    found = similarity(picture_vectors(judge, pictures), text_vectors(judge, texts))
    return found.diagonal().cpu().double().numpy()


def _picture(item: TaskItem) -> Any:
    for segment in item.media:
        if segment.kind == "image":
            return segment.data
    raise UserError(f"item {item.id} has no picture to compare a caption with")
