"""Encoders of pictures of any size and aspect ratio, patch by patch; Fuyu's is one linear layer and no more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.encoders.base import Encoder
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import patches
from sensorium.nn.part import Features, Grid
from sensorium.sequence import Item


class Patches(Encoder):
    """A picture keeps its aspect ratio, so its grid is its own. A subclass gives `tokens`."""

    class Config(Encoder.Config):
        """patch: side of a patch in pixels."""

        patch: int = Field(ge=1)

        @property
        def cells(self) -> tuple[int, int]:
            """Of the largest square picture."""
            height, width = self.transform.extent((self.transform.size, self.transform.size))
            return height // self.patch, width // self.patch

        @property
        def any_size(self) -> bool:
            return True

        def grid(self, shape: tuple[int, ...]) -> Grid:
            *frames, height, width = shape
            rows, cols = (extent // self.patch for extent in self.view(shape)[1:])
            return Grid(rows, cols, frames=frames[0] if frames else 1, size=(height, width))

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.side = config.patch
        if config.transform.size % config.patch or config.transform.multiple % config.patch:
            raise ValueError(f"views of up to {config.transform.size} pixels, multiples of "
                             f"{config.transform.multiple}, cannot be cut into patches of {config.patch}")  # fmt: skip

    def tokens(self, rows: Tensor, grids: list[Grid]) -> Tensor:
        """rows: (N, R) of pictures one after another, and their grids -> (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")

    def rows(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) of one item -> (tokens, R), its patches row-major, a view behind the other."""
        return patches(views, self.side).flatten(0, 1)

    def forward(self, items: list[Item]) -> Features:
        return self._embedded(items, self._learns())

    def prepare_inference(self, dtype: torch.dtype | None = None) -> Callable[[list[Item]], Features]:
        @torch.no_grad()
        def run(items: list[Item]) -> Features:
            return self._embedded(items, learns=False)

        return run

    def _embedded(self, items: list[Item], learns: bool) -> Features:
        """All patches of all items at once; without any, what learns still takes part in the graph."""
        reference = self.reference()
        grids = [self.config.grid(item.shape) for item in items]
        cut: list[Tensor] = []
        ready: dict[int, Tensor] = {}
        for index, (item, grid) in enumerate(zip(items, grids)):
            if item.features is None:
                cut.append(self.rows(self._views(item, grid)))
            elif learns:
                raise ValueError("this encoder is being trained, yet an item carries features made earlier: "
                                 "give the item's views (Item.data), or freeze the encoder")  # fmt: skip
            else:
                ready[index] = self._ready(item, grid, reference)
        own = [grid for index, grid in enumerate(grids) if index not in ready]
        rows = torch.cat(cut) if cut else self.rows(torch.zeros(0, 3, self.side, self.side))
        values = self.tokens(rows.to(reference), own)
        if ready:
            made = iter(values.split([grid.tokens for grid in own]))
            values = torch.cat([ready[index] if index in ready else next(made) for index in range(len(items))])
        return Features(values, grids)


class Patch(Patches):
    """No encoder but one linear layer: patches -> linear (Fuyu, adept.ai/blog/fuyu-8b)."""

    class Config(Patches.Config):
        """dim: width of a feature, the backbone's."""

        transform: ImageTransform = ImageTransform(size=1920, resize="keep", multiple=30)
        patch: int = Field(default=30, ge=1)
        dim: int = Field(ge=1)
        bias: bool = True

        @property
        def width(self) -> int:
            return self.dim

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = nn.Linear(3 * config.patch**2, config.dim, bias=config.bias)
        nn.init.normal_(self.linear.weight, std=(3 * config.patch**2) ** -0.5)

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) of one size -> (V, H / patch * W / patch, D)."""
        return self.linear(patches(views, self.side))

    def tokens(self, rows: Tensor, grids: list[Grid]) -> Tensor:
        return self.linear(rows)
