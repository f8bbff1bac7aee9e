"""Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text model of Gemma 3 (arXiv 2503.19786): norms that
scale by 1 + weight, embeddings times the root of the width; from 2 on norms on both sides, soft caps, windows."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Rule
from sensorium.convert.llama import (
    MORE,
    QK_NORM,
    RULES,
    WHOLE,
    WINDOWED,
    head_written,
    layer_types,
    like_llama,
    local_of,
    scaling_of,
    scaling_written,
    window_written,
    written,
)  # fmt: skip
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation_name, said
from sensorium.nn.backbone import Backbone
from sensorium.nn.rope import Rope

WINDOW = 4096
"""Of a config that says nothing of it; the reference asks for one even where no block has a window."""
EVERY = 6
"""Gemma 3: one block in so many reads the whole text."""
_POST = "post_attention_layernorm"
_BOTH = (
    *(rule for rule in RULES if _POST not in rule.sides[0][0]),
    Rule(f"model.layers.{{}}.{_POST}.weight", "blocks.{}.after1.weight"),
    Rule("model.layers.{}.pre_feedforward_layernorm.weight", "blocks.{}.norm2.weight"),
    Rule("model.layers.{}.post_feedforward_layernorm.weight", "blocks.{}.after2.weight"),
)


def _read_gemma(settings: Settings) -> Backbone.Config:
    _causal(settings)
    if settings.values.get("hidden_act") == "gelu":  # of early releases, which meant the approximation by tanh
        settings.skip("hidden_act")
        act = "hidden_activation"
    else:
        act = "hidden_act"
        settings.only("hidden_activation", None, settings.values.get("hidden_act"))
    bias = settings.take("attention_bias", bool, False)
    return _scaled(like_llama(
        settings, bias=bias, heads=16, kv_heads=16, head_width=256, tied=True, act=act,
        activated="gelu_pytorch_tanh",
    ))  # fmt: skip


def _read_gemma2(settings: Settings) -> Backbone.Config:
    config = _second(settings, scores=50.0, logits=30.0)
    window = settings.count("sliding_window", None if "sliding_window" in settings.values else WINDOW)
    return config.replace(local=local_of(settings, window, [depth % 2 == 0 for depth in range(config.depth)]))


def _read_gemma3(settings: Settings) -> Backbone.Config:
    rope, near = _ropes(settings)
    config = _second(settings, scores=None, logits=None, rope=rope)
    attention = config.block.attention.replace(qk_norm=config.block.norm)
    config = config.replace(block=config.block.replace(attention=attention))
    window = settings.count("sliding_window", None if "sliding_window" in settings.values else WINDOW)
    every = settings.count("sliding_window_pattern", EVERY)
    settings.skip("_sliding_window_pattern")
    local = local_of(settings, window, [bool((depth + 1) % every) for depth in range(config.depth)])
    if local is None or near == rope:
        return config.replace(local=local)
    return config.replace(local=local.replace(rope=near), rope=near if local.layers is None else rope)


def _ropes(settings: Settings) -> tuple[Rope.Config, Rope.Config]:
    """Of the blocks that read the whole text, and of those with a window."""
    longest = settings.count("max_position_embeddings", 131_072)
    far_theta = settings.take("rope_theta", float, 1_000_000.0)
    near_theta = settings.take("rope_local_base_freq", float, 10_000.0)
    if "rope_parameters" not in settings:
        settings.skip("rope_parameters")
        scaling = scaling_of(settings.inner("rope_scaling", {}), longest)
        return Rope.Config(theta=far_theta, scaling=scaling), Rope.Config(theta=near_theta)
    settings.skip("rope_scaling")
    both = settings.inner("rope_parameters")
    found = []
    for kind, theta in ((WHOLE, far_theta), (WINDOWED, near_theta)):
        inner = both.inner(kind, {})
        theta = inner.take("rope_theta", float, theta)
        found.append(Rope.Config(theta=theta, scaling=scaling_of(inner, longest)))
    both.done(idle=())
    return found[0], found[1]


def _second(
    settings: Settings, scores: float | None, logits: float | None, rope: Rope.Config | None = None
) -> Backbone.Config:
    """What Gemma 2 and 3 have in common. scores, logits: the soft caps of a config that says nothing of them."""
    _causal(settings)
    settings.skip("hidden_act", "cache_implementation", "sliding_window_size")
    bias = settings.take("attention_bias", bool, False)
    config = _scaled(like_llama(
        settings, bias=bias, heads=8, kv_heads=4, head_width=256, tied=True, act="hidden_activation",
        activated="gelu_pytorch_tanh", rope=rope,
    ))  # fmt: skip
    attention = config.block.attention
    width = settings.take("query_pre_attn_scalar", float, 256.0)
    attention = attention.replace(
        scale_width=None if width == attention.width_of_head(config.width) else width,
        soft_cap=_cap(settings, "attn_logit_softcapping", scores),
    )
    block = config.block.replace(attention=attention, place="both")
    return config.replace(block=block, soft_cap=_cap(settings, "final_logit_softcapping", logits))


def _cap(settings: Settings, name: str, absent: float | None) -> float | None:
    """null is no cap; a config that says nothing has the family's."""
    return settings.take(name, float, None if name in settings.values else absent)


