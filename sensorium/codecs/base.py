"""What every codec is: pixels in, codes or latents out, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from pydantic import field_validator
from torch import Tensor

from sensorium.config import Config as Value
from sensorium.encoders.transform import ImageTransform
from sensorium.nn.part import Features, Grid, Part
from sensorium.sequence import Item

BATCH = 16
"""Frames that are encoded or decoded at a time when nothing is learned."""


@dataclass(slots=True)
class Coded:
    """What a codec made of N items of one size, with gradients.

    pixels  (N, 3, F, H, W) its reconstruction
    losses  name -> (N) what training adds to the error of the reconstruction: commitment, or divergence
    report  name -> (sum, count), detached, for the log
    """

    pixels: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    report: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Codec(Part):
    """An invertible part. A subclass gives its Config `width`, `spatial` and `grid`; and `encode`, `decode`, `forward`.

    Like an encoder it turns items into features, packed: (positions, width). Of a codec with `codes` these are the
    codes themselves, one integer for each position; otherwise they are continuous latents. So whatever computes
    features of a frozen encoder once, and keeps them, does the same for a codec.
    """

    class Config(Value):
        """transform  how a picture becomes pixels. Its JSON, with the rest, is the fingerprint of a feature cache."""

        transform: ImageTransform = ImageTransform()

        @field_validator("transform")
        @classmethod
        def _square(cls, transform: ImageTransform) -> ImageTransform:
            if transform.width is not None:
                raise ValueError("a codec reads square views: leave out transform.width")
            return transform

        @property
        def width(self) -> int:
            """Numbers at one position: 1 for codes, channels for latents."""
            raise NotImplementedError(f"{self.tag()} does not say what it makes of a position")

        @property
        def codes(self) -> int:
            """Size of the codebook; 0: latents are continuous."""
            return 0

        @property
        def spatial(self) -> int:
            """Pixels on a side of what becomes one position."""
            raise NotImplementedError(f"{self.tag()} does not say how much it compresses")

        @property
        def temporal(self) -> int:
            """Frames that become one."""
            return 1

        def grid(self, shape: tuple[int, ...]) -> Grid:
            """Positions of a picture of `shape` (height, width) or a clip of (frames, height, width), undecoded."""
            *frames, height, width = shape
            extent = self.transform.extent((height, width))
            many = -(-(frames[0] if frames else 1) // self.temporal)
            return Grid(extent[0] // self.spatial, extent[1] // self.spatial, frames=many, size=(height, width))

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def preprocess(self, image: Image.Image | list[Image.Image]) -> Tensor:
        """image: RGB, or the frames of a clip -> (F, 3, H, W) float32, normalised as the transform says."""
        return torch.cat([self.config.transform(frame) for frame in (image if isinstance(image, list) else [image])])

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, f, rows, cols, width), codes as int64; without gradients."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        """values (N, f, rows, cols, width) -> the first `frames` frames (N, 3, frames, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} decodes nothing")

    def forward(self, pixels: Tensor) -> Coded:
        """pixels (N, 3, F, H, W) of one size -> their reconstruction and what it costs."""
        raise NotImplementedError(f"{type(self).__name__} reconstructs nothing")

    def reference(self) -> Tensor:
        """A parameter, whose device and dtype pixels take."""
        return next(self.parameters())

    def feature_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """How features are kept where the model computes in `dtype`: latents as they are made, codes as integers."""
        return torch.int32 if self.config.codes else self.reference().dtype

    def prepare_inference(self, dtype: torch.dtype | None = None) -> Callable[[list[Item]], Features]:
        """`items -> Features` for this codec as it is now; in its own precision, so that codes never depend on it."""

        @torch.no_grad()
        def run(items: list[Item]) -> Features:
            grids = [self.config.grid(item.shape) for item in items]
            made: list[Tensor | None] = [item.features for item in items]
            waiting = [index for index, features in enumerate(made) if features is None]
            for members, pixels in batches([items[index] for index in waiting], self.reference()):
                for member, values in zip(members, self.encode(pixels)):
                    made[waiting[member]] = values.flatten(0, 2)
            for item, grid, values in zip(items, grids, made):
                _check(item, grid, values, self.config.width)
            values = [values for values in made if values is not None]
            empty = torch.zeros(0, self.config.width, dtype=torch.int64 if self.config.codes else None)
            return Features(torch.cat(values) if values else empty.to(self.reference().device), grids)

        return run

    @torch.no_grad()
    def pictures(self, values: Tensor, grid: Grid, frames: int = 1) -> list[Image.Image]:
        """values (positions, width) of one item -> its frames as RGB pictures."""
        values = values.view(1, grid.frames, grid.rows, grid.cols, -1).to(self.reference().device)
        return to_pictures(self.decode(values, frames)[0], self.config.transform)


def batches(items: list[Item], like: Tensor, most: int | None = BATCH) -> list[tuple[list[int], Tensor]]:
    """Items of equal size together: (their indices, pixels (N, 3, F, H, W)), at most `most` frames at a time.

    like  a tensor whose device and dtype the pixels take. most None: all together
    Raises ValueError for an item without pixels.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        if item.data is None:
            raise ValueError(f"an item of {item.shape} has no pixels to encode: give Item.data, from Codec.preprocess")
        groups.setdefault(tuple(item.data.shape), []).append(index)
    found = []
    for shape, members in groups.items():
        step = len(members) if most is None else max(1, most // shape[0])
        for first in range(0, len(members), step):
            part = members[first : first + step]
            stacked = torch.stack([data for index in part if (data := items[index].data) is not None])
            found.append((part, stacked.transpose(1, 2).to(like)))
    return found


def _check(item: Item, grid: Grid, values: Tensor | None, width: int) -> None:
    if values is None or tuple(values.shape) != (grid.tokens, width):
        raise ValueError(f"an item of {item.shape} has features {None if values is None else tuple(values.shape)}, "
                         f"expected {(grid.tokens, width)}: they were made by another codec or transform")  # fmt: skip


def to_pictures(pixels: Tensor, transform: ImageTransform) -> list[Image.Image]:
    """pixels (3, F, H, W) as the transform normalises them -> F pictures in mode RGB."""
    scaled = unit(pixels, transform).permute(1, 2, 3, 0)
    return [Image.fromarray(frame) for frame in (scaled * 255).round().to(torch.uint8).cpu().numpy().astype(np.uint8)]


def unit(pixels: Tensor, transform: ImageTransform) -> Tensor:
    """pixels (..., 3, F, H, W) as the transform normalises them -> float32 in [0, 1]."""
    mean = torch.tensor(transform.mean, device=pixels.device)[:, None, None, None]
    std = torch.tensor(transform.std, device=pixels.device)[:, None, None, None]
    whole = 1.0 if transform.scale is None else 255 * transform.scale  # of the brightest pixel
    return ((pixels.float() * std + mean) / whole).clamp(0, 1)
