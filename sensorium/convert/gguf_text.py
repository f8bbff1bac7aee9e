"""Language models in GGUF: what an architecture's keys say of a Backbone and how its tensors are called, both ways.

llama  Llama, Mistral, SmolLM2, Vicuna: RMSNorm, RoPE on neighbouring pairs, a gated feed-forward, biases where they are
qwen2  the same with biases on queries, keys and values, and RoPE on halves
gpt2   LayerNorm, learned positions, GELU (tanh), biases
bloom  LayerNorm behind the embedding and before, linear biases of distance, GELU (tanh), biases
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sensorium.convert.keys import Fit, Rule, Split, pairs
from sensorium.convert.settings import Settings
from sensorium.convert.stack import said
from sensorium.errors import UserError
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.blank import blank
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.relative import LinearBias
from sensorium.nn.rope import Rope, Scaling

Names = Collection[str]
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a model's architecture.

    name   the value of general.architecture, which the keys begin with
    read   (the keys, without that beginning; names of the tensors) -> the stack. `vocab_size` is always among the keys
    write  the stack -> those keys
    rules  names of tensors there and here
    """

    name: str
    read: Callable[[Settings, Names], Backbone.Config]
    write: Callable[[Backbone.Config], dict[str, Any]]
    rules: Callable[[Backbone.Config], Sequence[Rule]]

    def say(self, config: Backbone.Config) -> dict[str, Any]:
        """The keys of a stack. Raises UserError for one that the architecture has no words for."""
        scaling = None if config.rope is None else config.rope.scaling
        # frequencies scaled as Llama 3's are a tensor of factors, so keys say nothing of them
        plain = config
        if self.name == LLAMA.name and config.rope is not None and scaling is not None and scaling.kind == "llama3":
            plain = config.replace(rope=config.rope.replace(scaling=None))
        with blank():
            own = config.build().state_dict()
        try:
            names = {theirs for pair in pairs(self.rules(plain), own) for theirs in pair.theirs}
        except ValueError as error:
            raise UserError(f"the GGUF architecture {self.name} cannot say this model: {error}") from error
        written = self.write(plain)
        said(written, lambda settings: self.read(settings, names), plain, f"the GGUF architecture {self.name}")
        return written

    def extra(self, config: Backbone.Config) -> dict[str, Tensor]:
        """Tensors that are computed from the stack's settings and not learned."""
        rope = config.rope
        if self.name != LLAMA.name or rope is None or rope.scaling is None or rope.scaling.kind != "llama3":
            return {}
        half = config.block.attention.width_of_head(config.width) // 2
        frequency = 1.0 / rope.theta ** (torch.arange(half, dtype=torch.float32) / half)
        return {ROPE_FREQS: frequency / rope.scaling(frequency, rope.theta)}


