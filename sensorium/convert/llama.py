"""Llama, Mistral, Qwen2 and Qwen3: RMSNorm, RoPE, a gated feed-forward; they differ in biases and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.convert.keys import Rule
from sensorium.convert.settings import REQUIRED, Settings
from sensorium.convert.stack import Stack, activation, activation_name, said
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone, Local
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope, Scaling


def rope_of(settings: Settings, theta: float = 10_000.0) -> Rope.Config:
    """Rotary positions, written the old way (rope_theta, rope_scaling) or the new one (rope_parameters)."""
    longest = settings.count("max_position_embeddings", None)
    if "rope_parameters" in settings:
        settings.skip("rope_theta", "rope_scaling")
        fields = settings.inner("rope_parameters")
        theta = fields.take("rope_theta", float, theta)
        return Rope.Config(theta=theta, scaling=scaling_of(fields, longest))
    theta = settings.take("rope_theta", float, theta)
    if "rope_scaling" not in settings:
        settings.skip("rope_scaling")
        return Rope.Config(theta=theta)
    return Rope.Config(theta=theta, scaling=scaling_of(settings.inner("rope_scaling"), longest))


def scaling_of(fields: Settings, longest: int | None) -> Scaling | None:
    """How frequencies were lowered. longest: max_position_embeddings, which stands for a missing original length."""
    kind = fields.take("type", str, fields.take("rope_type", str, "default"))
    found = None
    if kind == "linear":
        found = Scaling(factor=fields.take("factor", float))
    elif kind == "llama3":
        found = Scaling(
            kind="llama3", factor=fields.take("factor", float), low=fields.take("low_freq_factor", float),
            high=fields.take("high_freq_factor", float), original=fields.count("original_max_position_embeddings"),
        )  # fmt: skip
    elif kind == "yarn":
        fields.only("mscale", None)
        fields.only("mscale_all_dim", None)
        original = fields.count("original_max_position_embeddings", longest)
        if original is None:
            raise fields.error("it has no original_max_position_embeddings: yarn needs one")
        found = Scaling(
            kind="yarn", factor=fields.take("factor", float), low=fields.take("beta_slow", float, None) or 1.0,
            high=fields.take("beta_fast", float, None) or 32.0, length=fields.take("attention_factor", float, None),
            whole=fields.take("truncate", bool, True), original=original,
        )  # fmt: skip
    elif kind != "default":
        raise fields.error(f"rope_type is {kind!r}; only 'default', 'linear', 'llama3' and 'yarn' can be said here")
    fields.done(idle=())
    return found


def scaling_written(scaling: Scaling | None) -> dict[str, Any]:
    """The inverse of `scaling_of`."""
    if scaling is None:
        return {"rope_type": "default"}
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        said |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    elif scaling.kind == "yarn":
        said |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.whole}
        said |= {} if scaling.length is None else {"attention_factor": scaling.length}
    return said if scaling.kind == "linear" else {**said, "original_max_position_embeddings": scaling.original}


def rope_written(rope: Rope.Config) -> dict[str, Any]:
    """Both ways, so that old and new readers find it."""
    said = scaling_written(rope.scaling)
    return {
        "rope_theta": rope.theta, "rope_scaling": None if rope.scaling is None else said,
        "rope_parameters": {**said, "rope_theta": rope.theta},
    }  # fmt: skip


WINDOWED, WHOLE = "sliding_attention", "full_attention"


def local_of(settings: Settings, window: int | None, default: Sequence[bool]) -> Local | None:
    """The blocks with a sliding window: those that layer_types names or, without it, the default for each depth."""
    named = settings.take("layer_types", list, None)
    near = list(default)
    if named is not None:
        if len(named) != len(near) or not set(named) <= {WINDOWED, WHOLE}:
            raise settings.error(f"layer_types is {named}, expected {len(near)} words, each {WINDOWED!r} or {WHOLE!r}")
        near = [one == WINDOWED for one in named]
    if not any(near):
        return None
    if window is None:
        raise settings.error("sliding_window is null, and there are layers with sliding_attention: they need one")
    return Local(window=window, layers=None if all(near) else tuple(at for at, one in enumerate(near) if one))


def layer_types(config: Backbone.Config) -> list[str]:
    """How a config names the blocks with a sliding window and those without."""
    local = config.local
    return [WINDOWED if local is not None and local.at(depth) else WHOLE for depth in range(config.depth)]


RULES = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "norm.weight"),
    Rule("lm_head.weight", "head.weight"),
    *(Rule(f"model.layers.{{}}.self_attn.{name}_proj.*", f"blocks.{{}}.attention.{name}.*") for name in "qkvo"),
    *(Rule(f"model.layers.{{}}.mlp.{name}_proj.*", f"blocks.{{}}.ffn.{name}.*") for name in ("gate", "up", "down")),
    Rule("model.layers.{}.input_layernorm.weight", "blocks.{}.norm1.weight"),
    Rule("model.layers.{}.post_attention_layernorm.weight", "blocks.{}.norm2.weight"),
)
QK_NORM = tuple(
    Rule(f"model.layers.{{}}.self_attn.{name}_norm.weight", f"blocks.{{}}.attention.{name}_norm.weight")
    for name in "qk"
)
MORE = {
    "spare": ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
    "root": "model.",
}


def like_llama(
    settings: Settings, *, bias: bool = False, out_bias: bool | None = None, heads: int | None = None,
    kv_heads: int | None = None, head_width: int | None = None, eps: float = 1e-6, theta: float = 10_000.0,
    rope: Rope.Config | None = None, tied: bool = False, act: str = "hidden_act", activated: str = "silu",
) -> Backbone.Config:  # fmt: skip
    """A decoder as Llama's. Further arguments are what a family means where a config leaves the field out.

    kv_heads  None: as many as heads
    rope      where the family reads it itself
    act       the field that names the activation
    """
    width = settings.count("hidden_size")
    count: int = settings.count("num_attention_heads", heads or REQUIRED)
    absent = count if kv_heads is None or "num_key_value_heads" in settings.values else kv_heads
    settings.skip("max_position_embeddings")
    head_width = settings.count("head_dim", head_width)
    attention = Attention.Config(
        heads=count, kv_heads=settings.count("num_key_value_heads", absent), bias=bias, out_bias=out_bias,
        head_width=None if head_width is None or head_width * count == width else head_width,
    )  # fmt: skip
    ffn = FeedForward.Config(
        hidden=settings.count("intermediate_size"), activation=activation(settings, act, activated),
        bias=settings.take("mlp_bias", bool, False),
    )  # fmt: skip
    norm = Norm.Config(eps=settings.take("rms_norm_eps", float, eps))
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("num_hidden_layers"),
        block=Block.Config(attention=attention, ffn=ffn, norm=norm), rope=rope or rope_of(settings, theta),
        tied=settings.take("tie_word_embeddings", bool, tied),
    )  # fmt: skip


def _read_llama(settings: Settings) -> Backbone.Config:
    return like_llama(settings, bias=settings.take("attention_bias", bool, False))


def everywhere(settings: Settings, config: Backbone.Config, absent: int | None) -> Backbone.Config:
    """Mistral's and Mixtral's window is that of all blocks. absent: what a config means that says nothing of it."""
    window = settings.count("sliding_window", None if "sliding_window" in settings.values else absent)
    return config.replace(local=None if window is None else Local(window=window))


def _read_mistral(settings: Settings) -> Backbone.Config:
    return everywhere(settings, like_llama(settings, kv_heads=8), 4096)


def _read_qwen2(settings: Settings) -> Backbone.Config:
    return from_some_depth(settings, like_llama(settings, bias=True, out_bias=False, kv_heads=32))


def _read_qwen3(settings: Settings) -> Backbone.Config:
    bias = settings.take("attention_bias", bool, False)
    config = like_llama(settings, bias=bias, kv_heads=32, head_width=128)
    attention = config.block.attention.replace(qk_norm=config.block.norm)
    return from_some_depth(settings, config.replace(block=config.block.replace(attention=attention)))


def from_some_depth(settings: Settings, config: Backbone.Config) -> Backbone.Config:
    """Qwen's windows: those of the blocks from max_window_layers on, where they are used at all."""
    settings.only("use_mrope", False)
    used = settings.take("use_sliding_window", bool, False)
    window = settings.count("sliding_window", None if "sliding_window" in settings.values else 4096)
    first = settings.count("max_window_layers", 28, least=0)
    used = used and window is not None
    local = local_of(settings, window if used else None, [used and depth >= first for depth in range(config.depth)])
    return config.replace(local=local)


