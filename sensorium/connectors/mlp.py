"""Token by token: a linear layer (LLaVA) or a multi-layer perceptron (LLaVA-1.5, Yi-VL)."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid


class MLP(Connector):
    """Linear layers with GELU between them; every token by itself, one token a feature.

    depth 1 is LLaVA's projection (arXiv 2304.08485), depth 2 LLaVA-1.5's (2310.03744). With `norm` a LayerNorm follows
    every linear layer, before the GELU: Yi-VL's Linear-LayerNorm-GELU-Linear-LayerNorm (2403.04652, section 6). With
    `entry` features are normalised first (VipLLaVA, 2312.00784: they are of several blocks).
    """

    class Config(Connector.Config):
        """depth: linear layers. hidden: width between them, None is the backbone's. norm: LayerNorm after each. entry:
        norm of what comes in."""

        depth: int = Field(default=2, ge=1)
        hidden: int | None = Field(default=None, ge=1)
        norm: bool = False
        entry: Norm.Config | None = None
        bias: bool = True

        def after(self, grid: Grid) -> Grid:
            return grid

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        hidden = config.hidden or out_width
        widths = [in_width, *[hidden] * (config.depth - 1), out_width]
        self.entry = config.entry.build(in_width) if config.entry is not None else None
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=config.bias) for before, after in pairwise(widths))
        norms = widths[1:] if config.norm else []
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in norms)

    def forward(self, features: Features) -> Tensor:
        return self.project(features.values)

    def project(self, x: Tensor) -> Tensor:
        """x: (..., in_width) -> (..., out_width)."""
        x = x if self.entry is None else self.entry(x)
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else nn.functional.gelu(x))
            if len(self.norms):
                x = self.norms[index](x)
        return x


class GatedMLP(Connector):
    """Linear, LayerNorm, GELU, then a SwiGLU feed-forward; every token by itself (CogVLM, arXiv 2311.03079, 2.1)."""

    class Config(Connector.Config):
        """hidden: width inside the feed-forward; None: 4 x the backbone's."""

        hidden: int | None = Field(default=None, ge=1)

        def after(self, grid: Grid) -> Grid:
            return grid

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.enter = nn.Linear(in_width, out_width, bias=False)
        self.norm = nn.LayerNorm(out_width)
        self.ffn = FeedForward.Config(hidden=config.hidden or 4 * out_width).build(out_width)

    def forward(self, features: Features) -> Tensor:
        return self.ffn(nn.functional.gelu(self.norm(self.enter(features.values))))
