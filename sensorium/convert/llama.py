"""Llama, Mistral and Qwen2: RMSNorm, RoPE, a gated feed-forward; they differ in biases."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Rule
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name, said
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope, Scaling


def rope_of(settings: Settings, theta: float = 10_000.0) -> Rope.Config:
    """Rotary positions, written the old way (rope_theta, rope_scaling) or the new one (rope_parameters)."""
    if "rope_parameters" in settings:
        settings.skip("rope_theta", "rope_scaling")
        fields = settings.inner("rope_parameters")
        theta = fields.take("rope_theta", float, theta)
        return Rope.Config(theta=theta, scaling=_scaling(fields))
    theta = settings.take("rope_theta", float, theta)
    if "rope_scaling" not in settings:
        settings.skip("rope_scaling")
        return Rope.Config(theta=theta)
    return Rope.Config(theta=theta, scaling=_scaling(settings.inner("rope_scaling")))


def _scaling(fields: Settings) -> Scaling | None:
    kind = fields.take("type", str, fields.take("rope_type", str, "default"))
    found = None
    if kind == "linear":
        found = Scaling(factor=fields.take("factor", float))
    elif kind == "llama3":
        found = Scaling(
            kind="llama3", factor=fields.take("factor", float), low=fields.take("low_freq_factor", float),
            high=fields.take("high_freq_factor", float), original=fields.count("original_max_position_embeddings"),
        )  # fmt: skip
    elif kind != "default":
        raise fields.error(f"rope_type is {kind!r}; only 'default', 'linear' and 'llama3' can be said here")
    fields.done(idle=())
    return found


def rope_written(rope: Rope.Config) -> dict[str, Any]:
    """Both ways, so that old and new readers find it."""
    scaling = rope.scaling
    if scaling is None:
        said: dict[str, Any] = {"rope_type": "default"}
    elif scaling.kind == "linear":
        said = {"rope_type": "linear", "factor": scaling.factor}
    else:
        said = {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.original}  # fmt: skip
    return {
        "rope_theta": rope.theta, "rope_scaling": None if scaling is None else said,
        "rope_parameters": {**said, "rope_theta": rope.theta},
    }  # fmt: skip


_RULES = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "norm.weight"),
    Rule("lm_head.weight", "head.weight"),
    *(Rule(f"model.layers.{{}}.self_attn.{name}_proj.*", f"blocks.{{}}.attention.{name}.*") for name in "qkvo"),
    *(Rule(f"model.layers.{{}}.mlp.{name}_proj.*", f"blocks.{{}}.ffn.{name}.*") for name in ("gate", "up", "down")),
    Rule("model.layers.{}.input_layernorm.weight", "blocks.{}.norm1.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "blocks.{}.norm2.weight"),
)
_MORE = {
    "spare": ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
    "root": "model.",
}


def _like_llama(settings: Settings, bias: bool, out_bias: bool | None) -> Backbone.Config:
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    settings.skip("max_position_embeddings")
    head_width = settings.count("head_dim", None)
    attention = Attention.Config(
        heads=heads, kv_heads=settings.count("num_key_value_heads", heads), bias=bias, out_bias=out_bias,
        head_width=None if head_width is None or head_width * heads == width else head_width,
    )  # fmt: skip
    ffn = FeedForward.Config(
        hidden=settings.count("intermediate_size"), activation=activation(settings, "hidden_act", "silu"),
        bias=settings.take("mlp_bias", bool, False),
    )  # fmt: skip
    block = Block.Config(attention=attention, ffn=ffn, norm=Norm.Config(eps=settings.take("rms_norm_eps", float, 1e-6)))
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("num_hidden_layers"), block=block,
        rope=rope_of(settings), tied=settings.take("tie_word_embeddings", bool, False),
    )  # fmt: skip


def _read_llama(settings: Settings) -> Backbone.Config:
    return _like_llama(settings, settings.take("attention_bias", bool, False), None)


def _read_mistral(settings: Settings) -> Backbone.Config:
    if "sliding_window" not in settings.values:
        raise settings.error("it says nothing of sliding_window, which then is 4096: null alone can be said here")
    settings.only("sliding_window", None)
    return _like_llama(settings, False, None)


def _read_qwen2(settings: Settings) -> Backbone.Config:
    settings.only("use_sliding_window", False)
    settings.skip("sliding_window", "max_window_layers", "layer_types")
    return _like_llama(settings, True, False)


def _fields(config: Backbone.Config, kind: str) -> dict[str, Any]:
    attention, ffn = config.block.attention, config.block.ffn
    rope = {} if config.rope is None else rope_written(config.rope)
    return {
        "model_type": kind, "vocab_size": config.vocab, "hidden_size": config.width, "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads or attention.heads,
        "intermediate_size": ffn.hidden, "hidden_act": activation_name(ffn.activation),
        "rms_norm_eps": config.block.norm.eps, "tie_word_embeddings": config.tied, **rope,
    }  # fmt: skip


def _write_llama(config: Backbone.Config) -> dict[str, Any]:
    attention = config.block.attention
    own = {"attention_bias": attention.bias, "mlp_bias": config.block.ffn.bias}
    head = {"head_dim": attention.width_of_head(config.width)}
    return said({**_fields(config, "llama"), **head, **own}, _read_llama, config, "Llama")


def _write_mistral(config: Backbone.Config) -> dict[str, Any]:
    own = {"head_dim": config.block.attention.width_of_head(config.width), "sliding_window": None}
    return said({**_fields(config, "mistral"), **own}, _read_mistral, config, "Mistral")


def _write_qwen2(config: Backbone.Config) -> dict[str, Any]:
    return said({**_fields(config, "qwen2"), "use_sliding_window": False}, _read_qwen2, config, "Qwen2")


LLAMA = Stack(("llama",), "LlamaForCausalLM", _read_llama, _write_llama, lambda config: _RULES, **_MORE)
MISTRAL = Stack(("mistral",), "MistralForCausalLM", _read_mistral, _write_mistral, lambda config: _RULES, **_MORE)
QWEN2 = Stack(("qwen2",), "Qwen2ForCausalLM", _read_qwen2, _write_qwen2, lambda config: _RULES, **_MORE)
