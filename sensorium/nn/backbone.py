"""A stack of blocks with optional token embedding and head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.attention import Attention, routed, start_copying
from sensorium.nn.block import Block, columns
from sensorium.nn.modulation import Conditions, Modulation, modulate
from sensorium.nn.moe import MixtureOfExperts, Routing
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part
from sensorium.nn.pooler import Pooler
from sensorium.nn.readout import Readout
from sensorium.nn.relative import CellBias, LinearBias, RelativeBias
from sensorium.nn.rope import Rope, signed
from sensorium.nn.sinusoid import Sinusoid
from sensorium.nn.wide import wide

if TYPE_CHECKING:
    from sensorium.infer.cache import Cache
    from sensorium.nn.cross import Cross


Between = Callable[[Tensor], Tensor]
"""(T, D) -> (T, D) between two blocks."""


def reading(states: list[Tensor], first: Between | None = None) -> Between:
    """What passes is appended to `states`, after what `first` does, and goes on unchanged."""

    def read(x: Tensor) -> Tensor:
        x = x if first is None else first(x)
        states.append(x)
        return x

    return read


def adding(index: Tensor, values: Tensor, first: Between | None = None) -> Between:
    """values (N, D) are added to the states of the tokens index (N), after what `first` does."""
    return lambda x: (x if first is None else first(x)).index_add(0, index, values.to(x.dtype))


class Local(Value):
    """Blocks in which a token sees only what is near (Beltagy et al. 2020, arXiv 2004.05150; Mistral, Gemma 2).

    window  a token sees itself, the window - 1 tokens before it and, where the rule lets it look ahead, as many behind
    layers  their depths from 0; None: all. Depths beyond the stack's are not there
    rope    rotary positions of their own (Gemma 3, arXiv 2503.19786, section 2); None: the stack's
    mutual  tokens that the rule lets see each other both ways (a prefix, those of a picture) do so at any distance
            (PaliGemma 2, arXiv 2412.03555, released code)
    """

    window: int = Field(ge=1)
    layers: tuple[int, ...] | None = None
    rope: Rope.Config | None = None
    mutual: bool = False

    def at(self, depth: int) -> bool:
        return self.layers is None or depth in self.layers


class Backbone(Part):
    """Embedding -> blocks -> norm -> head.

    vocab       0: the stack reads embeddings only and has no head (a ViT)
    added       the last rows of the vocabulary, which were added to a language model that was trained without them.
                Here they are rows as the others; published layouts keep them apart (Idefics, which trains these alone)
    scaled_embed  embeddings are multiplied by the root of the width (Vaswani et al. 2017, section 3.4; Gemma)
    rope        rotary positions; None when positions are learned or come from outside
    local       blocks whose attention has a sliding window; None: none has
    positions   number of learned absolute positions (BERT, GPT-2); 0: none. A token at a negative position gets none
    sinusoid    fixed absolute positions, added to the embeddings (Kosmos-2); None: none
    unused_positions  rows of their table before that of position 0, which no token takes (OPT: 2)
    types       rows of a table of token types (BERT's sentences A and B), of which every token takes the first; 0: none
    embed_norm  normalise the embeddings before the first block (BERT)
    final_norm  normalise after the last block; modulated where the blocks are
    tied        the head is the embedding transposed
    pooler      what makes one vector of a text, by itself: the stack's states are what they are without it
    readout     what stands between the last hidden state and the head; None: nothing
    soft_cap    logits stay within plus and minus this: cap * tanh(logit / cap) (Gemma 2, arXiv 2408.00118, section 2)
    relative    bias of attention scores by distance, the same in all blocks (T5; BLOOM's is linear)
    cross_every, cross_from  blocks cross_from, cross_from + cross_every, ... have the block's cross-attention
    """

    class Config(Value):
        width: int
        depth: int
        block: Block.Config
        vocab: int = 0
        added: int = Field(default=0, ge=0)
        scaled_embed: bool = False
        rope: Rope.Config | None = None
        local: Local | None = None
        positions: int = 0
        unused_positions: int = Field(default=0, ge=0)
        sinusoid: Sinusoid.Config | None = None
        types: int = Field(default=0, ge=0)
        relative: RelativeBias.Config | LinearBias.Config | CellBias.Config | None = None
        embed_norm: bool = False
        final_norm: bool = True
        tied: bool = True
        pooler: Pooler.Config | None = None
        readout: Readout.Config | None = None
        soft_cap: float | None = Field(default=None, gt=0)
        cross_every: int = Field(default=1, ge=1)
        cross_from: int = Field(default=0, ge=0)

        @model_validator(mode="after")
        def _one_bias(self) -> Self:
            if self.local is not None and self.relative is not None:
                raise ValueError("relative positions are added to the scores of all tokens: leave out `local`")
            return self

        def block_at(self, index: int) -> Block.Config:
            """The block at a 0-based depth: with cross-attention or without."""
            reads = index >= self.cross_from and (index - self.cross_from) % self.cross_every == 0
            return self.block if reads or self.block.cross is None else self.block.replace(cross=None)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Embedding(config.vocab, width) if config.vocab else None
        self.place = _table(config) if config.positions else None
        self.sinusoid = config.sinusoid.build(width) if config.sinusoid is not None else None
        self.types = nn.Embedding(config.types, width) if config.types else None
        self.embed_norm = config.block.norm.build(width) if config.embed_norm else None
        self.blocks = nn.ModuleList(config.block_at(index).build(width) for index in range(config.depth))
        self.norm = config.block.norm.build(width) if config.final_norm else None
        own = config.block.routes if config.final_norm and "final" in config.block.routed else 1
        widths = {str(route): config.block.width_of(route, width) for route in range(1, own)}
        self.routes = nn.ModuleDict({route: config.block.norm.build(wide) for route, wide in widths.items()})
        """The final norms of further routes."""
        self.widths = list(widths.values())
        modulation = config.block.modulation if config.final_norm else None
        self.modulation = modulation.build(width, 2) if modulation is not None else None
        self.head = nn.Linear(width, config.vocab, bias=False) if config.vocab and not config.tied else None
        self.pooler = config.pooler.build(width) if config.pooler is not None else None
        self.readout = config.readout.build(width, config.vocab) if config.readout is not None else None
        head_width = config.block.attention.width_of_head(width)
        self.rope = config.rope.build(head_width) if config.rope else None
        self.local_rope = config.local.rope.build(head_width) if config.local and config.local.rope else None
        self.relative = config.relative.build(config.block.attention.heads) if config.relative else None
        self._mixtures = [part for part in self.blocks.modules() if isinstance(part, MixtureOfExperts)]
        self.checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); projections into the residual stream are scaled by 1 / sqrt(2 depth) (GPT-2 section 2.3).

        What modulates starts at zero.
        """
        for name, module in self.named_modules():
            if isinstance(module, Modulation):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding) and not name.endswith("modulation.linear"):
                last = name.endswith(("attention.o", ".down"))
                std = 0.02 / math.sqrt(2 * self.config.depth) if last else 0.02
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention) and module.copies:
                start_copying(module.v, module.o)

    @torch.no_grad()
    def start_routes(self) -> None:
        """Further routes start as copies of the first (CogVLM section 2.1).

        Raises ValueError for routes of another width.
        """
        if self.config.block.experts:
            raise ValueError("experts of another width cannot start as copies of the first route")
        assert self.norm is not None or not len(self.routes)
        for route in self.routes.values():
            route.load_state_dict(self.norm.state_dict())  # type: ignore[union-attr]
        for block in self.blocks:
            assert isinstance(block, Block)
            for name, parameter in block.routes.named_parameters():
                parameter.copy_(block.get_parameter(name.partition(".")[2]))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (T) -> (T, D)."""
        if self.embed is None:
            raise ValueError("this backbone has no vocabulary: it reads embeddings, not token ids")
        x = self.embed(ids)
        # the factor has the table's precision, as released models were trained
        return x * torch.tensor(self.config.width**0.5, dtype=x.dtype) if self.config.scaled_embed else x

    def forward(
        self, x: Tensor, layout: Layout, cache: Cache | None = None, depth: int | None = None,
        memory: Tensor | None = None, between: Mapping[int, Between] | None = None,
        conditions: Conditions | list[Conditions] | None = None,
    ) -> Tensor:  # fmt: skip
        """x (T, D) -> (T, D) after `depth` blocks (default: all; the final norm only after all).

        memory      (M, memory width) for blocks with cross-attention; in decoding the cache knows what was read before
        between     by how many blocks are done (0: before the first), what then becomes of x: states are read
                    (`reading`) or added to (`adding`)
        conditions  of the tokens, for blocks that are modulated; a list: of every block its own, and the first block's
                    for the final norm
        """
        with wide(x):
            return self._through(x, layout, cache, depth, memory, between, conditions)

    def _through(
        self, x: Tensor, layout: Layout, cache: Cache | None, depth: int | None, memory: Tensor | None,
        between: Mapping[int, Between] | None, conditions: Conditions | list[Conditions] | None,
    ) -> Tensor:  # fmt: skip
        cross = self.config.block.cross
        if cross is not None and memory is None:
            memory = x.new_zeros(0, cross.memory or self.config.width)
        if self.types is not None:
            x = x + self.types.weight[0].to(x.dtype)
        if self.place is not None:
            at = layout.position[:, :1]
            x = x + self.place(at[:, 0].clamp(min=0) + self.config.unused_positions) * (at >= 0).to(x.dtype)
        if self.sinusoid is not None:
            x = x + self.sinusoid(layout.position[:, 0]).to(x.dtype)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.relative is not None:
            layout = self._with_bias(layout, cache, x.dtype)
        wide = layout, _tables(self.rope, layout, x.dtype)
        local, near = self.config.local, wide
        if local is not None:
            own = wide[1] if self.local_rope is None else _tables(self.local_rope, layout, x.dtype)
            near = layout.near(local.window, local.mutual), own
        blocks = self.blocks if depth is None else self.blocks[:depth]
        if between is not None and 0 in between:
            x = between[0](x)
        for index, block in enumerate(blocks):
            kept = cache.layer(index) if cache is not None else None
            seen = near if local is not None and local.at(index) else wide
            told = conditions[index] if isinstance(conditions, list) else conditions
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, *seen, kept, memory, told, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = block(x, *seen, kept, memory, told)
            if between is not None and index + 1 in between:
                x = between[index + 1](x)
        if self.norm is None or len(blocks) < len(self.blocks):
            return x
        if self.modulation is None or conditions is None:
            own = [columns(norm, width) for norm, width in zip(self.routes.values(), self.widths)]
            return routed([self.norm, *own], x, layout)
        told = conditions[0] if isinstance(conditions, list) else conditions
        return modulate(self.norm(x), *self.modulation(told))

    def routings(self) -> list[Routing]:
        """What the last forward pass in training did in each block with a mixture of experts."""
        return [one.routing for one in self._mixtures if one.routing is not None]

    def _with_bias(self, layout: Layout, cache: Cache | None, dtype: torch.dtype) -> Layout:
        """The layout with the relative position bias of the new tokens to all that they may see."""
        assert self.relative is not None
        queries = layout.pad(layout.position[:, 0])
        keys, mask, causal = queries, layout.mask, layout.causal
        if cache is not None and not cache.current.fresh:
            keys, mask, causal = cache.current.positions, cache.current.mask, False
        return replace(layout, bias=self.relative(queries, keys, mask, causal).to(dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, vocab)."""
        if self.embed is None:
            raise ValueError("this backbone has no vocabulary, so it has no logits")
        with wide(hidden):
            read = hidden if self.readout is None else self.readout(hidden)
            logits = nn.functional.linear(read, self.embed.weight) if self.head is None else self.head(read)
        logits = logits if self.readout is None else self.readout.shifted(logits)
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _tables(rope: Rope | None, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """cos and signed sin (T, width that is turned)."""
    if rope is None:
        return None
    cos, sin = rope(layout.position)
    return cos.to(dtype), signed(sin).to(dtype)


def _table(config: Backbone.Config) -> nn.Embedding:
    """Of learned positions."""
    return nn.Embedding(config.positions + config.unused_positions, config.width)


def llama(
    *,
    vocab: int,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    kv_heads: int | None = None,
    theta: float = 10_000.0,
    tied: bool = False,
    eps: float = 1e-5,
) -> Backbone.Config:
    """The Llama family's setting: RMSNorm, RoPE, SwiGLU, no biases (Touvron et al. 2023)."""
    from sensorium.nn.attention import Attention
    from sensorium.nn.ffn import FeedForward

    block = Block.Config(
        attention=Attention.Config(heads=heads, kv_heads=kv_heads),
        ffn=FeedForward.Config(hidden=hidden),
        norm=Norm.Config(eps=eps),
    )
    return Backbone.Config(vocab=vocab, width=width, depth=depth, block=block, rope=Rope.Config(theta=theta), tied=tied)


def bert(
    *, vocab: int, width: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072, positions: int = 512
) -> Backbone.Config:
    """BERT's setting: post-norm LayerNorm, learned positions, GELU, biases (Devlin et al. 2019)."""
    from sensorium.nn.attention import Attention
    from sensorium.nn.ffn import FeedForward

    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True),
        ffn=FeedForward.Config(hidden=hidden, activation="gelu", gated=False, bias=True),
        norm=Norm.Config(kind="layer", eps=1e-12),
        place="post",
    )
    return Backbone.Config(
        vocab=vocab, width=width, depth=depth, block=block, positions=positions, embed_norm=True, final_norm=False
    )


