"""BLOOM (BigScience 2022, arXiv 2211.05100): LayerNorm behind the embedding and before, ALiBi, biases everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.convert.keys import Rule, Woven
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, said
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.relative import LinearBias

_LAYER = "transformer.h.{}"


def _rules(config: Backbone.Config) -> Sequence[Rule]:
    read = tuple(f"blocks.{{}}.attention.{one}.*" for one in "qkv")
    return (
        Rule("transformer.word_embeddings.weight", "embed.weight"),
        Rule("transformer.word_embeddings_layernorm.*", "embed_norm.*"),
        Rule("transformer.ln_f.*", "norm.*"),
        Rule("lm_head.weight", "head.weight"),
        Rule(f"{_LAYER}.input_layernorm.*", "blocks.{}.norm1.*"),
        Rule(f"{_LAYER}.post_attention_layernorm.*", "blocks.{}.norm2.*"),
        Rule(f"{_LAYER}.self_attention.query_key_value.*", read, Woven(config.block.attention.heads)),
        Rule(f"{_LAYER}.self_attention.dense.*", "blocks.{}.attention.o.*"),
        Rule(f"{_LAYER}.mlp.dense_h_to_4h.*", "blocks.{}.ffn.up.*"),
        Rule(f"{_LAYER}.mlp.dense_4h_to_h.*", "blocks.{}.ffn.down.*"),
    )


def _read(settings: Settings) -> Backbone.Config:
    settings.only("apply_residual_connection_post_layernorm", False)
    settings.skip("slow_but_exact", "seq_length", "offset_alibi", "masked_softmax_fusion", "attention_softmax_in_fp32",
                  "bias_dropout_fusion", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id")  # fmt: skip
    width = settings.count("hidden_size" if "hidden_size" in settings else "n_embed")
    settings.only("n_inner", None, 4 * width)
    block = Block.Config(
        attention=Attention.Config(heads=settings.count("n_head" if "n_head" in settings else "num_attention_heads"),
                                   bias=True),
        ffn=FeedForward.Config(hidden=4 * width, activation="gelu_tanh", gated=False, bias=True),
        norm=Norm.Config(kind="layer", eps=settings.take("layer_norm_epsilon", float, 1e-5)),
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("n_layer"), block=block,
        relative=LinearBias.Config(), embed_norm=True, tied=settings.take("tie_word_embeddings", bool, True),
    )  # fmt: skip


def _write(config: Backbone.Config) -> dict[str, Any]:
    written = {
        "model_type": "bloom", "vocab_size": config.vocab, "hidden_size": config.width, "n_layer": config.depth,
        "n_head": config.block.attention.heads, "layer_norm_epsilon": config.block.norm.eps,
        "tie_word_embeddings": config.tied,
    }  # fmt: skip
    return said(written, _read, config, "BLOOM")


BLOOM = Stack(
    ("bloom",), "BloomForCausalLM", _read, _write, _rules, root="transformer.",
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
)  # fmt: skip
