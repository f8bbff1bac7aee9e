"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), with registers (Darcet et al. 2023, 2309.16588), and DINOv3's ViT
(Siméoni et al. 2025, 2508.10104).
"""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Reshaped, Rule, Split
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation
from sensorium.convert.vision import (
    OLD_ATTENTION,
    Alone,
    blocks,
    blocks_written,
    entry_rules,
    holds,
    layer_rules,
    patch_of,
    size_written,
    view_of,
)
from sensorium.encoders.head import Head
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT
from sensorium.nn.attention import Attention
from sensorium.nn.ffn import FeedForward
from sensorium.nn.rope import Rope

_SCALED = {
    "norm1.*": "norm1.*",
    "norm2.*": "norm2.*",
    "layer_scale1.lambda1": "scale1",
    "layer_scale2.lambda1": "scale2",
}


# ---- DINOv2


def _hidden(width: int, ratio: float, gated: bool) -> int:
    """Width of the feed-forward: where it is gated two thirds of the plain one's, up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _read(settings: Settings, transform: ImageTransform, names: set[str]) -> ViT.Config:
    settings.skip("use_mask_token")
    gated = settings.take("use_swiglu_ffn", bool, False)
    hidden = _hidden(settings.count("hidden_size"), settings.take("mlp_ratio", float, 4.0), gated)
    ffn: dict[str, Any] = {"ffn": FeedForward.Config(hidden=hidden, activation="silu", bias=True)} if gated else {}
    trained = view_of(settings, transform, fixed=False)
    if trained[0] != trained[1]:
        raise settings.error(f"image_size is {trained}: positions of square views alone can be interpolated")
    return ViT.Config(
        transform=transform, class_feature=True, trained_size=None if trained == transform.view else trained[0],
        backbone=blocks(settings, hidden, 1e-6, layer_scale=settings.take("layerscale_value", float, 1.0), **ffn),
        mask_token=holds(names, "embeddings.mask_token"), **patch_of(settings, transform.view, trained),
    )  # fmt: skip


def _read_registers(settings: Settings, transform: ImageTransform, names: set[str]) -> ViT.Config:
    registers = settings.count("num_register_tokens", 4, least=0)
    return _read(settings, transform, names).replace(registers=registers, antialias=True)


def _write(config: ViT.Config) -> dict[str, Any]:
    backbone = config.backbone
    block, width = backbone.block, backbone.width
    gated = block.ffn.gated
    ratio = next((one for one in range(1, 33) if _hidden(width, one, gated) == block.ffn.hidden), 0)
    return {
        **blocks_written(backbone), "mlp_ratio": ratio, "use_swiglu_ffn": gated, "patch_size": config.patch,
        "qkv_bias": block.attention.bias, "image_size": size_written(config.trained_view),
        "layerscale_value": block.layer_scale or 0.0,
    }  # fmt: skip


def _write_plain(config: ViT.Config) -> dict[str, Any]:
    return {**_write(config), "use_mask_token": config.mask_token}


def _write_registers(config: ViT.Config) -> dict[str, Any]:
    return {**_write(config), "num_register_tokens": config.registers or 0}


def _rules(config: ViT.Config) -> list[Rule]:
    layer, block = "encoder.layer.{}", "backbone.blocks.{}.ffn"
    if config.backbone.block.ffn.gated:
        inner = [
            Rule(f"{layer}.mlp.weights_in.*", (f"{block}.gate.*", f"{block}.up.*"), Split()),
            Rule(f"{layer}.mlp.weights_out.*", f"{block}.down.*"),
        ]
    else:
        inner = layer_rules(layer, {"mlp.fc1.*": "ffn.up.*", "mlp.fc2.*": "ffn.down.*"})
    mask = Rule("embeddings.mask_token", "mask_token", Reshaped(1, -1))
    return [
        *entry_rules(config), *layer_rules(layer, {**OLD_ATTENTION, **_SCALED}), *inner,
        *([mask] if config.mask_token else []), Rule("layernorm.*", "backbone.norm.*"),
    ]  # fmt: skip


