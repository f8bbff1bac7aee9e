"""The text towers of CLIP and SigLIP: LayerNorm before, learned positions, a plain feed-forward, biases everywhere."""

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

_LAYER = "encoder.layers.{}"
_RULES = (
    Rule("embeddings.token_embedding.weight", "embed.weight"),
    Rule("embeddings.position_embedding.weight", "place.weight"),
    Rule("final_layer_norm.*", "norm.*"),
    *(Rule(f"{_LAYER}.self_attn.{one}_proj.*", f"blocks.{{}}.attention.{one}.*") for one in "qkv"),
    Rule(f"{_LAYER}.self_attn.out_proj.*", "blocks.{}.attention.o.*"),
    Rule(f"{_LAYER}.layer_norm1.*", "blocks.{}.norm1.*"),
    Rule(f"{_LAYER}.layer_norm2.*", "blocks.{}.norm2.*"),
    Rule(f"{_LAYER}.mlp.fc1.*", "blocks.{}.ffn.up.*"),
    Rule(f"{_LAYER}.mlp.fc2.*", "blocks.{}.ffn.down.*"),
)


def _read(settings: Settings) -> Backbone.Config:
    settings.skip("projection_dim", "projection_size")  # of what stands behind the tower
    ffn = FeedForward.Config(
        hidden=settings.count("intermediate_size"), gated=False, bias=True,
        activation=activation(settings, "hidden_act", "gelu"),
    )  # fmt: skip
    block = Block.Config(
        attention=Attention.Config(heads=settings.count("num_attention_heads"), bias=True), ffn=ffn,
        norm=Norm.Config(kind="layer", eps=settings.take("layer_norm_eps", float, 1e-5)),
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size"), width=settings.count("hidden_size"), block=block,
        depth=settings.count("num_hidden_layers"), positions=settings.count("max_position_embeddings"),
    )  # fmt: skip


def _write(config: Backbone.Config, kind: str) -> dict[str, Any]:
    block = config.block
    return {
        "model_type": kind, "vocab_size": config.vocab, "hidden_size": config.width,
        "intermediate_size": block.ffn.hidden, "num_hidden_layers": config.depth,
        "num_attention_heads": block.attention.heads, "hidden_act": activation_name(block.ffn.activation),
        "layer_norm_eps": block.norm.eps, "max_position_embeddings": config.positions,
    }  # fmt: skip


def _stack(kind: str, architecture: str, absent: dict[str, Any]) -> Stack[Backbone.Config]:
    """A tower. Which of its tokens see which is for the wiring to say."""
    return Stack(
        (kind,), architecture, _read, lambda config: said(_write(config, kind), _read, config, architecture),
        lambda config: _RULES, spare=("embeddings.position_ids",), absent=absent,
    )  # fmt: skip


CLIP_TEXT = _stack(
    "clip_text_model", "CLIPTextModel",
    {"vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
     "num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
)  # fmt: skip
_SIGLIP = {
    "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}  # fmt: skip
SIGLIP_TEXT = _stack("siglip_text_model", "SiglipTextModel", _SIGLIP)
SIGLIP2_TEXT = _stack("siglip2_text_model", "Siglip2TextModel", _SIGLIP)
