"""Curves and speeds of a run: what its report draws and tabulates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float]


@dataclass(kw_only=True)
class Curve:
    """Loss and learning rate of one stage.

    steps       (N) optimizer steps
    loss        (N) the training loss of each step; NaN and infinity are allowed and shown as such
    lr          learning rates (N) by the glob they apply to
    validation  (step, loss) pairs, where a validation loss was measured
    """

    stage: str
    steps: list[int]
    loss: list[float]
    lr: dict[str, list[float]] = field(default_factory=dict)
    validation: list[Point] = field(default_factory=list)

    @property
    def bad_steps(self) -> list[int]:
        """Steps whose loss was not finite."""
        return [step for step, loss in zip(self.steps, self.loss) if not math.isfinite(loss)]


@dataclass(kw_only=True)
class StageSpeed:
    """What one stage did. `seconds` are those of its optimizer steps, without evaluation and saving."""

    name: str
    steps: int
    samples: int
    tokens: int
    seconds: float
    planned_steps: int | None = None

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """(N) centred mean over `window` values, fewer at the ends; values that are not finite are left out of it."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(array))
    # At the start, where losses fall steeply, the window shrinks on both sides alike, or the mean would lie too low.
    before = np.minimum(index, half)
    low, high = index - before, index + np.minimum(before, len(array) - 1 - index) + 1
    total = counts[high] - counts[low]
    return np.where(total > 0, (sums[high] - sums[low]) / np.maximum(total, 1), math.nan).tolist()


def smoothing_window(n: int) -> int:
    """An odd window of about a twentieth of the curve."""
    return max(1, n // 20) | 1


def thinned(xs: Sequence[float], ys: Sequence[float], limit: int = 500) -> list[Point]:
    """About `limit` points that keep every peak, gap and both ends: of each run of points its lowest and highest."""
    if len(xs) <= limit:
        return list(zip(xs, ys))
    kept: set[int] = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), limit // 2):
        values = np.asarray([ys[index] for index in part])
        finite = part[np.isfinite(values)]
        kept |= {int(index) for index in part[~np.isfinite(values)][:1]}
        if len(finite):
            kept |= {int(min(finite, key=lambda index: ys[index])), int(max(finite, key=lambda index: ys[index]))}
    return [(xs[index], ys[index]) for index in sorted(kept)]
