"""Finding the right ones among many: recall at k, mean average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sensorium.errors import UserError
from sensorium.evaluate.statistics import Floats


def recalls(similarity: ArrayLike, right: ArrayLike, at: Sequence[int] = (1, 5, 10)) -> Floats:
    """similarity (N, M), right (N, M) whether a candidate is right for a query -> (N, len(at)) of 0 and 1.

    R@k of a query: whether any right one is among the k most similar (CLIP, arXiv 2103.00020, table 13; Karpathy and
    Fei-Fei 2015). A wrong one that is as similar as the best right one stands before it. A query without a right one
    has found none.
    """
    scores, wanted = _checked(similarity, right)
    best = np.where(wanted, scores, -np.inf).max(axis=1, initial=-np.inf)
    before = ((scores >= best[:, None]) & ~wanted).sum(axis=1)
    found = wanted.any(axis=1)
    return np.stack([(before < k) & found for k in at], axis=1).astype(np.float64)


def average_precisions(similarity: ArrayLike, right: ArrayLike) -> Floats:
    """similarity (N, M), right (N, M) -> (N): average precision of each query; their mean is mAP.

    The sum over ranks of precision times the gain in recall, equally similar ones taken together (as scikit-learn's
    average_precision_score). A query without a right one scores 0.
    """
    scores, wanted = _checked(similarity, right)
    found = np.zeros(len(scores))
    for query, (row, hits) in enumerate(zip(scores, wanted)):
        if not hits.any():
            continue
        order = np.argsort(-row, kind="stable")
        last = np.append(np.flatnonzero(np.diff(row[order])), len(row) - 1)  # where a run of equal ones ends
        taken = np.cumsum(hits[order])[last]
        precision = taken / (last + 1)
        found[query] = float((np.diff(taken, prepend=0) * precision).sum()) / hits.sum()
    return found


def _checked(similarity: ArrayLike, right: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    scores, wanted = np.asarray(similarity, dtype=np.float64), np.asarray(right, dtype=bool)
    if scores.ndim != 2 or scores.shape != wanted.shape:
        raise UserError(f"similarity and what is right must both be (queries, candidates): given {scores.shape} and "
                        f"{wanted.shape}")  # fmt: skip
    if np.isnan(scores).any():
        raise UserError(f"{int(np.isnan(scores).sum())} similarities are no numbers (nan)")
    return scores, wanted
