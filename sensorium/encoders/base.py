"""What every image encoder is: packed items in, packed features out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from sensorium.config import Config as Value
from sensorium.encoders.transform import ImageTransform
from sensorium.nn.part import Features, Grid, Part
from sensorium.nn.wide import native_bfloat16
from sensorium.sequence import Item

Network = Callable[[Tensor], Tensor]
"""(V, 3, H, W) views -> (V, extra + rows * cols, D) features."""


class Encoder(Part):
    """An image encoder. A subclass gives its Config `width` and `cells`, and `encode`.

    An item that carries `features` (made earlier by this encoder while it was frozen) is not encoded again.
    """

    class Config(Value):
        """The preprocessing is part of the value, so the value's JSON is the fingerprint of a feature cache.

        transform  how pictures are prepared
        clips      how frames of a clip are, each a view; None: as pictures, never in tiles
        """

        transform: ImageTransform = ImageTransform()
        clips: ImageTransform | None = None

        @property
        def width(self) -> int:
            """D, the width of a feature."""
            raise NotImplementedError(f"{self.tag()} does not say how wide its features are")

        @property
        def cells(self) -> tuple[int, int]:
            """(rows, columns) of the features of one view."""
            raise NotImplementedError(f"{self.tag()} does not say how its features are laid out")

        @property
        def extra(self) -> int:
            """Features before the cells of each view (a class token)."""
            return 0

        @property
        def any_size(self) -> bool:
            """Whether it reads pictures of any size and aspect ratio, each with a grid of its own."""
            return False

        @property
        def oblong(self) -> bool:
            """Whether it reads views that are not square."""
            return False

        @model_validator(mode="after")
        def _sizes_fit(self) -> Self:
            if self.transform.resize in ("keep", "area") and not self.any_size:
                raise ValueError(f"{self.tag()} reads square views, and transform.resize {self.transform.resize!r} "
                                 "makes others: choose shortest, squash or pad")  # fmt: skip
            if self.transform.width is not None and not self.oblong:
                raise ValueError(f"{self.tag()} reads square views: leave out transform.width")
            clips = self.clips
            if clips is not None and (clips.tiles or clips.split):
                raise ValueError(f"frames of clips are not cut into tiles: clips is {clips}")
            if clips is not None and not self.any_size and clips.view != self.transform.view:
                raise ValueError(f"frames of clips become views of {clips.view}, and pictures of {self.transform.view} "
                                 f"(height, width): {self.tag()} reads views of one size")  # fmt: skip
            return self

        def prepared(self, shape: tuple[int, ...] | None) -> ImageTransform:
            """How an item of `shape` is prepared: (height, width) a picture, (frames, height, width) a clip."""
            clip = shape is not None and len(shape) == 3
            return self.clips if clip and self.clips is not None else self.transform

        def grid(self, shape: tuple[int, ...]) -> Grid:
            """The layout of the features of a picture of `shape` (height, width) or a clip of (frames, height, width),
            known without decoding it. Frames are not cut into tiles."""
            *frames, height, width = shape
            rows, cols = self.cells
            if frames:
                return Grid(rows, cols, frames=frames[0], size=(height, width), extra=self.extra)
            tiles = self.transform.grid_tiles((height, width))
            return Grid(rows, cols, tiles=tiles, size=(height, width), extra=self.extra)

        def view(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
            """The shape of a view of an item of `shape`: (3, H, W) of a picture; None: of the largest."""
            prepared = self.prepared(shape)
            size = prepared.view if shape is None else prepared.extent((shape[-2], shape[-1]))
            return 3, *size

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def preprocess(self, image: Image.Image | list[Image.Image]) -> Tensor:
        """image: RGB -> (views, 3, H, W) float32; of a clip's frames each is one view."""
        if isinstance(image, list):
            whole = self.config.clips or self.config.transform.replace(tiles=(), split=False)
            return torch.cat([whole(frame) for frame in image])
        return self.config.transform(image)

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> (V, extra + rows * cols, D)."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")

    def forward(self, items: list[Item]) -> Features:
        """items: N pictures -> features (sum of grid.tokens, D), in the order of the items.

        While it trains, an encoder without anything to encode encodes a blank view and returns none of it: every
        parameter then has a gradient (zero), and on several machines every rank takes part in every collective.
        Raises ValueError when an item's views are not what its shape asks for, or when an encoder that is being
        trained is given features made earlier.
        """
        return self._features(items, self.encode, self._learns())

    def prepare_inference(self, dtype: torch.dtype | None = None) -> Callable[[list[Item]], Features]:
        """A fast `items -> Features` for this encoder as it is now, without gradients.

        It may hold a copy of the weights: ask again after they change. `dtype` None is the fastest one that the
        hardware computes natively; features come back in the encoder's own dtype.
        """
        network, batch = self.inference_network(dtype)

        @torch.no_grad()
        def run(items: list[Item]) -> Features:
            return self._features(items, lambda views: torch.cat([network(part) for part in views.split(batch)]), False)

        return run

    def inference_network(self, dtype: torch.dtype | None = None) -> tuple[Network, int]:
        """The network `prepare_inference` runs, and how many views it takes at a time."""
        chosen = self.inference_dtype() if dtype is None else dtype
        if chosen == self.reference().dtype:
            return self.encode, 16

        def network(views: Tensor) -> Tensor:
            with torch.autocast(views.device.type, chosen):
                return self.encode(views)

        return network, 16

    def inference_dtype(self) -> torch.dtype:
        """bfloat16 where the CPU multiplies it natively, else the encoder's own."""
        reference = self.reference()
        return torch.bfloat16 if reference.device.type == "cpu" and native_bfloat16() else reference.dtype

    def reference(self) -> Tensor:
        """A parameter, whose device and dtype the features take."""
        return next(self.parameters())

    def feature_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """How features are kept where the model computes in `dtype`."""
        return dtype

    def _learns(self) -> bool:
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())

    def _features(self, items: list[Item], network: Network, learns: bool) -> Features:
        config, reference = self.config, self.reference()
        grids = [config.grid(item.shape) for item in items]
        views, ready = [], {}
        for index, (item, grid) in enumerate(zip(items, grids)):
            if item.features is None:
                views.append(self._views(item, grid))
                continue
            if learns:
                raise ValueError("this encoder is being trained, yet an item carries features made earlier: "
                                 "give the item's views (Item.data), or freeze the encoder")  # fmt: skip
            ready[index] = self._ready(item, grid, reference)
        if not views and learns:
            encoded = network(reference.new_zeros(1, *config.view(None)))[:0]
        elif views:
            encoded = network(torch.cat(views).to(reference))
        else:
            encoded = reference.new_zeros(0, config.extra + config.cells[0] * config.cells[1], config.width)
        values = encoded.flatten(0, 1).to(reference.dtype)
        if ready:
            made = iter(values.split([grid.tokens for i, grid in enumerate(grids) if i not in ready]))
            values = torch.cat([ready[i] if i in ready else next(made) for i in range(len(items))])
        return Features(values, grids)

    def _views(self, item: Item, grid: Grid) -> Tensor:
        expected = (grid.views, *self.config.view(item.shape))
        if item.data is None or tuple(item.data.shape) != expected:
            given = "neither views nor features" if item.data is None else f"views {tuple(item.data.shape)}"
            raise ValueError(f"an item of {item.shape} (a picture's height and width) has {given}, expected views "
                             f"{expected}: make them with Encoder.preprocess")  # fmt: skip
        return item.data

    def _ready(self, item: Item, grid: Grid, reference: Tensor) -> Tensor:
        assert item.features is not None
        expected = (grid.tokens, self.config.width)
        if tuple(item.features.shape) != expected:
            raise ValueError(f"a picture of {item.shape} (height, width) carries features "
                             f"{tuple(item.features.shape)}, expected {expected}: they were made by another encoder "
                             "or with other preprocessing")  # fmt: skip
        return item.features.to(reference)
