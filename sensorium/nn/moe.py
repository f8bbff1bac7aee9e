"""A mixture of feed-forward layers, of which each token takes a few (Shazeer et al. 2017; Mixtral)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.nn.ffn import FeedForward
from sensorium.nn.part import Part


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts tokens took.

    share   (T, experts) float32, what the router gave to each; sums to 1
    chosen  (T, top) the experts that were taken
    """

    share: Tensor
    chosen: Tensor

    def balance(self) -> Tensor:
        """() experts * sum over them of (tokens that took it / T) * (mean share): `top` where all are used alike, more
        where some are preferred (Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6)."""
        tokens, experts = self.share.shape
        taken = torch.bincount(self.chosen.flatten(), minlength=experts).to(self.share.dtype)
        return experts * (taken / max(tokens, 1) * self.share.sum(0) / max(tokens, 1)).sum()


class MixtureOfExperts(Part):
    """A router gives each token a share of every expert; the `top` largest, made to sum to 1, weigh what these experts
    make of it (Mixtral: Jiang et al. 2024, arXiv 2401.04088, 2.1). x: (T, D) -> (T, D).

    Every expert is a feed-forward with the settings of FeedForward. In training `routing` tells what the last forward
    pass did, so that an objective can ask for balance (objectives/balance.py).
    """

    class Config(FeedForward.Config):
        experts: int = Field(default=8, ge=1)
        top: int = Field(default=2, ge=1)

        @model_validator(mode="after")
        def _enough(self) -> Self:
            if self.top > self.experts:
                raise ValueError(f"a token cannot take {self.top} of {self.experts} experts")
            return self

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.top = config.top
        self.router = nn.Linear(width, config.experts, bias=False)
        expert = FeedForward.Config(**{name: getattr(config, name) for name in FeedForward.Config.model_fields})
        self.experts = nn.ModuleList(expert.build(width) for _ in range(config.experts))
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).float().softmax(-1)
        weight, chosen = share.topk(self.top, -1)
        learns = torch.is_grad_enabled()
        self.routing = Routing(share, chosen) if self.training and learns else None
        order = chosen.flatten().argsort(stable=True)
        parts = x.index_select(0, order // self.top).split(self._sizes(chosen))
        # an expert that nobody takes is run on no token, so that it has a gradient
        made = [expert(part) for expert, part in zip(self.experts, parts) if learns or len(part)]
        if not made:
            return x
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        of_token = torch.cat(made).index_select(0, back).unflatten(0, chosen.shape)
        weight = weight / weight.sum(-1, keepdim=True)
        return (of_token * weight[..., None]).sum(1).to(x.dtype)

    def _sizes(self, chosen: Tensor) -> list[int]:
        """Tokens of each expert. On the meta device, where costs are counted, all have as many."""
        count = len(self.experts)
        if chosen.is_meta:
            return [(chosen.numel() + place) // count for place in range(count)]
        return torch.bincount(chosen.flatten(), minlength=count).tolist()
