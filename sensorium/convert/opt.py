"""OPT (Zhang et al. 2022, arXiv 2205.01068): LayerNorm before, learned positions that begin at row 2, ReLU, biases."""

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

UNUSED = 2
"""Rows of the table of positions that no token takes: fairseq counts positions from 2."""
_LAYER = "model.decoder.layers.{}"
_RULES = (
    Rule("model.decoder.embed_tokens.weight", "embed.weight"),
    Rule("model.decoder.embed_positions.weight", "place.weight"),
    Rule("model.decoder.final_layer_norm.*", "norm.*"),
    Rule("lm_head.weight", "head.weight"),
    *(Rule(f"{_LAYER}.self_attn.{one}_proj.*", f"blocks.{{}}.attention.{one}.*") for one in "qkv"),
    Rule(f"{_LAYER}.self_attn.out_proj.*", "blocks.{}.attention.o.*"),
    Rule(f"{_LAYER}.self_attn_layer_norm.*", "blocks.{}.norm1.*"),
    Rule(f"{_LAYER}.final_layer_norm.*", "blocks.{}.norm2.*"),
    Rule(f"{_LAYER}.fc1.*", "blocks.{}.ffn.up.*"),
    Rule(f"{_LAYER}.fc2.*", "blocks.{}.ffn.down.*"),
)


def _read(settings: Settings) -> Backbone.Config:
    settings.only("do_layer_norm_before", True)
    settings.only("_remove_final_layer_norm", False)
    settings.only("layer_norm_elementwise_affine", True)
    settings.skip("init_std", "activation_dropout")
    width = settings.count("hidden_size")
    settings.only("word_embed_proj_dim", width)
    bias = settings.take("enable_bias", bool, True)
    ffn = FeedForward.Config(
        hidden=settings.count("ffn_dim"), gated=False, bias=bias,
        activation=activation(settings, "activation_function", "relu"),
    )  # fmt: skip
    block = Block.Config(
        attention=Attention.Config(heads=settings.count("num_attention_heads"), bias=bias), ffn=ffn,
        norm=Norm.Config(kind="layer", eps=1e-5),
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("num_hidden_layers"), block=block,
        positions=settings.count("max_position_embeddings"), unused_positions=UNUSED,
        tied=settings.take("tie_word_embeddings", bool, True),
    )  # fmt: skip


def _write(config: Backbone.Config) -> dict[str, Any]:
    block = config.block
    written = {
        "model_type": "opt", "vocab_size": config.vocab, "hidden_size": config.width,
        "word_embed_proj_dim": config.width, "num_hidden_layers": config.depth,
        "num_attention_heads": block.attention.heads, "ffn_dim": block.ffn.hidden, "enable_bias": block.ffn.bias,
        "activation_function": activation_name(block.ffn.activation), "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.positions,
    }  # fmt: skip
    return said(written, _read, config, "OPT")


OPT = Stack(
    ("opt",), "OPTForCausalLM", _read, _write, lambda config: _RULES, root="model.",
    copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)  # fmt: skip
