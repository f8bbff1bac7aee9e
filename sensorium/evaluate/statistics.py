"""How sure an evaluation is: intervals of a mean score or a corpus score, and of its margin over the blind control.

Means are of numbers in [0, 1], one per item; 0 or 1 where an answer is right or wrong. A corpus score (BLEU, F1) is a
function of sums over the items. Everything is a function of its arguments and `seed`, so a repeated evaluation repeats
its intervals to the last bit.

Sources: Wilson 1927 (score interval); Efron and Tibshirani 1993, sections 13.3 (percentile interval) and 8.3 (paired
samples); Field and Welsh 2007 (resampling whole clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isnan, sqrt
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to about 100 MB, whatever the number of items


Better = Literal["higher", "lower"]


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


class Score(NamedTuple):
    """A score by name: percent, written times a hundred with a % sign; better, which way is better."""

    name: str
    percent: bool = True
    better: Better = "higher"

    @property
    def graded(self) -> bool:
        """Whether it says how good an answer is, not which share of them is right."""
        return not self.percent or self.better == "lower"


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
    rows = np.stack([array, np.ones_like(array)], axis=1)
    (found,) = bootstrap_scores(rows, _mean, groups, level=level, resamples=resamples, seed=seed)
    return found._replace(mean=float(array.mean()))  # summed in pairs: nearer than row after row


def _mean(sums: Floats) -> Floats:
    """(..., 2) a sum and a count -> (..., 1)."""
    return sums[..., :1] / sums[..., 1:]


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
    if binary and groups is not None and array.min() == array.max():
        units = int(_numbered(groups, len(array)).max()) + 1
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


ScoresOf = Callable[[Floats], Floats]
"""(..., K) sums of sufficient statistics -> (..., S) scores; nan where there is nothing to divide by."""


def bootstrap_scores(
    statistics: ArrayLike,
    scores: ScoresOf,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Percentile bootstrap intervals of scores that are a function of the sums of `statistics` (N, K).

    Items, or whole groups of them, are drawn as in `bootstrap`, their rows added up, and `scores` applied. Resamples
    without a score (nan) are left out; a score that is nan on all items has an interval of nan.
    """
    sums = _rows_by_group(statistics, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = scores(sums.sum(axis=0))
        found = scores(_resampled(sums, resamples, seed))
    return _intervals(point, found, level)


def paired_scores(
    statistics: ArrayLike,
    control: ArrayLike,
    scores: ScoresOf,
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Bootstrap intervals of `scores` of `statistics` minus those of `control`, both (N, K) of the same items.

    Items are drawn in pairs, as in `paired_difference`. Raises ValueError when the shapes differ.
    """
    ours, theirs = _rows_by_group(statistics, groups), _rows_by_group(control, groups)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired statistics must be of the same items: {ours.shape} and {theirs.shape} of the control")
    width = ours.shape[1]
    drawn = _resampled(np.concatenate([ours, theirs], axis=1), resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        point = scores(ours.sum(axis=0)) - scores(theirs.sum(axis=0))
        found = scores(drawn[:, :width]) - scores(drawn[:, width:])
    return _intervals(point, found, level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One task on one split: the score beside the blind control and chance. Where `percent`, fractions, not percents.

    score, low, high                  the score and its 95 % interval
    blind                             the same model's score with pictures shuffled across items; None: not run
    chance                            expected score of guessing; None where guessing has none (open answers)
    margin, margin_low, margin_high   score minus blind and its 95 % interval over pairs; None without a control
    metric                            what the score is called
    percent                           the score is a fraction, written times a hundred; otherwise as it is (CIDEr, MME)
    better                            which way is better
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
    metric: str = "accuracy"
    percent: bool = True
    better: Better = "higher"

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
    def graded(self) -> bool:
        """As of a `Score`."""
        return Score(self.metric, self.percent, self.better).graded

    @property
    def beats_blind(self) -> bool:
        """Whether the margin's interval lies on the better side of zero."""
        if self.margin_low is None or self.margin_high is None:
            return False
        return self.margin_low > 0 if self.better == "higher" else self.margin_high < 0

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def evaluations(
    task: str,
    split: str,
    names: Sequence[Score],
    statistics: ArrayLike,
    scores: ScoresOf,
    *,
    blind: ArrayLike | None = None,
    chance: float | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Evaluation]:
    """One Evaluation for each name, of sufficient statistics (N, K) and the control's on the same items.

    chance  of the first score. A score with nothing to divide by on these items is left out.
    Plain means of 0 and 1 have the intervals of `mean_interval`; a percentage of 0 or 100 that no resample varies has
    the Wilson interval over groups, so that no interval of a few items is empty.
    """
    rows = np.asarray(statistics, dtype=np.float64)
    found = bootstrap_scores(rows, scores, groups, seed=seed)
    if rows.shape[1] == 2 and len(names) == 1 and (rows[:, 1] == 1).all() and np.isin(rows[:, 0], (0.0, 1.0)).all():
        found = [mean_interval(rows[:, 0], groups, seed=seed)]
    control = margins = None
    if blind is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            control = scores(_rows_by_group(blind, None).sum(axis=0))
        margins = paired_scores(rows, blind, scores, groups, seed=seed)
    units = len(rows) if groups is None else len(set(groups))
    results = []
    for index, (name, percent, better) in enumerate(names):
        score = found[index]
        if isnan(score.mean):
            continue
        if percent and score.low == score.high and score.mean in (0.0, 1.0):
            score = wilson(units * int(score.mean), units)
        margin = None if margins is None or isnan(margins[index].mean) else margins[index]
        results.append(
            Evaluation(
                task=task,
                split=split,
                n=len(rows),
                score=score.mean,
                low=score.low,
                high=score.high,
                blind=None if margin is None or control is None else float(control[index]),
                chance=chance if index == 0 else None,
                margin=None if margin is None else margin.mean,
                margin_low=None if margin is None else margin.low,
                margin_high=None if margin is None else margin.high,
                metric=name,
                percent=percent,
                better=better,
            )
        )
    return results


def _draws(units: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """(rows, units) numbers of drawn units, as many rows at a time as memory allows, `resamples` in all."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // units)
    for start in range(0, resamples, rows):
        yield generator.integers(0, units, size=(min(rows, resamples - start), units))


def _resampled(sums: Floats, resamples: int, seed: int) -> Floats:
    """(G, K) -> (resamples, K): the sum of G drawn rows."""
    units = len(sums)
    found = []
    for drawn in _draws(units, resamples, seed):
        places = drawn + np.arange(len(drawn))[:, None] * units
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        found.append(times.astype(np.float64) @ sums)
    return np.concatenate(found)


def _intervals(point: Floats, found: Floats, level: float) -> list[Interval]:
    """(S) scores and (resamples, S) of resamples -> an interval each."""
    tail = (1 - level) / 2
    intervals = []
    for mean, column in zip(np.atleast_1d(point), found.reshape(len(found), -1).T):
        known = column[np.isfinite(column)]
        if not np.isfinite(mean) or not len(known):
            intervals.append(Interval(float("nan"), float("nan"), float("nan")))
            continue
        low, high = np.quantile(known, [tail, 1 - tail])
        intervals.append(Interval(float(mean), float(low), float(high)))
    return intervals


def _rows_by_group(statistics: ArrayLike, groups: Sequence[Hashable] | None) -> Floats:
    """(N, K) -> (G, K): the rows of every group added up, groups in order of first appearance."""
    rows = np.asarray(statistics, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"statistics must be a row per item, at least one item; given shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"statistics hold {int((~np.isfinite(rows)).sum())} values that are not finite")
    if groups is None:
        return rows
    index = _numbered(groups, len(rows))
    sums = np.zeros((int(index.max()) + 1, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums


def _numbered(groups: Sequence[Hashable], items: int) -> NDArray[np.int64]:
    """(N): the number of each item's group, in order of first appearance."""
    if len(groups) != items:
        raise ValueError(f"groups must name one group per item: {len(groups)} groups, {items} items")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups])


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
