"""Features that are tokens already."""

from __future__ import annotations

from torch import Tensor

from sensorium.connectors.base import Connector
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


class AsIs(Connector):
    """Every feature is a token, as wide as tokens are: patches in a stream (Fuyu, adept.ai/blog/fuyu-8b), or what
    cross-attention reads of a tower (Idefics without a resampler, arXiv 2306.16527)."""

    class Config(Connector.Config):
        def after(self, grid: Grid) -> Grid:
            return grid

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        if in_width != out_width:
            raise UserError(f"features are {in_width} wide and tokens {out_width}: with nothing between they must be "
                            "the same; choose a connector that has layers (MLP)")  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        return features.values
