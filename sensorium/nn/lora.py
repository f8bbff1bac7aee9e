"""Low-rank adapters (Hu et al. 2021) on linear layers."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config
from sensorium.errors import UserError


class LoRA(Config):
    """rank, alpha: the update is (alpha / rank) B A; dropout on its input (section 4.1 of the paper)."""

    rank: int = Field(default=16, gt=0)
    alpha: float = 32.0
    dropout: float = Field(default=0.0, ge=0, lt=1)


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank update beside it. `weight` and `bias` keep their names and tensors."""

    def __init__(self, linear: nn.Linear, config: LoRA) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.config, self.scale, self.dropout = config, config.alpha / config.rank, config.dropout
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(config.rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, config.rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = F.dropout(input, self.dropout, self.training) if self.dropout else input
        return F.linear(input, self.weight, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale

    def merged(self) -> Tensor:
        """(out, in) the weight with the update added."""
        update = (self.lora_b.float() @ self.lora_a.float()) * self.scale
        return (self.weight.float() + update).to(self.weight.dtype)


def add_lora(model: nn.Module, adapters: dict[str, LoRA]) -> list[str]:
    """Replace every linear layer whose name matches a glob by one with an adapter; returns the names.

    Layers that already have the same adapter keep it. Raises UserError for a glob that matches no linear layer, and
    for a layer that has an adapter of other settings.
    """
    added = []
    for glob, config in adapters.items():
        found = [
            name for name, part in model.named_modules() if isinstance(part, nn.Linear) and fnmatchcase(name, glob)
        ]
        if not found:
            raise UserError(f"adapter glob {glob!r} matches no linear layer of the model")
        for name in found:
            parent, _, leaf = name.rpartition(".")
            holder = model.get_submodule(parent)
            linear = getattr(holder, leaf)
            if not isinstance(linear, LoRALinear):
                setattr(holder, leaf, LoRALinear(linear, config))
                added.append(name)
            elif linear.config != config:
                raise UserError(
                    f"adapter glob {glob!r} asks for {_settings(config)} on {name!r}, which has an adapter of "
                    f"{_settings(linear.config)}: merge that one first, or ask for the same"
                )
    return added


def _settings(config: LoRA) -> str:
    return f"rank {config.rank}, alpha {config.alpha:g}, dropout {config.dropout:g}"


def merge_lora(model: nn.Module) -> list[str]:
    """Fold every adapter into its layer's weight; returns the names of the merged layers."""
    merged = []
    for name, part in list(model.named_modules()):
        if isinstance(part, LoRALinear):
            parent, _, leaf = name.rpartition(".")
            linear = nn.Linear(part.in_features, part.out_features, bias=part.bias is not None, device="meta")
            linear.weight = nn.Parameter(part.merged(), requires_grad=part.weight.requires_grad)
            linear.bias = part.bias
            setattr(model.get_submodule(parent), leaf, linear)
            merged.append(name)
    return merged