def _causal(settings: Settings) -> None:
    settings.only("use_bidirectional_attention", None, False)


def _scaled(config: Backbone.Config) -> Backbone.Config:
    norm = config.block.norm.replace(zero_centered=True)
    return config.replace(block=config.block.replace(norm=norm), scaled_embed=True)


def _written(config: Backbone.Config, kind: str) -> dict[str, Any]:
    bias = {"attention_bias": config.block.attention.bias}
    return {**written(config, kind), **head_written(config), **bias}


def _second_written(config: Backbone.Config, kind: str) -> dict[str, Any]:
    attention = config.block.attention
    return {
        **_written(config, kind), "hidden_activation": activation_name(config.block.ffn.activation),
        "query_pre_attn_scalar": int(attention.scale_width or attention.width_of_head(config.width)),
        "attn_logit_softcapping": attention.soft_cap, "final_logit_softcapping": config.soft_cap,
        "sliding_window": window_written(config) or WINDOW, "layer_types": layer_types(config),
    }  # fmt: skip


def _write_gemma(config: Backbone.Config) -> dict[str, Any]:
    return said(_written(config, "gemma"), _read_gemma, config, "Gemma")


def _write_gemma2(config: Backbone.Config) -> dict[str, Any]:
    return said(_second_written(config, "gemma2"), _read_gemma2, config, "Gemma 2")


def _write_gemma3(config: Backbone.Config) -> dict[str, Any]:
    rope, near = config.rope or Rope.Config(), config.local.rope if config.local is not None else None
    near = near or rope
    ropes = {
        "rope_theta": rope.theta, "rope_local_base_freq": near.theta,
        "rope_scaling": None if rope.scaling is None else scaling_written(rope.scaling),
        "rope_parameters": {kind: {**scaling_written(one.scaling), "rope_theta": one.theta}
                            for kind, one in ((WHOLE, rope), (WINDOWED, near))},
    }  # fmt: skip
    return said({**_second_written(config, "gemma3_text"), **ropes}, _read_gemma3, config, "Gemma 3")


GEMMA = Stack(
    ("gemma",), "GemmaForCausalLM", _read_gemma, _write_gemma, lambda config: RULES,
    absent={"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28}, **MORE,
)  # fmt: skip
GEMMA2 = Stack(
    ("gemma2",), "Gemma2ForCausalLM", _read_gemma2, _write_gemma2, lambda config: _BOTH,
    absent={"vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}, **MORE,
)  # fmt: skip
GEMMA3 = Stack(
    ("gemma3_text",), "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, lambda config: (*_BOTH, *QK_NORM), **MORE
)  # fmt: skip
