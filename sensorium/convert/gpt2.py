"""GPT-2 (Radford et al. 2019): LayerNorm before, learned positions, a plain feed-forward, biases everywhere."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Rule, Split, Transposed
from sensorium.convert.settings import Settings
from sensorium.convert.stack import ACTIVATIONS, Stack, activation, said
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm

_LAYER = "transformer.h.{}"
_RULES = (
    Rule("transformer.wte.weight", "embed.weight"),
    Rule("transformer.wpe.weight", "place.weight"),
    Rule("transformer.ln_f.*", "norm.*"),
    Rule("lm_head.weight", "head.weight"),
    Rule(f"{_LAYER}.ln_1.*", "blocks.{}.norm1.*"),
    Rule(f"{_LAYER}.ln_2.*", "blocks.{}.norm2.*"),
    Rule(f"{_LAYER}.attn.c_attn.*", tuple(f"blocks.{{}}.attention.{one}.*" for one in "qkv"), Split(Transposed())),
    Rule(f"{_LAYER}.attn.c_proj.*", "blocks.{}.attention.o.*", Transposed()),
    Rule(f"{_LAYER}.mlp.c_fc.*", "blocks.{}.ffn.up.*", Transposed()),
    Rule(f"{_LAYER}.mlp.c_proj.*", "blocks.{}.ffn.down.*", Transposed()),
)


def _read(settings: Settings) -> Backbone.Config:
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.skip("reorder_and_upcast_attn", "n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop")
    settings.skip(*(f"summary_{one}" for one in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")))
    width = settings.count("n_embd")
    ffn = FeedForward.Config(
        hidden=settings.count("n_inner", 4 * width), gated=False, bias=True,
        activation=activation(settings, "activation_function", "gelu_new"),
    )  # fmt: skip
    block = Block.Config(
        attention=Attention.Config(heads=settings.count("n_head"), bias=True), ffn=ffn,
        norm=Norm.Config(kind="layer", eps=settings.take("layer_norm_epsilon", float, 1e-5)),
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=settings.count("n_layer"), block=block,
        positions=settings.count("n_positions"), tied=settings.take("tie_word_embeddings", bool, True),
    )  # fmt: skip


def _write(config: Backbone.Config) -> dict[str, Any]:
    block = config.block
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()} | {"gelu_tanh": "gelu_new"}
    written = {
        "model_type": "gpt2", "vocab_size": config.vocab, "n_embd": config.width, "n_layer": config.depth,
        "n_head": block.attention.heads, "n_inner": block.ffn.hidden, "n_positions": config.positions,
        "activation_function": names[block.ffn.activation], "layer_norm_epsilon": block.norm.eps,
        "tie_word_embeddings": config.tied,
    }  # fmt: skip
    return said(written, _read, config, "GPT-2")


GPT2 = Stack(
    ("gpt2",), "GPT2LMHeadModel", _read, _write, lambda config: _RULES, root="transformer.",
    spare=(f"{_LAYER}.attn.bias", f"{_LAYER}.attn.masked_bias"),  # the causal mask, kept by old files
    copies={"lm_head.weight": "transformer.wte.weight"},
)  # fmt: skip
