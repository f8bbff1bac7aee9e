"""Feed-forward layers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]


def activate(x: Tensor, kind: Activation) -> Tensor:
    match kind:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":  # CLIP's x * sigmoid(1.702 x)
            return x * torch.sigmoid(1.702 * x)
        case "relu":
            return F.relu(x)
        case "relu2":  # So et al. 2021 (Primer), arXiv 2109.08668
            return F.relu(x).square()


class FeedForward(Part):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (GLU variants, Shazeer 2020). x: (T, D) -> (T, D).

    inner_norm  normalise what goes down (Magneto's sub-LayerNorm, Wang et al. 2022, arXiv 2210.06423, section 3)
    """

    class Config(Value):
        hidden: int
        activation: Activation = "silu"
        gated: bool = True
        bias: bool = False
        inner_norm: Norm.Config | None = None

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        self.gate = nn.Linear(width, config.hidden, bias=config.bias) if config.gated else None
        self.up = nn.Linear(width, config.hidden, bias=config.bias)
        self.inner_norm = config.inner_norm.build(config.hidden) if config.inner_norm is not None else None
        self.down = nn.Linear(config.hidden, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            hidden = activate(self.up(x), self.activation)
        else:
            hidden = activate(self.gate(x), self.activation) * self.up(x)
        return self.down(hidden if self.inner_norm is None else self.inner_norm(hidden))