def written(config: Backbone.Config, kind: str) -> dict[str, Any]:
    """What the configs of all these families say in the same words."""
    attention, ffn = config.block.attention, config.block.ffn
    rope = {} if config.rope is None else rope_written(config.rope)
    return {
        "model_type": kind, "vocab_size": config.vocab, "hidden_size": config.width, "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads or attention.heads,
        "intermediate_size": ffn.hidden, "hidden_act": activation_name(ffn.activation),
        "rms_norm_eps": config.block.norm.eps, "tie_word_embeddings": config.tied, **rope,
    }  # fmt: skip


def head_written(config: Backbone.Config) -> dict[str, Any]:
    return {"head_dim": config.block.attention.width_of_head(config.width)}


def window_written(config: Backbone.Config) -> int | None:
    return None if config.local is None else config.local.window


def _write_llama(config: Backbone.Config) -> dict[str, Any]:
    own = {"attention_bias": config.block.attention.bias, "mlp_bias": config.block.ffn.bias}
    return said({**written(config, "llama"), **head_written(config), **own}, _read_llama, config, "Llama")


def _write_mistral(config: Backbone.Config) -> dict[str, Any]:
    own = {**head_written(config), "sliding_window": window_written(config)}
    return said({**written(config, "mistral"), **own}, _read_mistral, config, "Mistral")


