"""Learned latents read an item's features once, and what they read are its tokens (Kosmos-1 and 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.connectors.base import Connector, of_like_size
from sensorium.nn.attention import attend
from sensorium.nn.part import Features, Grid


class LatentReader(Connector):
    """A linear layer brings features to the width of a token; latents then attend to them and to themselves.

    One attention, without norms, residual or feed-forward (Peng et al. 2023, arXiv 2306.14824, released code).
    """

    class Config(Connector.Config):
        """latents: tokens an item becomes. heads: of the attention.

        unit    features are scaled to length 1 first
        scaled  tokens are multiplied by the root of their width, as the words of a model with `scaled_embed`
        """

        latents: int = Field(default=64, ge=1)
        heads: int = Field(default=32, ge=1)
        unit: bool = False
        scaled: bool = False

        def num_tokens(self, grid: Grid) -> int:
            return self.latents

    config: Config

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        if out_width % config.heads:
            raise ValueError(f"width {out_width} is not divisible by {config.heads} heads")
        self.enter = nn.Linear(in_width, out_width)
        self.latents = nn.Parameter(torch.randn(config.latents, out_width))
        self.q, self.k, self.v, self.o = (nn.Linear(out_width, out_width) for _ in range(4))

    def forward(self, features: Features) -> Tensor:
        return of_like_size(features, self._read)

    def _read(self, x: Tensor, frames: int) -> Tensor:
        """x: (items, N, in_width) -> (items, latents, out_width), however many frames there are."""
        x = self.enter(F.normalize(x, dim=-1) if self.config.unit else x)
        latents = self.latents.to(x.dtype).expand(len(x), -1, -1)
        both = torch.cat([x, latents], dim=1)
        q, k, v = (
            part.unflatten(-1, (self.config.heads, -1)) for part in (self.q(latents), self.k(both), self.v(both))
        )
        tokens = self.o(attend(q, k, v, None, causal=False).flatten(2))
        return tokens * torch.tensor(self.out_width**0.5, dtype=tokens.dtype) if self.config.scaled else tokens