class Interleaved(Fit):
    """Rows of queries or keys in llama.cpp's order, where RoPE turns neighbouring rows of a head together."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [half_split(tensor, self.heads) for tensor in tensors]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [interleaved(tensor, self.heads) for tensor in tensors]


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k (heads * d, D) from GGUF's interleaved RoPE (x0 y0 x1 y1 ..) to half-split (x0 x1 .. y0 y1 ..)."""
    head_width = weight.shape[0] // heads
    return weight.reshape(heads, head_width // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `half_split`."""
    head_width = weight.shape[0] // heads
    return weight.reshape(heads, 2, head_width // 2, -1).transpose(1, 2).reshape(weight.shape)


# ---- llama, qwen2


def _all(names: Names, *tensors: str) -> bool:
    return all(tensor in names for tensor in tensors)


def _biases(names: Names) -> bool:
    """Of queries, keys and values."""
    return _all(names, *(f"blk.0.attn_{one}.bias" for one in "qkv"))


def _gated(settings: Settings, names: Names) -> Backbone.Config:
    settings.skip("context_length")
    width, heads = settings.count("embedding_length"), settings.count("attention.head_count")
    kv_heads = settings.count("attention.head_count_kv", heads)
    head_width = settings.count("attention.key_length", max(1, width // heads))
    settings.only("attention.value_length", None, head_width)
    settings.only("rope.dimension_count", None, head_width)
    if "attention.key_length" not in settings and head_width * heads != width:
        raise settings.error(f"its width {width} is not {heads} heads of {head_width} numbers")
    if head_width % 2:
        raise settings.error(f"its heads are {head_width} numbers wide, RoPE needs an even number")
    if heads % kv_heads:
        raise settings.error(f"its {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    bias = _biases(names)
    out_bias = _all(names, "blk.0.attn_output.bias")
    attention = Attention.Config(
        heads=heads, kv_heads=kv_heads, bias=bias, out_bias=None if out_bias == bias else out_bias,
        head_width=None if head_width * heads == width else head_width,
    )  # fmt: skip
    ffn = FeedForward.Config(
        hidden=settings.count("feed_forward_length"), bias=_all(names, "blk.0.ffn_up.bias", "blk.0.ffn_down.bias")
    )
    block = Block.Config(attention=attention, ffn=ffn, norm=Norm.Config(eps=_eps(settings, "rms_")))
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("block_count"), block=block,
        rope=_rope(settings, names), tied="output.weight" not in names,
    )  # fmt: skip


def _eps(settings: Settings, kind: str = "") -> float:
    return _positive(settings, f"attention.layer_norm_{kind}epsilon")


def _positive(settings: Settings, name: str, *default: float) -> float:
    value = settings.take(name, float, *default)
    if not value > 0:
        raise settings.error(f"{name} is {value}, expected a positive number")
    return value


def _rope(settings: Settings, names: Names) -> Rope.Config:
    theta = _positive(settings, "rope.freq_base", 10_000.0)
    kind = settings.take("rope.scaling.type", str, "none")
    if kind not in ("none", "linear") or ROPE_FREQS in names:
        raise settings.error(f"it scales its rotary positions ({kind if ROPE_FREQS not in names else ROPE_FREQS}); "
                             "only 'linear' can be said here")  # fmt: skip
    settings.skip("rope.scaling.original_context_length")
    if kind == "none":
        return Rope.Config(theta=theta)
    return Rope.Config(theta=theta, scaling=Scaling(factor=_positive(settings, "rope.scaling.factor")))


def _write_gated(config: Backbone.Config) -> dict[str, Any]:
    attention, rope = config.block.attention, config.rope or Rope.Config()
    head_width = attention.width_of_head(config.width)
    written: dict[str, Any] = {
        "vocab_size": config.vocab, "embedding_length": config.width, "block_count": config.depth,
        "feed_forward_length": config.block.ffn.hidden, "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads or attention.heads, "rope.dimension_count": head_width,
        "rope.freq_base": rope.theta, "attention.layer_norm_rms_epsilon": config.block.norm.eps,
    }  # fmt: skip
    if head_width * attention.heads != config.width:
        written |= {"attention.key_length": head_width, "attention.value_length": head_width}
    if rope.scaling is not None:
        written |= {"rope.scaling.type": rope.scaling.kind, "rope.scaling.factor": rope.scaling.factor}
    return written


_OUTSIDE = (
    Rule("token_embd.weight", "embed.weight"),
    Rule("output_norm.*", "norm.*"),
    Rule("output.weight", "head.weight"),
)
_INSIDE = (
    Rule("blk.{}.attn_norm.*", "blocks.{}.norm1.*"),
    Rule("blk.{}.attn_output.*", "blocks.{}.attention.o.*"),
    Rule("blk.{}.ffn_norm.*", "blocks.{}.norm2.*"),
    Rule("blk.{}.ffn_gate.*", "blocks.{}.ffn.gate.*"),
    Rule("blk.{}.ffn_up.*", "blocks.{}.ffn.up.*"),
    Rule("blk.{}.ffn_down.*", "blocks.{}.ffn.down.*"),
)


def _rules_llama(config: Backbone.Config) -> Sequence[Rule]:
    attention = config.block.attention
    return (
        *_OUTSIDE,
        *_INSIDE,
        Rule("blk.{}.attn_q.*", "blocks.{}.attention.q.*", Interleaved(attention.heads)),
        Rule("blk.{}.attn_k.*", "blocks.{}.attention.k.*", Interleaved(attention.kv_heads or attention.heads)),
        Rule("blk.{}.attn_v.*", "blocks.{}.attention.v.*"),
    )


def _rules_qwen2(config: Backbone.Config) -> Sequence[Rule]:
    return (*_OUTSIDE, *_INSIDE, *(Rule(f"blk.{{}}.attn_{one}.*", f"blocks.{{}}.attention.{one}.*") for one in "qkv"))


def _read_qwen2(settings: Settings, names: Names) -> Backbone.Config:
    config = _gated(settings, names)
    attention, ffn = config.block.attention.replace(bias=True, out_bias=False), config.block.ffn.replace(bias=False)
    if attention.head_width is not None:
        raise settings.error("its heads are not as wide together as the model, which qwen2 asks for")
    return config.replace(block=config.block.replace(attention=attention, ffn=ffn))


# ---- gpt2, bloom


def _plain(settings: Settings) -> tuple[Block.Config, dict[str, Any]]:
    """LayerNorm, biases everywhere, GELU: the block, and the stack's sizes."""
    width, heads = settings.count("embedding_length"), settings.count("attention.head_count")
    settings.only("attention.head_count_kv", None, heads)
    if width % heads:
        raise settings.error(f"its width {width} is not {heads} heads of equal width")
    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True), norm=Norm.Config(kind="layer", eps=_eps(settings)),
        ffn=FeedForward.Config(
            hidden=settings.count("feed_forward_length"), activation="gelu_tanh", gated=False, bias=True
        ),
    )  # fmt: skip
    sizes = {"vocab": settings.count("vocab_size"), "width": width, "depth": settings.count("block_count")}
    return block, sizes


def _read_gpt2(settings: Settings, names: Names) -> Backbone.Config:
    block, sizes = _plain(settings)
    positions = settings.count("context_length")
    return Backbone.Config(**sizes, block=block, positions=positions, tied="output.weight" not in names)


def _read_bloom(settings: Settings, names: Names) -> Backbone.Config:
    settings.skip("context_length")
    block, sizes = _plain(settings)
    tied = "output.weight" not in names
    return Backbone.Config(**sizes, block=block, relative=LinearBias.Config(), embed_norm=True, tied=tied)


def _write_plain(config: Backbone.Config) -> dict[str, Any]:
    heads = config.block.attention.heads
    place = {"context_length": config.positions} if config.positions else {}
    return {
        "vocab_size": config.vocab, "embedding_length": config.width, "block_count": config.depth,
        "feed_forward_length": config.block.ffn.hidden, "attention.head_count": heads, "attention.head_count_kv": heads,
        "attention.layer_norm_epsilon": config.block.norm.eps, **place,
    }  # fmt: skip


def _rules_plain(config: Backbone.Config) -> Sequence[Rule]:
    return (
        *_OUTSIDE,
        *_INSIDE,
        Rule("position_embd.weight", "place.weight"),
        Rule("token_embd_norm.*", "embed_norm.*"),
        Rule("blk.{}.attn_qkv.*", tuple(f"blocks.{{}}.attention.{one}.*" for one in "qkv"), Split()),
    )


LLAMA = Architecture("llama", _gated, _write_gated, _rules_llama)
QWEN2 = Architecture("qwen2", _read_qwen2, _write_gated, _rules_qwen2)
GPT2 = Architecture("gpt2", _read_gpt2, _write_plain, _rules_plain)
BLOOM = Architecture("bloom", _read_bloom, _write_plain, _rules_plain)
ARCHITECTURES = {one.name: one for one in (QWEN2, LLAMA, GPT2, BLOOM)}
"""In the order in which they are tried for a model."""


def architecture_of(config: Backbone.Config) -> tuple[Architecture, dict[str, Any]]:
    """The first architecture that says a stack, and its keys. Raises UserError with the reason of each that cannot."""
    reasons = []
    for one in ARCHITECTURES.values():
        try:
            return one, one.say(config)
        except UserError as error:
            reasons.append(str(error))
    raise UserError("no GGUF architecture that can be written says this model.\n  " + "\n  ".join(reasons))
