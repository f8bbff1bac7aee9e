"""Numbers as they are: the codec of actions and states, with the statistics that bring them to one scale."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sensorium.codecs.base import Codec, Coded
from sensorium.errors import UserError
from sensorium.nn.part import Grid


class Numbers(Codec):
    """A row of numbers is a position; an item, (rows, columns), is a chunk of actions or one state.

    mean, std  of each column over the training data; none: numbers stay as they are (pi0, arXiv 2410.24164, normalises)
    """

    class Config(Codec.Config):
        columns: int = Field(ge=1)
        mean: tuple[float, ...] = ()
        std: tuple[float, ...] = ()

        @model_validator(mode="after")
        def _fits(self) -> Self:
            lengths = {len(self.mean), len(self.std)}
            if lengths not in ({0}, {self.columns}) or any(value <= 0 for value in self.std):
                raise ValueError(f"{self.columns} columns need as many means and positive deviations, or none: given "
                                 f"{self.mean} and {self.std}")  # fmt: skip
            return self

        @property
        def width(self) -> int:
            return self.columns

        @property
        def spatial(self) -> int:
            return 1

        def grid(self, shape: tuple[int, ...]) -> Grid:
            """shape: (rows, columns)."""
            if len(shape) != 2 or shape[1] != self.columns:
                raise UserError(f"an item of shape {shape} (rows, columns) was given, expected {self.columns} columns")
            return Grid(shape[0], 1)

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(config.mean or (0.0,) * config.columns), persistent=False)
        self.register_buffer("std", torch.tensor(config.std or (1.0,) * config.columns), persistent=False)

    def reference(self) -> Tensor:
        return self.mean

    def preprocess(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """(rows, columns) as they are -> the same, on the scale of the statistics."""
        return (image.to(self.mean) - self.mean) / self.std

    def numbers(self, values: Tensor) -> Tensor:
        """(rows, columns) on the scale of the statistics -> as they are."""
        return values * self.std + self.mean

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, columns, rows) -> (N, 1, rows, 1, columns)."""
        return pixels.transpose(1, 2)[:, None, :, None]

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        """The inverse of `encode`."""
        return values[:, 0, :, 0].transpose(1, 2)

    def forward(self, pixels: Tensor) -> Coded:
        return Coded(pixels)