def _scores(config: ViT.Config) -> Head.Config:
    return Head.Config(reads="both")


DINOV2 = Alone("dinov2", "Dinov2", "dinov2.", ViT.Config, _read, _write_plain, _rules, _scores, "Bit")
DINOV2_REGISTERS = Alone(
    "dinov2_with_registers", "Dinov2WithRegisters", "dinov2_with_registers.", ViT.Config, _read_registers,
    _write_registers, _rules, _scores, "Bit",
)  # fmt: skip


# ---- DINOv3


def _read_v3(settings: Settings, transform: ImageTransform, names: set[str]) -> ViT.Config:
    # image_size: positions are those of the view that is there; the others change what training sees
    settings.skip("image_size", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    bias = settings.take("query_bias", bool, True)
    settings.only("value_bias", bias)
    if "value_bias" not in settings and not bias:
        raise settings.error("query_bias is False, and values have a bias where value_bias says nothing: only both or "
                             "none can be said here")  # fmt: skip
    key, out = settings.take("key_bias", bool, False), settings.take("proj_bias", bool, True)
    attention = Attention.Config(heads=heads, bias=bias, key_bias=key, out_bias=out)
    if width % (4 * heads):
        raise settings.error(f"hidden_size {width} over {heads} heads is no multiple of 4: a head's width is turned by "
                             "rows and columns, in pairs")  # fmt: skip
    section = width // heads // 4
    hidden = settings.count("intermediate_size")
    ffn = FeedForward.Config(
        hidden=hidden, gated=settings.take("use_gated_mlp", bool, False), bias=settings.take("mlp_bias", bool, True),
        activation=activation(settings, "hidden_act", "gelu"),
    )  # fmt: skip
    scale = settings.take("layerscale_value", float, 1.0)
    rope = Rope.Config(theta=settings.take("rope_theta", float, 100.0), sections=(0, section, section), own=True)
    return ViT.Config(
        transform=transform, backbone=blocks(settings, hidden, 1e-5, attention, ffn=ffn, layer_scale=scale)
        .replace(rope=rope),
        registers=settings.count("num_register_tokens", 0, least=0), class_feature=True, mask_token=True,
        positions="none", place="centres", **patch_of(settings, transform.view),
    )  # fmt: skip


def _write_v3(config: ViT.Config) -> dict[str, Any]:
    backbone = config.backbone
    block = backbone.block
    attention, ffn, rope = block.attention, block.ffn, backbone.rope or Rope.Config()
    key = attention.bias if attention.key_bias is None else attention.key_bias
    out = attention.bias if attention.out_bias is None else attention.out_bias
    return {
        **blocks_written(backbone), "intermediate_size": ffn.hidden, "use_gated_mlp": ffn.gated, "mlp_bias": ffn.bias,
        "query_bias": attention.bias, "key_bias": key, "value_bias": attention.bias, "proj_bias": out,
        "rope_theta": rope.theta, "layerscale_value": block.layer_scale or 0.0, "patch_size": config.patch,
        "num_register_tokens": config.registers or 0, "image_size": size_written(config.transform.view),
    }  # fmt: skip


def _rules_v3(config: ViT.Config) -> list[Rule]:
    attention = {f"attention.{one}_proj.*": f"attention.{one}.*" for one in "qkvo"}
    inner = {f"mlp.{one}_proj.*": f"ffn.{one}.*" for one in ("gate", "up", "down")}
    return [
        *entry_rules(config, "embeddings.patch_embeddings"),
        *layer_rules("layer.{}", {**attention, **inner, **_SCALED}),
        Rule("embeddings.mask_token", "mask_token", Reshaped(1, 1, -1)), Rule("norm.*", "backbone.norm.*"),
    ]  # fmt: skip


DINOV3 = Alone("dinov3_vit", "DINOv3ViT", "", ViT.Config, _read_v3, _write_v3, _rules_v3, None, "DINOv3ViT")
