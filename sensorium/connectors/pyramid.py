"""A picture at several scales: its grid averaged to a few sizes, coarse and fine tokens side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.nn.part import Features, Grid


class Pyramid(Connector):
    """Spatial pyramid pooling (Lazebnik et al. 2006; He et al. 2014): every level n becomes n x n tokens.

    The features of each view are averaged over n x n nearly equal windows, level after level in the given order, and
    all are projected by one inner connector. A last level of 1 puts the picture as a whole next to the words that
    follow it, which is where a language model reads it best.
    """

    class Config(Connector.Config):
        """levels: sides of the grids, in the order of their tokens. inner: projects them one by one."""

        levels: tuple[int, ...] = Field(default=(3, 1), min_length=1)
        inner: MLP.Config = MLP.Config(depth=1)

        def after(self, grid: Grid) -> Grid | None:
            return None  # tokens of several scales are no grid

        def num_tokens(self, grid: Grid) -> int:
            return grid.views * sum(level * level for level in self.levels)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.levels = config.levels
        self.inner = config.inner.build(in_width, out_width)

    def forward(self, features: Features) -> Tensor:
        if not features.grids:
            return self.inner.project(features.values)
        parts = []
        for values, grid in zip(features.values.split(features.lengths), features.grids):
            parts.append(self.pooled(values.view(grid.views, grid.rows, grid.cols, -1)).flatten(0, 1))
        return self.inner.project(torch.cat(parts))

    def pooled(self, x: Tensor) -> Tensor:
        """x: (views, rows, cols, D) -> (views, sum of level^2, D)."""
        x = x.permute(0, 3, 1, 2)
        levels = [F.adaptive_avg_pool2d(x, level).flatten(2) for level in self.levels]
        return torch.cat(levels, dim=2).transpose(1, 2)
