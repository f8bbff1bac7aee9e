"""How far made pictures are from real ones, by the features that any encoder has of them: FID and KID."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sensorium.errors import UserError
from sensorium.evaluate.statistics import Floats


def fid(real: ArrayLike, made: ArrayLike) -> float:
    """Fréchet distance of the normal distributions with the means and covariances of features (N, D) and (M, D).

    Heusel et al. 2017 (arXiv 1706.08500, equation 6): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances over
    N - 1. Fewer than D pictures give singular covariances, and a distance that is far too large.
    """
    one, other = _features(real, made)
    first, second = (np.cov(part, rowvar=False).reshape(part.shape[1], -1) for part in (one, other))
    # The eigenvalues of C1 C2 are those of the symmetric R C2 R with R = C1^(1/2), which are real and not negative.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    apart = one.mean(0) - other.mean(0)
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * cross)


class Kid(NamedTuple):
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def kid(real: ArrayLike, made: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """Kernel distance of features (N, D) and (M, D): the unbiased squared MMD with the kernel (x·y / D + 1)^3, over
    subsets of `size` drawn without replacement (Binkowski et al. 2018, arXiv 1801.01401, section 4). May be negative.

    Raises UserError when there are fewer than `size` of either.
    """
    one, other = _features(real, made)
    if size > min(len(one), len(other)):
        raise UserError(f"KID over subsets of {size} needs as many pictures: given {len(one)} real, {len(other)} made; "
                        "make more, or take a smaller size")  # fmt: skip
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x, y = (part[generator.permutation(len(part))[:size]] for part in (one, other))
        within = sum(
            (kernel.sum() - np.trace(kernel)) / (size * (size - 1)) for kernel in (_kernel(x, x), _kernel(y, y))
        )
        found.append(within - 2 * _kernel(x, y).mean())
    return Kid(float(np.mean(found)), float(np.std(found)))


def _kernel(x: Floats, y: Floats) -> Floats:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _features(real: ArrayLike, made: ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(real, dtype=np.float64), np.asarray(made, dtype=np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise UserError(f"features must be (pictures, width), two pictures at least, of one width: given {one.shape} "
                        f"and {other.shape}")  # fmt: skip
    for name, part in (("real", one), ("made", other)):
        if not np.isfinite(part).all():
            raise UserError(
                f"features of {name} pictures hold {int((~np.isfinite(part)).sum())} values that are not finite"
            )
    return one, other
