"""One vector for each item: its class token, the mean of its features, or what a learned query reads of them."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.errors import UserError
from sensorium.nn.attention import Attention, Projections, attend
from sensorium.nn.ffn import Activation, FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid


class GlobalPool(Connector):
    """Features of an item -> one vector -> optional norm -> linear projection.

    With several views or frames, class tokens and means are averaged over them; a query reads all features at once.
    """

    class Config(Connector.Config):
        """by      class: the class token (CLIP's ViT); mean: of the cells (BASIC, arXiv 2111.10050);
                attention: a learned query attends to all features (SigLIP's head, after Zhai et al. 2021, 2106.04560)
        heads   of that attention
        hidden  with attention: the query's answer also passes a LayerNorm and a feed-forward of this width, with a
                residual (SigLIP); None: neither
        activation, eps  of that feed-forward and LayerNorm
        norm    of the vector, before its projection; None: the features are normalised already
        project False: the vector is the feature's own width, as it is
        """

        by: Literal["class", "mean", "attention"] = "class"
        heads: int = Field(default=8, ge=1)
        hidden: int | None = Field(default=None, ge=1)
        activation: Activation = "gelu_tanh"
        eps: float = 1e-6
        norm: Norm.Config | None = None
        project: bool = True
        bias: bool = False

        def num_tokens(self, grid: Grid) -> int:
            if self.by == "class" and not grid.extra:
                raise UserError(
                    "the encoder gives no class token to pool by: set its class_feature, or by: mean or attention"
                )
            return 1

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.by = config.by
        self._check = config.num_tokens
        if not config.project and in_width != out_width:
            raise ValueError(f"features of width {in_width} do not fit a space of width {out_width}: set project")
        self.query = AttentionPool(config, in_width) if config.by == "attention" else None
        self.norm = config.norm.build(in_width) if config.norm is not None else None
        self.project = nn.Linear(in_width, out_width, bias=config.bias) if config.project else None
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=in_width**-0.5)

    def forward(self, features: Features) -> Tensor:
        for grid in features.grids:
            self._check(grid)
        if not features.grids:  # a blank feature, of which nothing is returned, connects every parameter
            blank = torch.cat([features.values, features.values.new_zeros(1, self.in_width)])[None]
            return self._project(self.query(blank) if self.query is not None else blank.mean(1))[:0]
        groups: dict[Grid, list[int]] = {}
        for index, grid in enumerate(features.grids):
            groups.setdefault(Grid(grid.rows, grid.cols, grid.frames, grid.tiles, extra=grid.extra), []).append(index)
        values, made = features.values.split(features.lengths), {}
        for grid, members in groups.items():
            made |= dict(zip(members, self._pool(torch.stack([values[index] for index in members]), grid)))
        return self._project(torch.stack([made[index] for index in range(len(values))]))

    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """x: (items, N, D) of one layout -> (items, D)."""
        if self.query is not None:
            return self.query(x)
        views = x.unflatten(1, (grid.views, -1))
        return views[:, :, 0].mean(1) if self.by == "class" else views[:, :, grid.extra :].mean((1, 2))

    def _project(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        return x if self.project is None else self.project(x)


class AttentionPool(nn.Module):
    """A learned query reads features (I, N, D) -> (I, D)."""

    def __init__(self, config: GlobalPool.Config, width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attention = Projections(Attention.Config(heads=config.heads, bias=True), width)
        self.norm: nn.Module | None = None
        self.ffn: nn.Module | None = None
        if config.hidden is not None:
            self.norm = Norm.Config(kind="layer", eps=config.eps).build(width)
            self.ffn = FeedForward.Config(
                hidden=config.hidden, activation=config.activation, gated=False, bias=True
            ).build(width)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        layer, query = self.attention, self.query.to(x.dtype).expand(len(x), 1, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (layer.q(query), layer.k(x), layer.v(x)))
        y = layer.o(attend(q, k, v, None, causal=False).flatten(2))[:, 0]
        return y if self.ffn is None or self.norm is None else y + self.ffn(self.norm(y))
