"""Features of several levels of an encoder, each with a connector of its own (DeepStack, arXiv 2406.04334)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


class Levels(Connector):
    """A feature is what 1 + `levels` levels give, one beside the other; so is the token that becomes of it.

    The first goes into the token stream, the others are added to its state at deeper blocks (`Fused.Config.deep`).
    """

    class Config(Connector.Config):
        """inner: the connector of each level. levels: how many there are besides the encoder's last."""

        inner: Connector.Config
        levels: int = Field(ge=1)

        def after(self, grid: Grid) -> Grid | None:
            return self.inner.after(grid)

        def num_tokens(self, grid: Grid) -> int:
            return self.inner.num_tokens(grid)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        count = 1 + config.levels
        if in_width % count or out_width % count:
            raise UserError(
                f"features of width {in_width} become tokens of width {out_width} on {count} levels, and neither may "
                "leave a remainder: give the encoder as many `levels`, and the model as many blocks in `deep`"
            )
        self.inner = nn.ModuleList(config.inner.build(in_width // count, out_width // count) for _ in range(count))

    def forward(self, features: Features) -> Tensor:
        parts = features.values.chunk(len(self.inner), dim=1)
        made = [inner(Features(part, features.grids)) for inner, part in zip(self.inner, parts)]
        return torch.cat(made, dim=1)