def opt(
    *, vocab: int = 50_272, width: int, depth: int, heads: int, hidden: int | None = None, positions: int = 2048
) -> Backbone.Config:
    """OPT's setting: pre-norm LayerNorm, learned positions, ReLU, biases, tied head (Zhang et al. 2022, 2205.01068).

    Published position tables begin with two rows that no token uses (fairseq counts positions from 2): left out here.
    """
    from sensorium.nn.attention import Attention
    from sensorium.nn.ffn import FeedForward

    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True),
        ffn=FeedForward.Config(hidden=hidden or 4 * width, activation="relu", gated=False, bias=True),
        norm=Norm.Config(kind="layer"),
    )
    return Backbone.Config(vocab=vocab, width=width, depth=depth, block=block, positions=positions)


def t5(
    *, vocab: int = 32_128, width: int, depth: int, heads: int, hidden: int, head_width: int = 64, decoder: bool = False
) -> Backbone.Config:
    """One side of T5 1.1 and Flan-T5 (Raffel et al. 2020, 1910.10683; Chung et al. 2022, 2210.11416).

    RMSNorm, relative positions, unscaled attention, gated GELU, no biases. The encoder is fed embeddings: they are the
    decoder's. The decoder reads the encoder's states in every block, and its head is its own.
    """
    from sensorium.nn.attention import Attention
    from sensorium.nn.cross import Cross
    from sensorium.nn.ffn import FeedForward

    attention, norm = Attention.Config(heads=heads, head_width=head_width, scaled=False), Norm.Config(eps=1e-6)
    block = Block.Config(
        attention=attention,
        ffn=FeedForward.Config(hidden=hidden, activation="gelu_tanh"),
        norm=norm,
        cross=Cross.Config(attention=attention, norm=norm) if decoder else None,
    )
    return Backbone.Config(
        vocab=vocab if decoder else 0, width=width, depth=depth, block=block, tied=False,
        relative=RelativeBias.Config(both=not decoder),
    )  # fmt: skip


def dit(
    *, width: int, depth: int, heads: int, hidden: int | None = None, cross: Cross.Config | None = None,
    cross_every: int = 1, rope: Rope.Config | None = None,
) -> Backbone.Config:  # fmt: skip
    """DiT's setting: adaLN-zero, LayerNorm without weights, GELU, biases (Peebles and Xie 2022, arXiv 2212.09748)."""
    from sensorium.nn.attention import Attention
    from sensorium.nn.ffn import FeedForward

    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True),
        ffn=FeedForward.Config(hidden=hidden or 4 * width, activation="gelu_tanh", gated=False, bias=True),
        norm=Norm.Config(kind="layer", eps=1e-6, affine=False),
        cross=cross, modulation=Modulation.Config(),
    )  # fmt: skip
    return Backbone.Config(width=width, depth=depth, block=block, cross_every=cross_every, rope=rope)
