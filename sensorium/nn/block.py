"""The one Transformer block. ViT, BERT, Llama, the Q-Former, Flamingo, CogVLM and DiT are settings of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.attention import Attention, Projections, routed
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.modulation import Conditions, Modulation, modulate
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache

Slot = Literal["norm1", "norm2", "attention", "ffn"]
"""norm1 belongs to the attention, norm2 to the feed-forward: before it or, in post-norm blocks, after it."""


class Block(Part):
    """Attention and feed-forward, each with its residual; between or before them, optionally, cross-attention.

    place   pre: x + f(norm(x)) (GPT-2, Llama, ViT); post: norm(x + f(x)) (BERT)
    routes  sets of weights that tokens may take; all attend jointly (CogVLM's visual expert, BEiT-3's multiway)
    routed  which slots have a set for each route; the others are shared
    cross   None: the block reads no memory. A Backbone gives it to every so many blocks
    modulation  adaLN-zero: a condition shifts and scales what attention and feed-forward read, and gates what they
            add. Norms then usually have nothing of their own to learn (`norm.affine`)
    """

    class Config(Value):
        attention: Attention.Config
        ffn: FeedForward.Config
        norm: Norm.Config = Norm.Config()
        place: Literal["pre", "post"] = "pre"
        routes: int = Field(default=1, ge=1)
        routed: tuple[Slot, ...] = ("attention", "ffn")
        cross: Cross.Config | None = None
        modulation: Modulation.Config | None = None

        @model_validator(mode="after")
        def _modulated_before(self) -> Self:
            if self.modulation is not None and self.place != "pre":
                raise ValueError("adaLN modulates what a sublayer reads: its norm stands before it (place='pre')")
            return self

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.pre = config.place == "pre"
        self.norm1 = config.norm.build(width)
        self.attention = config.attention.build(width)
        self.norm2 = config.norm.build(width)
        self.ffn = config.ffn.build(width)
        self.cross = config.cross.build(width, not self.pre) if config.cross is not None else None
        self.cross_first = config.cross is not None and config.cross.place == "before"
        self.modulation = config.modulation.build(width, 6) if config.modulation is not None else None
        self.routes = nn.ModuleDict({str(route): _route(config, width) for route in range(1, config.routes)})

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        memory: Tensor | None = None,
        conditions: Conditions | None = None,
    ) -> Tensor:
        """x (T, D) -> (T, D). memory (M, memory width) where the block reads one; its readers are in the layout.

        conditions  of the tokens, where the block is modulated
        """
        if self.cross is not None and memory is None:
            raise ValueError("this block reads a memory, and none was given: an empty one (0, width) is one too")
        if self.cross is not None and self.cross_first:
            x = self.cross(x, memory, layout, cache)
        if self.modulation is not None:
            return self._modulated(self.modulation, x, layout, rope, cache, memory, conditions)
        x = self._attend(x, layout, rope, cache)
        if self.cross is not None and not self.cross_first:
            x = self.cross(x, memory, layout, cache)
        if self.pre:
            return x + self._slot("ffn", self._slot("norm2", x, layout), layout)
        return self._slot("norm2", x + self._slot("ffn", x, layout), layout)

    def _attend(
        self, x: Tensor, layout: Layout, rope: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> Tensor:
        others = self._others("attention")
        if self.pre:
            return x + self.attention(self._slot("norm1", x, layout), layout, rope, cache, others)
        return self._slot("norm1", x + self.attention(x, layout, rope, cache, others), layout)

    def _modulated(
        self, modulation: Modulation, x: Tensor, layout: Layout, rope: tuple[Tensor, Tensor] | None,
        cache: LayerCache | None, memory: Tensor | None, conditions: Conditions | None,
    ) -> Tensor:  # fmt: skip
        """Self-attention and feed-forward under adaLN-zero; a cross-attention between them has gates of its own."""
        if conditions is None:
            raise ValueError("this block is modulated by a condition, and none was given")
        shift, scale, gate, shift2, scale2, gate2 = modulation(conditions)
        read = modulate(self._slot("norm1", x, layout), shift, scale)
        x = x + gate * self.attention(read, layout, rope, cache, self._others("attention"))
        if self.cross is not None and not self.cross_first and memory is not None:
            x = self.cross(x, memory, layout, cache)
        read = modulate(self._slot("norm2", x, layout), shift2, scale2)
        return x + gate2 * self._slot("ffn", read, layout)

    def _slot(self, name: str, x: Tensor, layout: Layout) -> Tensor:
        return routed([getattr(self, name), *self._others(name)], x, layout)

    def _others(self, name: str) -> list[nn.Module]:
        """The modules of further routes for a slot; none where it is shared."""
        return [route[name] for route in self.routes.values() if name in route]  # type: ignore[operator,index]


def _route(config: Block.Config, width: int) -> nn.ModuleDict:
    """What a further route has of its own."""
    parts: dict[str, nn.Module] = {}
    parts |= {name: config.norm.build(width) for name in ("norm1", "norm2") if name in config.routed}
    if "attention" in config.routed:
        parts["attention"] = Projections(config.attention, width)
    if "ffn" in config.routed:
        parts["ffn"] = config.ffn.build(width)
    return nn.ModuleDict(parts)
