"""No encoder but one linear layer: the patches of a picture of any size are tokens (Fuyu, adept.ai/blog/fuyu-8b)."""

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


class Patch(Encoder):
    """Patches -> linear. A picture keeps its size and aspect ratio, so its grid is its own."""

    class Config(Encoder.Config):
        """patch: side of a patch in pixels. dim: width of a feature, the backbone's."""

        transform: ImageTransform = ImageTransform(size=1920, resize="keep", multiple=30)
        patch: int = Field(default=30, ge=1)
        dim: int = Field(ge=1)
        bias: bool = True

        @property
        def width(self) -> int:
            return self.dim

        @property
        def cells(self) -> tuple[int, int]:
            side = self.transform.size // self.patch
            return side, side

        @property
        def any_size(self) -> bool:
            return True

        def grid(self, shape: tuple[int, ...]) -> Grid:
            *frames, height, width = shape
            rows, cols = (extent // self.patch for extent in self.transform.extent((height, width)))
            return Grid(rows, cols, frames=frames[0] if frames else 1, size=(height, width))

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.transform.size % config.patch or config.transform.multiple % config.patch:
            raise ValueError(f"views of up to {config.transform.size} pixels, multiples of "
                             f"{config.transform.multiple}, cannot be cut into patches of {config.patch}")  # fmt: skip
        self.linear = nn.Linear(3 * config.patch**2, config.dim, bias=config.bias)
        nn.init.normal_(self.linear.weight, std=(3 * config.patch**2) ** -0.5)

    def forward(self, items: list[Item]) -> Features:
        return self._embedded(items, self._learns())

    def prepare_inference(self, dtype: torch.dtype | None = None) -> Callable[[list[Item]], Features]:
        @torch.no_grad()
        def run(items: list[Item]) -> Features:
            return self._embedded(items, learns=False)

        return run

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) of one size -> (V, H / patch * W / patch, D)."""
        return self.linear(patches(views, self.config.patch))

    def _embedded(self, items: list[Item], learns: bool) -> Features:
        """All patches of all items through the layer at once; without any it still takes part in the graph."""
        reference = self.reference()
        grids = [self.config.grid(item.shape) for item in items]
        cut: list[Tensor] = []
        ready: dict[int, Tensor] = {}
        for index, (item, grid) in enumerate(zip(items, grids)):
            if item.features is None:
                cut.append(patches(self._views(item, grid), self.config.patch).flatten(0, 1))
            elif learns:
                raise ValueError("this encoder is being trained, yet an item carries features made earlier: "
                                 "give the item's views (Item.data), or freeze the encoder")  # fmt: skip
            else:
                ready[index] = self._ready(item, grid, reference)
        rows = torch.cat(cut) if cut else torch.zeros(0, 3 * self.config.patch**2)
        values = self.linear(rows.to(reference))
        if ready:
            made = iter(values.split([grid.tokens for index, grid in enumerate(grids) if index not in ready]))
            values = torch.cat([ready[index] if index in ready else next(made) for index in range(len(items))])
        return Features(values, grids)
