"""The vision towers of BLIP, BLIP-2 and InstructBLIP: a ViT whose queries, keys and values are one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.convert.keys import Reshaped, Rule, Split
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name
from sensorium.convert.towers import patch_rule, same_tower
from sensorium.encoders.vit import CLIP_TRANSFORM, ViT, stack

_LAYER, _BLOCK = "encoder.layers.{}", "backbone.blocks.{}"


def _rules(config: ViT.Config) -> Sequence[Rule]:
    return [
        Rule("embeddings.class_embedding", "class_token", Reshaped(1, 1, -1)),
        Rule("embeddings.position_embedding", "place", Reshaped(1, -1, config.backbone.width)),
        patch_rule(config, "embeddings.patch_embedding"),
        Rule("embeddings.patch_embedding.bias", "patch.bias"),
        Rule(f"{_LAYER}.self_attn.qkv.*", tuple(f"{_BLOCK}.attention.{one}.*" for one in "qkv"), Split()),
        Rule(f"{_LAYER}.self_attn.projection.*", f"{_BLOCK}.attention.o.*"),
        *(Rule(f"{_LAYER}.layer_norm{one}.*", f"{_BLOCK}.norm{one}.*") for one in (1, 2)),
        Rule(f"{_LAYER}.mlp.fc1.*", f"{_BLOCK}.ffn.up.*"),
        Rule(f"{_LAYER}.mlp.fc2.*", f"{_BLOCK}.ffn.down.*"),
        Rule("post_layernorm.*", "backbone.norm.*"),
    ]


def _tower(kind: str, architecture: str, absent: dict[str, Any], qkv_bias: bool) -> Stack[ViT.Config]:
    """qkv_bias: whether its config says that queries, keys and values have a bias; otherwise they have."""

    def read(settings: Settings) -> ViT.Config:
        settings.only("num_channels", 3)
        settings.skip("projection_dim")
        backbone = stack(
            settings.count("hidden_size"), settings.count("num_hidden_layers"), settings.count("num_attention_heads"),
            settings.count("intermediate_size"), activation(settings, "hidden_act", "gelu"),
            settings.take("layer_norm_eps", float),
        )  # fmt: skip
        bias = settings.take("qkv_bias", bool, True) if qkv_bias else True
        attention = backbone.block.attention.replace(bias=bias, out_bias=None if bias else True)
        backbone = backbone.replace(block=backbone.block.replace(attention=attention))
        transform = CLIP_TRANSFORM.replace(size=settings.count("image_size"), resize="squash")
        return ViT.Config(transform=transform, backbone=backbone, patch=settings.count("patch_size"),
                          class_feature=True, cut=True)  # fmt: skip

    def write(config: ViT.Config) -> dict[str, Any]:
        block = config.backbone.block
        written = {
            "model_type": kind, "hidden_size": config.backbone.width, "num_hidden_layers": config.backbone.depth,
            "num_attention_heads": block.attention.heads, "intermediate_size": block.ffn.hidden,
            "hidden_act": activation_name(block.ffn.activation), "layer_norm_eps": block.norm.eps,
            "image_size": config.transform.size, "patch_size": config.patch,
        }  # fmt: skip
        if qkv_bias:
            written["qkv_bias"] = block.attention.bias
        same_tower(read(Settings(written)), config, kind)
        return written

    return Stack((kind,), architecture, read, write, _rules, absent=absent)


_VIT_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 384, "patch_size": 16, "layer_norm_eps": 1e-5}  # fmt: skip
_VIT_G = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
          "image_size": 224, "patch_size": 14, "layer_norm_eps": 1e-6}  # fmt: skip
BLIP_VISION = _tower("blip_vision_model", "BlipVisionModel", _VIT_B, qkv_bias=False)
BLIP_2_VISION = _tower("blip_2_vision_model", "Blip2VisionModel", _VIT_G, qkv_bias=True)
INSTRUCTBLIP_VISION = _tower("instructblip_vision_model", "InstructBlipVisionModel", _VIT_G, qkv_bias=True)