def depths_written(config: Backbone.Config) -> dict[str, Any]:
    """The inverse of `from_some_depth`."""
    types = layer_types(config)
    first = types.index(WINDOWED) if WINDOWED in types else config.depth
    return {"use_sliding_window": config.local is not None, "sliding_window": window_written(config),
            "max_window_layers": first, "layer_types": types}  # fmt: skip


def _write_qwen2(config: Backbone.Config) -> dict[str, Any]:
    return said({**written(config, "qwen2"), **depths_written(config)}, _read_qwen2, config, "Qwen2")


def _write_qwen3(config: Backbone.Config) -> dict[str, Any]:
    own = {**head_written(config), "attention_bias": config.block.attention.bias}
    return said({**written(config, "qwen3"), **own, **depths_written(config)}, _read_qwen3, config, "Qwen3")


_ABSENT: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
"""What the published classes have where a config inside another one leaves it out, as those of LLaVA do."""
LLAMA = Stack(
    ("llama",), "LlamaForCausalLM", _read_llama, _write_llama, lambda config: RULES, absent=_ABSENT, **MORE
)  # fmt: skip
MISTRAL = Stack(
    ("mistral",), "MistralForCausalLM", _read_mistral, _write_mistral, lambda config: RULES,
    absent={**_ABSENT, "intermediate_size": 14_336, "num_key_value_heads": 8}, **MORE,
)  # fmt: skip
QWEN2 = Stack(
    ("qwen2",), "Qwen2ForCausalLM", _read_qwen2, _write_qwen2, lambda config: RULES,
    absent={**_ABSENT, "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32}, **MORE,
)  # fmt: skip
QWEN3 = Stack(("qwen3",), "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, lambda config: (*RULES, *QK_NORM), **MORE)
