"""Whether designs differ: paired bootstrap over the same items and over seeds, Holm's correction over all pairs.

Sources: Efron and Tibshirani 1993, sections 8.3 (paired samples) and 15.4 (p-values); Holm 1979; resampling rows and
columns of a crossed design: Owen 2007.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.evaluate.result import Difference
from sensorium.evaluate.statistics import RESAMPLES, Floats, Interval

LEVEL = 0.95
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one design on one task: (seeds, N) numbers of the same N items for every design.

    label   task and split, as tables write them
    ids     of the items
    groups  items of one group are resampled together; None: each for itself
    better  which way
    """

    label: str
    ids: tuple[str, ...]
    scores: Floats
    groups: tuple[Hashable, ...] | None = None
    lower: bool = False


def means(values: Floats, groups: Sequence[Hashable] | None = None, *, seed: int = 0) -> Floats:
    """values (S, N) -> (RESAMPLES) bootstrap means: seeds (rows) and items (columns, in groups) both drawn anew."""
    seeds, count = values.shape
    number: dict[Hashable, int] = {}
    of_item = np.array([number.setdefault(one, len(number)) for one in (groups or range(count))])
    sums = np.stack([np.bincount(of_item, weights=row) for row in values])  # (S, G)
    counts = np.bincount(of_item).astype(np.float64)
    units = len(counts)
    generator = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    rows = max(1, _DRAWS_AT_ONCE // units)
    for start in range(0, RESAMPLES, rows):
        stop = min(start + rows, RESAMPLES)
        drawn = generator.integers(0, units, size=(stop - start, units))
        weight = counts[drawn].sum(1)
        each = sums[:, drawn].sum(2) / weight  # (S, R)
        chosen = generator.integers(0, seeds, size=(seeds, stop - start))
        found[start:stop] = np.take_along_axis(each, chosen, 0).mean(0)
    return found


def interval(values: Floats, groups: Sequence[Hashable] | None = None, *, seed: int = 0) -> Interval:
    """The mean of values (S, N) over seeds and items, with the ends of its 95 % interval."""
    low, high = np.quantile(means(values, groups, seed=seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def differences(designs: Sequence[tuple[str, Sequence[Scored]]]) -> list[Difference]:
    """Every pair of designs on every task that both were asked, the same items of it.

    A margin has its own 95 % interval. Whether a design is `better` is decided by the bootstrap's two-sided p-value
    after Holm's correction over all margins given here, so that the chance of any false claim among them is 5 %.
    """
    found: list[tuple[str, str, Scored, Interval, float]] = []
    for index, (one, mine) in enumerate(designs):
        for other, theirs in designs[index + 1 :]:
            beside = {scored.label: scored for scored in theirs}
            for scored in mine:
                if (rival := beside.get(scored.label)) is not None and rival.ids == scored.ids:
                    apart = scored.scores.mean(0) - rival.scores.mean(0)
                    if len(scored.scores) == len(rival.scores):  # seed by seed: the order of samples was the same
                        apart = scored.scores - rival.scores
                    apart = np.atleast_2d(apart)
                    drawn = means(apart, scored.groups)
                    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                    found.append(
                        (one, other, scored, Interval(float(apart.mean()), float(low), float(high)), p_value(drawn))
                    )
    sure = holm([row[-1] for row in found])
    return [
        Difference(one=one, other=other, task=scored.label, margin=margin,
                   better=(margin.mean > 0) != scored.lower if decided else None)
        for (one, other, scored, margin, _), decided in zip(found, sure)
    ]  # fmt: skip


def p_value(drawn: Floats) -> float:
    """Two-sided, of bootstrap means (R) being zero; never below 2 / (R + 1), which is all that R draws can tell."""
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(drawn) + 1))


def holm(values: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of these p-values are below `level` when all are claimed together (Holm 1979)."""
    decided = [False] * len(values)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for rank, index in enumerate(order):
        if values[index] > level / (len(values) - rank):
            break
        decided[index] = True
    return decided
