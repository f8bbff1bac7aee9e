"""How sure an evaluation is: intervals of a mean score, and of its margin over the blind control.

Scores are numbers in [0, 1], one per item; 0 or 1 where an answer is right or wrong. Everything is a function of its
arguments and `seed`, so a repeated evaluation repeats its intervals to the last bit.

Sources: Wilson 1927 (score interval); Efron and Tibshirani 1993, sections 13.3 (percentile interval) and 8.3 (paired
samples); Field and Welsh 2007 (resampling whole clusters).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to about 100 MB, whatever the number of items


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def wilson(right: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion: `right` of `n` items. Never empty, also when none or all are right."""
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"a proportion needs 0 <= right <= n and n >= 1, given right={right}, n={n}")
    share = right / n
    z = NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # In exact arithmetic the ends at 0 and 1 are 0 and 1; rounding must not put the mean outside its interval.
    return Interval(share, 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half)


def bootstrap(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (N).

    With `groups` (N), items of one group (questions about one picture, say) are drawn together: they are not
    independent, and an interval that takes them to be is too narrow. Values that are all alike give an empty interval.
    """
    array = _vector(values, "values")
    sums, counts = _by_group(array, groups)
    units = len(sums)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // units)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, units, size=(min(rows, resamples - start), units))
        means[start : start + rows] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def mean_interval(
    scores: ArrayLike, groups: Sequence[Hashable] | None = None, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of a mean score: Wilson for independent 0/1 scores, bootstrap for graded or grouped ones.

    Grouped scores that are all 0 or all 1 leave a bootstrap nothing to vary; then every group counts as one item of a
    Wilson interval, the most careful reading.
    """
    array = _scores(scores, "scores")
    binary = bool(np.isin(array, (0.0, 1.0)).all())
    if binary and groups is None:
        return wilson(int(array.sum()), len(array), level)
    if binary and array.min() == array.max():
        units = len(_by_group(array, groups)[0])
        return wilson(units * int(array[0]), units, level)
    return bootstrap(array, groups, level=level, seed=seed)


def paired_difference(
    scores: ArrayLike,
    control: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of mean(scores - control), both (N) over the same items in the same order.

    Items are drawn in pairs, so what makes an item hard for both cancels. Raises ValueError when the lengths differ.
    """
    ours, theirs = _scores(scores, "scores"), _scores(control, "control")
    if len(ours) != len(theirs):
        raise ValueError(
            f"paired scores must be of the same items: {len(ours)} scores, {len(theirs)} of the control; "
            "score the control on every item the model was scored on"
        )
    return bootstrap(ours - theirs, groups, level=level, resamples=resamples, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One task on one split: the score beside the blind control and chance. All but `n` are fractions, not percents.

    score, low, high                  mean score and its 95 % interval
    blind                             mean score of the same model with pictures shuffled across items; None: not run
    chance                            expected score of guessing; None where guessing has none (open answers)
    margin, margin_low, margin_high   score minus blind and its 95 % interval over pairs; None without a control
    """

    task: str
    split: str
    n: int
    score: float
    low: float
    high: float
    blind: float | None = None
    chance: float | None = None
    margin: float | None = None
    margin_low: float | None = None
    margin_high: float | None = None

    @classmethod
    def of(
        cls,
        task: str,
        split: str,
        scores: ArrayLike,
        *,
        blind: ArrayLike | None = None,
        chance: float | Sequence[float] | None = None,
        groups: Sequence[Hashable] | None = None,
        seed: int = 0,
    ) -> Evaluation:
        """Measure from scores (N), the control's scores (N) on the same items, and chance (one number or N)."""
        score = mean_interval(scores, groups, seed=seed)
        margin = None if blind is None else paired_difference(scores, blind, groups, seed=seed)
        return cls(
            task=task,
            split=split,
            n=len(_vector(scores, "scores")),
            score=score.mean,
            low=score.low,
            high=score.high,
            blind=None if blind is None else float(_scores(blind, "blind").mean()),
            chance=None if chance is None else float(np.mean(chance)),
            margin=None if margin is None else margin.mean,
            margin_low=None if margin is None else margin.low,
            margin_high=None if margin is None else margin.high,
        )

    @property
    def beats_blind(self) -> bool:
        """Whether the margin's interval lies above zero."""
        return self.margin_low is not None and self.margin_low > 0

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def _vector(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be one number per item, at least one item; given shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def _scores(values: ArrayLike, name: str) -> Floats:
    array = _vector(values, name)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1] (not percents); given {array.min():g} to {array.max():g}")
    return array


def _by_group(array: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and item count of every group (G), groups in order of first appearance."""
    if groups is None:
        return array, np.ones_like(array)
    if len(groups) != len(array):
        raise ValueError(f"groups must name one group per item: {len(groups)} groups, {len(array)} items")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(group, len(number)) for group in groups])
    return np.bincount(index, weights=array).astype(np.float64), np.bincount(index).astype(np.float64)
