"""Features that are tokens already."""

from __future__ import annotations

from torch import Tensor

from sensorium.connectors.base import Connector
from sensorium.nn.part import Features, Grid


class AsIs(Connector):
    """Every feature is a token; it must have the backbone's width already (Fuyu's patches, adept.ai/blog/fuyu-8b)."""

    class Config(Connector.Config):
        def after(self, grid: Grid) -> Grid:
            return grid

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        if in_width != out_width:
            raise ValueError(f"features of width {in_width} stand in a stream of width {out_width} as they are: give "
                             "the encoder that width")  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        return features.values
