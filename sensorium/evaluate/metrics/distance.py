"""How far one row of words or letters is from another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def edits(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions between (N) and (M) symbols."""
    if len(one) < len(other):
        one, other = other, one
    number: dict[Hashable, int] = {}
    first = [number.setdefault(symbol, len(number)) for symbol in one]
    second = np.array([number.setdefault(symbol, len(number)) for symbol in other], dtype=np.int64)
    steps = np.arange(len(second) + 1)
    row = steps.copy()
    for symbol in first:
        below = row + 1  # deleting this symbol, or changing it into the one at each place
        below[1:] = np.minimum(below[1:], row[:-1] + (second != symbol))
        row = np.minimum.accumulate(below - steps) + steps  # and inserting what is left of the place
    return int(row[-1])


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence of (N) and (M) symbols."""
    row = [0] * (len(other) + 1)
    for symbol in one:
        diagonal = 0
        for place, against in enumerate(other, 1):
            above = row[place]
            row[place] = diagonal + 1 if symbol == against else max(above, row[place - 1])
            diagonal = above
    return row[-1]
