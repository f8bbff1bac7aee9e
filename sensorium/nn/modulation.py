"""Adaptive normalisation: a condition says how much of each sublayer counts, and scales and shifts what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.part import Part


@dataclass(frozen=True, slots=True)
class Conditions:
    """What tokens are conditioned on: S vectors, of which each token has one.

    values  (S, C)
    index   (T) long, the row of each token
    """

    values: Tensor
    index: Tensor


class Modulation(Part):
    """adaLN-zero (DiT: Peebles and Xie 2022, arXiv 2212.09748, section 3.2): SiLU and one linear layer make shift,
    scale and gate of every sublayer from the condition. The layer starts at zero, so a block starts as the identity.

    width  of the condition; None: the stack's own
    """

    class Config(Value):
        width: int | None = Field(default=None, ge=1)

    def __init__(self, config: Config, width: int, parts: int) -> None:
        """parts: how many vectors of the stack's width are made."""
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(config.width or width, parts * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, conditions: Conditions) -> tuple[Tensor, ...]:
        """S vectors -> `parts` times (T, D), the vector of each token. Computed once a vector, not once a token."""
        made = self.linear(F.silu(conditions.values)).chunk(self.parts, dim=1)
        return tuple(part.index_select(0, conditions.index) for part in made)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x, shift, scale (T, D) -> x * (1 + scale) + shift."""
    return x * (1 + scale) + shift
