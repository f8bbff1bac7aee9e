"""The views of a picture in another order: what its tiles become, then what the whole picture becomes."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.connectors.base import Connector
from sensorium.connectors.pool import PixelShuffle
from sensorium.nn.part import Features, Grid


class TilesFirst(Connector):
    """The inner connector on every view; of a picture in tiles the tokens of the whole stand last (Idefics 3, arXiv
    2408.12637, section 3.1).
    """

    class Config(Connector.Config):
        """inner: what becomes of each view, by itself."""

        inner: Connector.Config = PixelShuffle.Config()

        def after(self, grid: Grid) -> Grid | None:
            return self.inner.after(grid)

        def num_tokens(self, grid: Grid) -> int:
            return self.inner.num_tokens(grid)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.inner: Connector = config.inner.build(in_width, out_width)

    def forward(self, features: Features) -> Tensor:
        tokens = self.inner(features)
        counts = [self.inner.config.num_tokens(grid) for grid in features.grids]
        parts = [
            made if grid.tiles is None else made.roll(-(count // grid.views), 0)
            for made, grid, count in zip(tokens.split(counts), features.grids, counts)
        ]
        return torch.cat(parts) if parts else tokens
