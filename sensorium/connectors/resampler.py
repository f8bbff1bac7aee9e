"""Perceiver resampler: any number of features becomes a fixed number of tokens (Flamingo, arXiv 2204.14198, A.1.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.connectors.base import Connector, of_like_size
from sensorium.errors import UserError
from sensorium.nn.attention import attend, start_copying
from sensorium.nn.ffn import Activation, FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid

NORM = Norm.Config(kind="layer")


class Resampler(Connector):
    """Learned latents cross-attend to one item's features and to themselves, layer after layer.

    A last linear layer brings the latents to the width that is asked for, or they have it already (Idefics, arXiv
    2306.16527, whose blocks read keys and values of the vision tower's width). The paper's feed-forward uses a squared
    ReLU; this one GELU, where no other is asked for.
    """

    class Config(Connector.Config):
        """latents: tokens an item becomes, whatever its grid. head_width: of each attention head.

        width   of the latents and of what they read; None: as wide as the features, else a linear layer before them
        ratio   width of the feed-forward over that of a latent
        frames  number of learned time embeddings, one added to all features of a frame; 0 for none
        activation  of the feed-forward
        qk_norm  queries and keys are normalised per head (LayerNorm; Idefics)
        project  whether a linear layer follows the last norm; without it tokens are as wide as latents
        start   copy: values and output of attention begin as the identity, where `heads * head_width` is the width
        """

        latents: int = Field(default=64, ge=1)
        width: int | None = Field(default=None, ge=1)
        depth: int = Field(default=6, ge=1)
        heads: int = Field(default=8, ge=1)
        head_width: int = Field(default=64, ge=1)
        ratio: int = Field(default=4, ge=1)
        frames: int = Field(default=0, ge=0)
        activation: Activation = "gelu"
        qk_norm: bool = False
        project: bool = True
        start: Literal["random", "copy"] = "random"

        def num_tokens(self, grid: Grid) -> int:
            if self.frames and grid.frames > self.frames:
                raise UserError(
                    f"an item has {grid.frames} frames, the resampler has {self.frames} time embeddings: "
                    "sample fewer frames, or set the connector's `frames` higher"
                )
            return self.latents

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self._check = config.num_tokens
        width = config.width or in_width
        self.enter = nn.Linear(in_width, width) if config.width is not None else None
        self.latents = nn.Parameter(torch.randn(config.latents, width) * 0.02)
        self.times = nn.Parameter(torch.randn(config.frames, width) * 0.02) if config.frames else None
        self.layers = nn.ModuleList(ResamplerLayer(width, config) for _ in range(config.depth))
        self.norm = NORM.build(width)
        self.out = nn.Linear(width, out_width) if config.project else None
        if self.out is None and width != out_width:
            raise UserError(f"the resampler's latents are {width} wide and tokens {out_width}: without a last linear "
                            "layer they must be the same, or set the connector's `project`")  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        for grid in features.grids:
            self._check(grid)
        return of_like_size(features, self._resample)

    def _resample(self, x: Tensor, frames: int) -> Tensor:
        """x: (items, N, in_width) of equally many features -> (items, latents, out_width)."""
        if self.enter is not None:
            x = self.enter(x)
        if self.times is not None:
            x = x + self.times[:frames].to(x.dtype).repeat_interleave(x.shape[1] // frames, 0)
        latents = self.latents.to(x.dtype).expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(latents, x)
        latents = self.norm(latents)
        return latents if self.out is None else self.out(latents)


class ResamplerLayer(nn.Module):
    """Latents read features and latents, then a feed-forward; both with a residual."""

    def __init__(self, width: int, config: Resampler.Config) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width
        self.norm_latents, self.norm_features, self.norm_ffn = (NORM.build(width) for _ in range(3))
        inner = self.heads * self.head_width
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        if config.start == "copy":
            start_copying(self.v, self.o)
        self.q_norm = NORM.build(self.head_width) if config.qk_norm else None
        self.k_norm = NORM.build(self.head_width) if config.qk_norm else None
        ffn = FeedForward.Config(hidden=config.ratio * width, activation=config.activation, gated=False)
        self.ffn = ffn.build(width)

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        """latents: (B, L, D), x: (B, N, D) -> (B, L, D)."""
        own = self.norm_latents(latents)
        both = torch.cat([self.norm_features(x), own], dim=1)
        q, k, v = (
            part.unflatten(-1, (self.heads, self.head_width)) for part in (self.q(own), self.k(both), self.v(both))
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        latents = latents + self.o(attend(q, k, v, None, causal=False).flatten(2))
        return latents + self.ffn(self.norm_ffn(latents))
