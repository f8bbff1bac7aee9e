"""Features as they are, with a learned token where a row ends.

So a decoder without positions in two dimensions reads a picture of any size (Fuyu's image-newline,
adept.ai/blog/fuyu-8b).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


class Rows(Connector):
    """Row after row, each followed by the newline. Features must have the backbone's width already."""

    class Config(Connector.Config):
        def after(self, grid: Grid) -> Grid:
            if grid.tiles is not None or grid.extra:
                raise UserError("rows of tiles and class tokens have no order of their own: use a grid of cells alone")
            return Grid(grid.rows, grid.cols + 1, frames=grid.frames, size=grid.size)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        if in_width != out_width:
            raise ValueError(f"features of width {in_width} stand in a stream of width {out_width} as they are: give "
                             "the encoder that width")  # fmt: skip
        self.newline = nn.Parameter(torch.randn(out_width) * 0.02)

    def forward(self, features: Features) -> Tensor:
        if not features.grids:  # nothing to end, yet the newline has a gradient
            return features.values + self.newline.to(features.values.dtype)
        pieces = []
        for values, grid in zip(features.values.split(features.lengths), features.grids):
            rows = values.view(grid.frames * grid.rows, grid.cols, -1)
            ends = self.newline.to(rows.dtype).expand(len(rows), 1, -1)
            pieces.append(torch.cat([rows, ends], dim=1).flatten(0, 1))
        return torch.cat(pieces)
