"""Vision towers of CLIP and SigLIP: a ViT each, alone or inside another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.convert.keys import Reshaped, Rule
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name, same
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import CLIP_TRANSFORM, ViT, stack

_LAYER, _BLOCK = "encoder.layers.{}", "backbone.blocks.{}"


def layers(final: str) -> list[Rule]:
    """The blocks that both have, and the norm behind them."""
    attention = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
    return [
        Rule("embeddings.position_embedding.weight", "place"),
        *(Rule(f"{_LAYER}.self_attn.{there}.*", f"{_BLOCK}.attention.{here}.*") for there, here in attention),
        Rule(f"{_LAYER}.layer_norm1.*", f"{_BLOCK}.norm1.*"),
        Rule(f"{_LAYER}.layer_norm2.*", f"{_BLOCK}.norm2.*"),
        Rule(f"{_LAYER}.mlp.fc1.*", f"{_BLOCK}.ffn.up.*"),
        Rule(f"{_LAYER}.mlp.fc2.*", f"{_BLOCK}.ffn.down.*"),
        Rule(f"{final}.*", "backbone.norm.*"),
    ]


def patch_rule(config: ViT.Config, name: str) -> Rule:
    """A convolution over patches is a linear layer of them."""
    return Rule(f"{name}.weight", "patch.weight", Reshaped(-1, 3, config.patch, config.patch))


def _clip_rules(config: ViT.Config) -> Sequence[Rule]:
    return [
        Rule("embeddings.class_embedding", "class_token"),
        patch_rule(config, "embeddings.patch_embedding"),
        Rule("pre_layrnorm.*", "backbone.embed_norm.*"),
        *layers("post_layernorm"),
    ]


def _siglip_rules(config: ViT.Config) -> Sequence[Rule]:
    patch = "embeddings.patch_embedding"
    return [patch_rule(config, patch), Rule(f"{patch}.bias", "patch.bias"), *layers("post_layernorm")]


def _read(settings: Settings, transform: ImageTransform, clip: bool) -> ViT.Config:
    settings.only("num_channels", 3)
    settings.skip("projection_dim", "vocab_size", "num_image_tokens", "projector_hidden_act")  # of models around it
    width = settings.count("hidden_size")
    backbone = stack(
        width, settings.count("num_hidden_layers"), settings.count("num_attention_heads"),
        settings.count("intermediate_size"), activation(settings, "hidden_act", "quick_gelu"),
        settings.take("layer_norm_eps", float, 1e-5), embed_norm=clip,
    )  # fmt: skip
    size = settings.count("image_size")
    return ViT.Config(
        transform=transform.replace(size=size), backbone=backbone, patch=settings.count("patch_size"),
        patch_bias=not clip, class_token=clip, cut=True,
    )  # fmt: skip


def _read_clip(settings: Settings) -> ViT.Config:
    return _read(settings, CLIP_TRANSFORM, clip=True)


def _read_siglip(settings: Settings) -> ViT.Config:
    settings.only("vision_use_head", False)
    return _read(settings, ImageTransform(resize="squash"), clip=False)


def _write(config: ViT.Config, kind: str, clip: bool) -> dict[str, Any]:
    block = config.backbone.block
    written = {
        "model_type": kind, "hidden_size": config.backbone.width, "num_hidden_layers": config.backbone.depth,
        "num_attention_heads": block.attention.heads, "intermediate_size": block.ffn.hidden, "num_channels": 3,
        "hidden_act": activation_name(block.ffn.activation), "layer_norm_eps": block.norm.eps,
        "image_size": config.transform.size, "patch_size": config.patch,
    }  # fmt: skip
    if not clip:
        written["vision_use_head"] = False
    same_tower((_read_clip if clip else _read_siglip)(Settings(written)), config, kind)
    return written


def same_tower(read: ViT.Config, config: ViT.Config, name: str) -> None:
    """Raises UserError where a tower that was written reads as another one. Pictures, and which of its states are used,
    are not the tower's own to say."""
    whole = config.transform.size % config.patch == 0
    first, second = (
        one.replace(transform=read.transform, drop_last=0, class_feature=False, levels=(), normed=True,
                    cut=one.cut or whole)
        for one in (read, config)
    )  # fmt: skip
    same(second.model_dump(mode="json"), first.model_dump(mode="json"), name)


CLIP_VISION = Stack(
    ("clip_vision_model",), "CLIPVisionModel", _read_clip, lambda config: _write(config, "clip_vision_model", True),
    _clip_rules, spare=("embeddings.position_ids",),
    absent={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
)  # fmt: skip
SIGLIP_VISION = Stack(
    ("siglip_vision_model",), "SiglipVisionModel", _read_siglip,
    lambda config: _write(config, "siglip_vision_model", False), _siglip_rules, spare=("embeddings.position_ids",),
    absent={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
)  # fmt: skip
