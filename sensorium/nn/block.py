"""The one Transformer block. ViT, BERT, Llama, the Q-Former, Flamingo, CogVLM and DiT are settings of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
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
from sensorium.nn.relative import CellBias, biased

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache

Slot = Literal["norm1", "norm2", "after1", "after2", "attention", "ffn", "final"]
"""norm1 belongs to the attention, norm2 to the feed-forward: before it or, in post-norm blocks, after it; after1 and
after2 are those behind them in blocks with norms on both sides; final is the norm behind the last block, which is the
Backbone's."""


AFTER = ("after1", "after2")


class Expert(Value):
    """A route of another shape (pi0's action expert: Black et al. 2024, arXiv 2410.24164, section 4).

    Its tokens are the first `width` columns of the stream; the others stay zero, and are neither read nor written.
    Heads are those of all routes, in number and width, so attention is joint.
    """

    width: int = Field(ge=1)
    ffn: FeedForward.Config


class Block(Part):
    """Attention and feed-forward, each with its residual; between or before them, optionally, cross-attention.

    place   pre: x + f(norm(x)) (GPT-2, Llama, ViT); post: norm(x + f(x)) (BERT); both: x + norm(f(norm(x))) (CogView's
            sandwich, Ding et al. 2021, arXiv 2105.13290, 2.4; Gemma 2); behind: x + norm(f(x)) (Swin v2, Liu et al.
            2021, arXiv 2111.09883, 3.2; Chameleon 34B, section 2.3)
    norm2   the feed-forward's first one, where it is another than the attention's; None: the same
    routes  sets of weights that tokens may take; all attend jointly (CogVLM's visual expert, BEiT-3's multiway)
    routed  which slots have a set for each route; the others are shared
    experts  routes of another width and feed-forward; all of their slots are routed
    cross   None: the block reads no memory. A Backbone gives it to every so many blocks
    layer_scale  what a learned factor of each channel starts at, by which attention and feed-forward are multiplied
            before they are added (CaiT: Touvron et al. 2021, arXiv 2103.17239, section 2); None: there is none
    relative  a bias of attention scores of the block's own, where the Backbone's is that of all blocks (BEiT)
    modulation  adaLN-zero: a condition shifts and scales what attention and feed-forward read, and gates what they
            add. Norms then usually have nothing of their own to learn (`norm.affine`)
    """

    class Config(Value):
        attention: Attention.Config
        ffn: FeedForward.Config
        norm: Norm.Config = Norm.Config()
        norm2: Norm.Config | None = None
        place: Literal["pre", "post", "both", "behind"] = "pre"
        routes: int = Field(default=1, ge=1)
        routed: tuple[Slot, ...] = ("attention", "ffn")
        experts: dict[int, Expert] = {}
        cross: Cross.Config | None = None
        modulation: Modulation.Config | None = None
        layer_scale: float | None = None
        relative: CellBias.Config | None = None

        @model_validator(mode="after")
        def _modulated_before(self) -> Self:
            if self.modulation is not None and self.place != "pre":
                raise ValueError("adaLN modulates what a sublayer reads: its norm stands before it alone (place='pre')")
            if self.modulation is not None and self.layer_scale is not None:
                raise ValueError("adaLN gates what a sublayer adds: leave out layer_scale")
            return self

        @model_validator(mode="after")
        def _cross_has_its_norm(self) -> Self:
            if self.cross is not None and self.place == "behind":
                raise ValueError("cross-attention has its norm before or after its residual: place 'pre' or 'post'")
            return self

        @model_validator(mode="after")
        def _experts_fit(self) -> Self:
            whole = {"norm1", "norm2", "attention", "ffn", "final", *(AFTER if self.place == "both" else ())}
            if self.experts and (self.modulation is not None or self.cross is not None or set(self.routed) != whole):
                raise ValueError("an expert of another width shares attention alone: route every slot "
                                 f"({', '.join(sorted(whole))}), without cross-attention and modulation")  # fmt: skip
            if any(not 0 < route < self.routes for route in self.experts):
                raise ValueError(f"experts are routes from 1 to {self.routes - 1}, given {sorted(self.experts)}")
            if "final" in self.routed and self.modulation is not None:
                raise ValueError("the final norm of modulated blocks is modulated, not routed: leave out 'final'")
            return self

        def width_of(self, route: int | None, width: int) -> int:
            """The columns of a stream of `width` that are a route's."""
            expert = self.experts.get(route or 0)
            return width if expert is None else expert.width

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.pre, self.after = config.place in ("pre", "both"), config.place == "both"
        self.behind = config.place == "behind"
        self.norm1 = config.norm.build(width)
        self.attention = config.attention.build(width)
        self.norm2 = (config.norm2 or config.norm).build(width)
        self.ffn = config.ffn.build(width)
        if self.after:
            self.after1, self.after2 = config.norm.build(width), config.norm.build(width)
        self.cross = config.cross.build(width, not self.pre) if config.cross is not None else None
        self.cross_first = config.cross is not None and config.cross.place == "before"
        self.modulation = config.modulation.build(width, 6) if config.modulation is not None else None
        self.scale1, self.scale2 = (_scale(config.layer_scale, width) for _ in range(2))
        self.relative = config.relative.build(config.attention.heads) if config.relative is not None else None
        self.routes = nn.ModuleDict({str(route): _route(config, width, route) for route in range(1, config.routes)})
        self.widths = [config.width_of(route, width) for route in range(1, config.routes)]

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
        if self.relative is not None:
            layout = biased(layout, self.relative, x.dtype)
        if self.modulation is not None:
            return self._modulated(self.modulation, x, layout, rope, cache, memory, conditions)
        x = self._attend(x, layout, rope, cache)
        if self.cross is not None and not self.cross_first:
            x = self.cross(x, memory, layout, cache)
        if self.pre:
            made = self._slot("ffn", self._slot("norm2", x, layout), layout)
            return x + self._scaled(self.scale2, self._slot("after2", made, layout) if self.after else made)
        if self.behind:
            return x + self._scaled(self.scale2, self._slot("norm2", self._slot("ffn", x, layout), layout))
        return self._slot("norm2", x + self._scaled(self.scale2, self._slot("ffn", x, layout)), layout)

    def _attend(
        self, x: Tensor, layout: Layout, rope: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> Tensor:
        others = self._others("attention")
        if self.pre:
            made = self.attention(self._slot("norm1", x, layout), layout, rope, cache, others)
            return x + self._scaled(self.scale1, self._slot("after1", made, layout) if self.after else made)
        made = self.attention(x, layout, rope, cache, others)
        if self.behind:
            return x + self._scaled(self.scale1, self._slot("norm1", made, layout))
        return self._slot("norm1", x + self._scaled(self.scale1, made), layout)

    @staticmethod
    def _scaled(scale: Tensor | None, x: Tensor) -> Tensor:
        return x if scale is None else x * scale.to(x.dtype)

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

    def _others(self, name: str) -> list[Any]:
        """What further routes have for a slot; nothing where it is shared."""
        routes = zip(self.routes.values(), self.widths)
        found = [(route[name], width) for route, width in routes if name in route]  # type: ignore[operator,index]
        return [part if name == "attention" else columns(part, width) for part, width in found]


def _scale(start: float | None, width: int) -> nn.Parameter | None:
    """Layer scale of a sublayer, all channels alike at first."""
    return None if start is None else nn.Parameter(torch.full((width,), start))


def columns(module: Callable[[Tensor], Tensor], width: int) -> Callable[[Tensor], Tensor]:
    """The module on the first `width` columns of (N, D), zeros in the others."""

    def run(x: Tensor) -> Tensor:
        return F.pad(module(x[:, :width]), (0, x.shape[1] - width))

    return run


def _route(config: Block.Config, stream: int, route: int) -> nn.ModuleDict:
    """What a further route of a stream has of its own."""
    parts: dict[str, nn.Module] = {}
    width = config.width_of(route, stream)
    expert = config.experts.get(route)
    norms = {"norm1": config.norm, "norm2": config.norm2 or config.norm}
    norms |= dict.fromkeys(AFTER if config.place == "both" else (), config.norm)
    parts |= {name: norm.build(width) for name, norm in norms.items() if name in config.routed}
    if "attention" in config.routed:
        heads = config.attention.replace(head_width=config.attention.width_of_head(stream))
        parts["attention"] = Projections(heads, width, stream=stream)
    if "ffn" in config.routed:
        parts["ffn"] = (config.ffn if expert is None else expert.ffn).build(width)
    return nn.ModuleDict(parts)
