"""Pixels as they are: the codec of designs that diffuse pictures themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.codecs.base import Codec, Coded


class Pixels(Codec):
    """Nothing is compressed: a position is a pixel, its three numbers are those the transform makes of it."""

    class Config(Codec.Config):
        @property
        def width(self) -> int:
            return 3

        @property
        def spatial(self) -> int:
            return 1

    one: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("one", torch.ones(()))  # it has no parameter to say where it lives

    def reference(self) -> Tensor:
        return self.one

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 2, 3, 4, 1)

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        return values[:, :frames].permute(0, 4, 1, 2, 3)

    def forward(self, pixels: Tensor) -> Coded:
        return Coded(pixels)
