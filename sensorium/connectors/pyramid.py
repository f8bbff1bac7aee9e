"""A picture at several scales: its grid averaged to a few sizes, coarse and fine tokens side by side."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

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
        """levels: sides of the grids, in the order of their tokens. inner: projects them one by one.

        full_from  shorter side in pixels from which on a picture takes all levels; a smaller one takes the last alone:
                   as in models of native resolution, a picture takes tokens for what it shows
        placed     a learned vector for each token of a picture that takes all levels is added to it: where it lies
        """

        levels: tuple[int, ...] = Field(default=(3, 1), min_length=1)
        full_from: int = Field(default=0, ge=0)
        placed: bool = False
        inner: MLP.Config = MLP.Config(depth=1)

        def after(self, grid: Grid) -> Grid | None:
            return None  # tokens of several scales are no grid

        def num_tokens(self, grid: Grid) -> int:
            return grid.views * sum(level * level for level in self.levels_of(grid))

        def levels_of(self, grid: Grid) -> tuple[int, ...]:
            """The levels that a picture takes. Raises ValueError for a grid that does not know its picture's size."""
            if not self.full_from:
                return self.levels
            if grid.size is None:
                raise ValueError("full_from asks for the size of the picture, and this grid has none")
            return self.levels if min(grid.size) >= self.full_from else self.levels[-1:]

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.levels_of = config.levels_of
        self.inner = config.inner.build(in_width, out_width)
        if config.placed and len(config.levels) < 2:
            raise ValueError(f"placed asks for two levels or more, levels is {list(config.levels)}")
        tokens = sum(level * level for level in config.levels)
        self.place = nn.Parameter(torch.zeros(tokens, out_width)) if config.placed else None

    def forward(self, features: Features) -> Tensor:
        if not features.grids:
            unused = self.place.sum() if self.place is not None else 0.0  # in every graph, as every rank needs it
            return self.inner.project(features.values) + unused
        parts, lengths = [], []
        for values, grid in zip(features.values.split(features.lengths), features.grids):
            views = values.view(grid.views, grid.rows, grid.cols, -1)
            parts.append(pooled(views, self.levels_of(grid)).flatten(0, 1))
            lengths.append(len(parts[-1]))
        tokens = self.inner.project(torch.cat(parts))
        if self.place is None:
            return tokens
        none = torch.zeros_like(self.place[:1])
        full = len(self.place)
        places = [none if length == 1 < full else self.place.repeat(length // full, 1) for length in lengths]
        return tokens + torch.cat(places).to(tokens.dtype)


def pooled(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """x: (views, rows, cols, D) -> (views, sum of level^2, D), every window averaged over exactly its share of area."""
    rows, cols = x.shape[1:3]
    parts = []
    for level in levels:
        down, across = (_shares(size, level).to(x.device, x.dtype) for size in (rows, cols))
        parts.append(torch.einsum("ar,bc,vrcd->vabd", down, across, x).flatten(1, 2))
    return torch.cat(parts, dim=1)


def _shares(size: int, windows: int) -> Tensor:
    """(windows, size): how much each of `size` cells counts in the mean of each of `windows` equal windows."""
    edges = torch.arange(windows + 1, dtype=torch.float64) * size / windows
    cells = torch.arange(size, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return (overlap.clamp(min=0) * windows / size).float()
