"""Cross-attention from a stack to a memory: the slot that encoder-decoders, Q-Formers and Flamingo fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.attention import Attention
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache


class Cross(Part):
    """Tokens read a memory, with a residual; optionally gated, and followed by a feed-forward of its own.

    memory   width of a memory token; None: the stack's own
    place    between: after self-attention, before the block's feed-forward (Vaswani et al. 2017, the Q-Former);
             before: ahead of the whole block (Flamingo's gated cross-attention dense layer)
    gated    outputs are scaled by tanh of a number that starts at zero, so that at first nothing changes
             (Flamingo section 2.2)
    gate     a scalar for the whole output, or a number for each of its channels (Idefics, arXiv 2306.16527)
    ffn      a feed-forward of its own after the attention, gated as well
    ffn_on   readers: a token that reads nothing passes the feed-forward by, so that text alone is what it was, to the
             last bit, however long the layer has trained; all: it acts on every token (Flamingo section 3.1.2)
    passes   a token that reads nothing passes by unchanged, norm and all: BLIP's text stack is the same one with and
             without a picture (arXiv 2201.12086, section 3.1). Otherwise it gets the output layer's bias and the norm
    route    None: every token reads; else those of this route alone, and the others pass by unchanged, residual, norm
             and all (the Q-Former's text, BLIP-2 section 3.1)
    """

    class Config(Value):
        attention: Attention.Config
        memory: int | None = None
        place: Literal["between", "before"] = "between"
        gated: bool = False
        gate: Literal["scalar", "channel"] = "scalar"
        ffn: FeedForward.Config | None = None
        ffn_on: Literal["readers", "all"] = "readers"
        norm: Norm.Config = Norm.Config()
        passes: bool = False
        route: int | None = None

    def __init__(self, config: Config, width: int, post: bool = False) -> None:
        """post: normalise after the residual, as the block around does (BERT)."""
        super().__init__()
        self.post, self.route, self.passes = post, config.route, config.passes
        self.every = config.ffn_on == "all"
        shape = (width,) if config.gate == "channel" else ()
        self.norm = config.norm.build(width)
        self.attention = config.attention.build(width, config.memory or width)
        self.gate = nn.Parameter(torch.zeros(shape)) if config.gated else None
        self.ffn = config.ffn.build(width) if config.ffn is not None else None
        self.ffn_norm = config.norm.build(width) if config.ffn is not None else None
        self.ffn_gate = nn.Parameter(torch.zeros(shape)) if config.gated and config.ffn is not None else None

    def forward(self, x: Tensor, memory: Tensor, layout: Layout, cache: LayerCache | None = None) -> Tensor:
        """x (T, D), memory (M, memory width) -> (T, D)."""
        read = self._read(x, memory, layout, cache)
        reads = _readers(layout, cache, x) if self.passes else None
        if reads is not None:
            read = torch.where(reads[:, None], read, x)
        if self.route is None:
            return read
        index = layout.of_route(self.route)
        return x.index_copy(0, index, read.index_select(0, index))

    def _read(self, x: Tensor, memory: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        if self.post:
            return self.norm(x + self.attention.read(x, memory, layout, cache))
        x = x + _scaled(self.attention.read(self.norm(x), memory, layout, cache), self.gate)
        if self.ffn is not None and self.ffn_norm is not None:
            more = _scaled(self.ffn(self.ffn_norm(x)), self.ffn_gate)
            reads = None if self.every else _readers(layout, cache, x)
            x = x + (more if reads is None else more * reads[:, None].to(x.dtype))
        return x


def _readers(layout: Layout, cache: LayerCache | None, x: Tensor) -> Tensor | None:
    """(T) bool, which tokens read something; None: all do."""
    readers = layout.memory if cache is None else cache.owner.current.read
    return x.new_zeros(len(x), dtype=torch.bool) if readers is None else readers.sees


def _scaled(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * gate.tanh().to(x.dtype)
