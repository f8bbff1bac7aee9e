"""Fewer tokens: neighbours are averaged or joined, then projected by an inner connector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import torch
from pydantic import Field
from torch import Tensor

from sensorium.connectors.base import Connector, divided
from sensorium.connectors.mlp import MLP
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


class Merge(Connector):
    """Base of the connectors here: every view's grid (rows, cols, D) becomes a smaller one, view by view.

    A subclass gives its Config `shape` and `widen`, and `merge`.
    """

    class Config(Connector.Config):
        """inner: what projects the merged features."""

        inner: Connector.Config = MLP.Config()

        def shape(self, rows: int, cols: int) -> tuple[int, int]:
            """(rows, cols) of a view once merged. Raises UserError when they do not divide."""
            raise NotImplementedError(f"{self.tag()} does not say what it makes of a grid")

        def widen(self, width: int) -> int:
            """Width of a merged feature."""
            return width

        def merged(self, grid: Grid) -> Grid:
            if grid.extra:
                raise UserError(
                    "neighbours in a grid are joined, and a class token has none: set class_feature off in the encoder"
                )
            rows, cols = self.shape(grid.rows, grid.cols)
            return replace(grid, rows=rows, cols=cols)

        def after(self, grid: Grid) -> Grid | None:
            return self.inner.after(self.merged(grid))

        def num_tokens(self, grid: Grid) -> int:
            return self.inner.num_tokens(self.merged(grid))

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self._merged = config.merged
        self.inner: Connector = config.inner.build(config.widen(in_width), out_width)

    def merge(self, x: Tensor) -> Tensor:
        """x: (views, rows, cols, D) -> (views, rows', cols', D')."""
        raise NotImplementedError(f"{type(self).__name__} merges nothing")

    def forward(self, features: Features) -> Tensor:
        grids = [self._merged(grid) for grid in features.grids]
        parts = [self.merge(x).flatten(0, 2) for x in _views(features)]
        values = torch.cat(parts) if parts else features.values.new_zeros(0, self.inner.in_width)
        if not parts:  # nothing to merge: stay connected to the encoder all the same
            values = values + features.values.sum()
        return self.inner(Features(values, grids))


def _views(features: Features) -> Iterator[Tensor]:
    """The features as (views, rows, cols, D), one tensor for each run of items with views of the same extent."""
    start = 0
    for (rows, cols), run in groupby(features.grids, key=lambda grid: (grid.rows, grid.cols)):
        stop = start + sum(grid.tokens for grid in run)
        yield features.values[start:stop].view(-1, rows, cols, features.values.shape[-1])
        start = stop


class AveragePool(Merge):
    """The mean of every factor x factor features."""

    class Config(Merge.Config):
        factor: int = Field(default=2, ge=1)

        def shape(self, rows: int, cols: int) -> tuple[int, int]:
            who = "average pooling"
            return divided(rows, self.factor, "rows", who), divided(cols, self.factor, "columns", who)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.factor = config.factor

    def merge(self, x: Tensor) -> Tensor:
        factor = self.factor
        return x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).mean(dim=(2, 4))


class PixelShuffle(Merge):
    """Every factor x factor features become one, factor^2 times as wide (space to depth; InternVL 1.5, 2404.16821).

    Within it: row by row, each feature whole.
    """

    class Config(Merge.Config):
        factor: int = Field(default=2, ge=1)

        def shape(self, rows: int, cols: int) -> tuple[int, int]:
            who = "pixel shuffle"
            return divided(rows, self.factor, "rows", who), divided(cols, self.factor, "columns", who)

        def widen(self, width: int) -> int:
            return width * self.factor**2

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.factor = config.factor

    def merge(self, x: Tensor) -> Tensor:
        factor = self.factor
        x = x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (V, rows', f, cols', f, D)
        return x.transpose(2, 3).flatten(3)


class Adjacent(Merge):
    """Every `count` neighbours in a row are joined into one, count times as wide (MiniGPT-v2, 2310.09478: four)."""

    class Config(Merge.Config):
        inner: Connector.Config = MLP.Config(depth=1)
        count: int = Field(default=4, ge=1)

        def shape(self, rows: int, cols: int) -> tuple[int, int]:
            return rows, divided(cols, self.count, "columns", "adjacent concatenation")

        def widen(self, width: int) -> int:
            return width * self.count

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.count = config.count

    def merge(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.count)).flatten(3)
