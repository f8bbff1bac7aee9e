"""Any-resolution pictures (LLaVA-1.6 / LLaVA-NeXT, Liu et al. 2024): one thumbnail and one big grid of tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


class AnyRes(Connector):
    """The inner connector on every view; then the thumbnail's tokens, then those of all tiles as one grid.

    The grid is cut back to the picture's own aspect ratio, and a learned `newline` ends each of its rows. A picture
    without tiles is what the inner connector makes of it.
    """

    class Config(Connector.Config):
        """inner: what projects each view; it must keep a view a grid (an MLP, a pool)."""

        inner: Connector.Config = MLP.Config()

        def num_tokens(self, grid: Grid) -> int:
            if grid.tiles is None:
                return self.inner.num_tokens(grid)
            view, kept = self.layout(grid)
            return view.rows * view.cols + kept[0].extent * (kept[1].extent + 1)

        def layout(self, grid: Grid) -> tuple[Grid, tuple[Kept, Kept]]:
            """Of a picture with tiles: the grid after the inner connector; the rows and columns that are kept."""
            view = self.inner.after(grid)
            if view is None:
                raise UserError(f"any-resolution tiles are put together again, {self.inner.tag()} leaves no grid: "
                                "use connectors.mlp.MLP or a pooling connector as `inner`")  # fmt: skip
            if view.tiles is None or view.size is None:
                raise ValueError(f"a tiled picture's grid needs tiles and size, given {grid}")
            return view, unpadded(view.tiles[0] * view.rows, view.tiles[1] * view.cols, view.size)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self._config = config
        self.inner: Connector = config.inner.build(in_width, out_width)
        self.newline = nn.Parameter(torch.randn(out_width) / out_width**0.5)

    def forward(self, features: Features) -> Tensor:
        tokens, inner = self.inner(features), self._config.inner
        newline = self.newline.to(tokens.dtype)
        parts = [newline[None, :][:0], tokens[:0]]  # so that both take part even where there is nothing
        for grid, made in zip(features.grids, tokens.split([inner.num_tokens(grid) for grid in features.grids])):
            parts += [made] if grid.tiles is None else self._assemble(made, grid, newline)
        return torch.cat(parts)

    def _assemble(self, tokens: Tensor, grid: Grid, newline: Tensor) -> list[Tensor]:
        """tokens: (views * rows * cols, D) -> [thumbnail, big grid with newlines], each (N, D)."""
        view, (down, across) = self._config.layout(grid)
        thumbnail, rest = tokens.tensor_split([view.rows * view.cols])
        assert view.tiles is not None
        rows, cols = view.tiles
        big = rest.view(rows, cols, view.rows, view.cols, -1).transpose(1, 2)
        big = big.reshape(rows * view.rows, cols * view.cols, -1)[down.span, across.span]
        ends = newline.expand(down.extent, 1, -1)
        return [thumbnail, torch.cat([big, ends], dim=1).flatten(0, 1)]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of `total` rows or columns when `cut` of them are removed at each end."""

    total: int
    cut: int

    @property
    def span(self) -> slice:
        return slice(self.cut, self.total - self.cut)

    @property
    def extent(self) -> int:
        return self.total - 2 * self.cut


def unpadded(rows: int, cols: int, size: tuple[int, int]) -> tuple[Kept, Kept]:
    """What remains of a grid of rows x cols cells without the padding around a picture of `size` (height, width).

    LLaVA-NeXT's published rule: the picture fills one axis; on the other it takes floor(extent) cells, and half of
    the rest, rounded down, is cut at each end. Whole numbers throughout, so no rounding of floats decides a row.
    """
    height, width = size
    if width * rows > cols * height:  # wider than the canvas: padding above and below
        return Kept(rows, (rows - height * cols // width) // 2), Kept(cols, 0)
    return Kept(rows, 0), Kept(cols, (cols - width * rows // height) // 2)
