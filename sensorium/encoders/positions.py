"""Fixed sin-cos positions, in two dimensions and in three."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def sincos2d(rows: int, cols: int, width: int, period: float = 10_000.0) -> Tensor:
    """(rows * cols, width) float32: sin and cos of the row in the first half, of the column in the second.

    Frequencies fall from 1 to 1/period (Vaswani et al. 2017, section 3.5; in two dimensions as MAE, arXiv 2111.06377).
    The tensor is shared by all callers: do not write to it. Raises ValueError unless `width` is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, got {width}")
    with torch.inference_mode(False):  # the cached tensor may later take part in training
        return _sincos2d(rows, cols, width, period)


def _sincos2d(rows: int, cols: int, width: int, period: float) -> Tensor:
    frequency = period ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    halves = []
    for place in (torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)):
        angle = place[:, None].double() * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float()


@lru_cache(maxsize=64)
def sincos3d(
    frames: int, rows: int, cols: int, sections: tuple[int, int, int], period: float = 10_000.0, stretch: int = 0,
) -> Tensor:  # fmt: skip
    """(frames * rows * cols, sum of sections) float32: of each cell the sin and cos of its time, row and column.

    sections  channels that say the time, the row and the column: even numbers, 0 for one that is not said. With
              (0, n, n) a picture's are those of `sincos2d`
    stretch   rows and columns are not counted: whatever their number, they are spread evenly from 0 to this
    The tensor is shared by all callers: do not write to it.
    """
    if any(width % 2 for width in sections):
        raise ValueError(f"a sin and a cos for each frequency: sections {sections} must be even")
    with torch.inference_mode(False):  # the cached tensor may later take part in training
        extents = (frames, rows, cols)
        axes = [torch.arange(extent, dtype=torch.float64) for extent in extents]
        if stretch:
            axes[1:] = [axis * (stretch / len(axis)) for axis in axes[1:]]
        places = torch.meshgrid(*axes, indexing="ij")
        parts = []
        for place, width in zip(places, sections):
            half = width // 2
            angle = place.reshape(-1, 1) * period ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
            parts += [angle.sin(), angle.cos()]
        return torch.cat(parts, dim=1).float()


def located(features: Tensor, rows: int, cols: int) -> Tensor:
    """features: (V, rows * cols, D) -> the same with 2-D sin-cos positions added, as strong as the view's features.

    A convnet's features do not say where they are, as a ViT's do. Each view's positions are scaled to the root mean
    square of that view alone, so what shares a batch does not matter. The period is 100: over a grid of 7 to 32 cells
    most of the usual 10,000's channels would be constant.
    """
    positions = sincos2d(rows, cols, features.shape[-1], period=100.0).to(features.device)
    power = features.float().square().mean(dim=(1, 2), keepdim=True)
    # sin^2 + cos^2 = 1, so the positions' own root mean square is sqrt(1/2)
    return features + (positions * (2 * power).sqrt()).to(features.dtype)
