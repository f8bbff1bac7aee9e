"""Persimmon (adept.ai/blog/persimmon-8b): squared ReLU, LayerNorm also on queries and keys, partly turned heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.convert.keys import Rule, Woven
from sensorium.convert.llama import rope_of, rope_written
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name, said
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope

_LAYER = "model.layers.{}"


def _rules(config: Backbone.Config) -> Sequence[Rule]:
    read = tuple(f"blocks.{{}}.attention.{one}.*" for one in "qkv")
    return (
        Rule("model.embed_tokens.weight", "embed.weight"),
        Rule("model.final_layernorm.*", "norm.*"),
        Rule("lm_head.weight", "head.weight"),
        Rule(f"{_LAYER}.input_layernorm.*", "blocks.{}.norm1.*"),
        Rule(f"{_LAYER}.post_attention_layernorm.*", "blocks.{}.norm2.*"),
        *(Rule(f"{_LAYER}.self_attn.{one}_layernorm.*", f"blocks.{{}}.attention.{one}_norm.*") for one in "qk"),
        Rule(f"{_LAYER}.self_attn.query_key_value.*", read, Woven(config.block.attention.heads)),
        Rule(f"{_LAYER}.self_attn.dense.*", "blocks.{}.attention.o.*"),
        Rule(f"{_LAYER}.mlp.dense_h_to_4h.*", "blocks.{}.ffn.up.*"),
        Rule(f"{_LAYER}.mlp.dense_4h_to_h.*", "blocks.{}.ffn.down.*"),
    )


def _read(settings: Settings) -> Backbone.Config:
    settings.skip("max_position_embeddings")
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    if width % heads:
        raise settings.error(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
    norm = Norm.Config(kind="layer", eps=settings.take("layer_norm_eps", float, 1e-5))
    ffn = FeedForward.Config(
        hidden=settings.count("intermediate_size"), activation=activation(settings, "hidden_act", "relu2"),
        gated=False, bias=True,
    )  # fmt: skip
    normed = norm if settings.take("qk_layernorm", bool, True) else False
    block = Block.Config(attention=Attention.Config(heads=heads, bias=True, qk_norm=normed), ffn=ffn, norm=norm)
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("num_hidden_layers"), block=block,
        rope=_rope(settings, width // heads), tied=settings.take("tie_word_embeddings", bool, False),
    )  # fmt: skip


def _rope(settings: Settings, head: int) -> Rope.Config:
    """Of a head of so many numbers a part is turned."""
    fields = {name: settings.take(name, object, None) for name in ("rope_parameters", "rope_theta", "rope_scaling")}
    share = settings.take("partial_rotary_factor", float, 0.5)
    if fields["rope_parameters"] is not None:
        inner = settings.inner("rope_parameters")
        share = inner.take("partial_rotary_factor", float, share)
        fields["rope_parameters"] = {
            one: value for one, value in inner.values.items() if one != "partial_rotary_factor"
        }
    if int(head * share) % 2 or int(head * share) != round(head * share):
        raise settings.error(f"partial_rotary_factor {share} of a head of {head} is no even number: it must be one")
    return rope_of(Settings(fields, settings.where)).replace(share=share)


def _write(config: Backbone.Config) -> dict[str, Any]:
    block = config.block
    rope = {} if config.rope is None else rope_written(config.rope)
    if config.rope is not None:
        rope["partial_rotary_factor"] = rope["rope_parameters"]["partial_rotary_factor"] = config.rope.share
    written = {
        "model_type": "persimmon", "vocab_size": config.vocab, "hidden_size": config.width,
        "intermediate_size": block.ffn.hidden, "num_hidden_layers": config.depth,
        "num_attention_heads": block.attention.heads, "hidden_act": activation_name(block.ffn.activation),
        "layer_norm_eps": block.norm.eps, "qk_layernorm": bool(block.attention.qk_norm),
        "tie_word_embeddings": config.tied, **rope,
    }  # fmt: skip
    return said(written, _read, config, "Persimmon")


PERSIMMON = Stack(
    ("persimmon",), "PersimmonForCausalLM", _read, _write, _rules, root="model.",
    spare=(f"{_LAYER}.self_attn.rotary_emb.inv_freq",), copies={"lm_head.weight": "model.embed_tokens.weight"},
)  # fmt: skip
