"""The one Transformer block. ViT, BERT and Llama are settings of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.attention import Attention
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache


class Block(Part):
    """Attention and feed-forward, each with its residual.

    place  pre: x + f(norm(x)) (GPT-2, Llama, ViT); post: norm(x + f(x)) (BERT)
    """

    class Config(Value):
        attention: Attention.Config
        ffn: FeedForward.Config
        norm: Norm.Config = Norm.Config()
        place: Literal["pre", "post"] = "pre"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.pre = config.place == "pre"
        self.norm1 = config.norm.build(width)
        self.attention = config.attention.build(width)
        self.norm2 = config.norm.build(width)
        self.ffn = config.ffn.build(width)

    def forward(
        self, x: Tensor, layout: Layout, rope: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (T, D) -> (T, D)."""
        if self.pre:
            x = x + self.attention(self.norm1(x), layout, rope, cache)
            return x + self.ffn(self.norm2(x))
        x = self.norm1(x + self.attention(x, layout, rope, cache))
        return self.norm2(x + self.ffn(x))
