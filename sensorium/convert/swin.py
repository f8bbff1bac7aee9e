"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030)."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Reshaped, Rule
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name
from sensorium.convert.vision import OLD_LAYER, Alone, holds, patch_of, size_written, view_of
from sensorium.encoders.head import Head
from sensorium.encoders.swin import Swin
from sensorium.encoders.transform import ImageTransform

_LAYER = {
    **{there: here for there, here in OLD_LAYER.items() if not there.startswith("attention.attention")},
    **{f"attention.self.{there}.*": f"attention.{there[0]}.*" for there in ("query", "key", "value")},
    "attention.self.relative_position_bias_table": "relative.table",
}


def _read(settings: Settings, transform: ImageTransform, names: set[str]) -> Swin.Config:
    settings.skip("hidden_size", "num_layers", "path_norm")  # two that follow from the others, one that nothing reads
    depths, heads = settings.take("depths", list), settings.take("num_heads", list)
    if len(depths) != len(heads) or not all(isinstance(one, int) and one > 0 for one in (*depths, *heads)):
        raise settings.error(f"depths {depths} and num_heads {heads}: expected one number of each for every stage")
    positions = settings.take("use_absolute_embeddings", bool, False)
    view = view_of(settings, transform, fixed=positions)
    patch = patch_of(settings, view)
    if positions and patch["cut"]:
        raise settings.error(f"image_size {view} is no multiple of patch_size {patch['patch']}, and learned positions "
                             "(use_absolute_embeddings) are for whole patches")  # fmt: skip
    return Swin.Config(
        transform=transform, dim=settings.count("embed_dim"), stages=tuple(zip(depths, heads)), patch=patch["patch"],
        window=settings.count("window_size"), ratio=settings.take("mlp_ratio", float, 4.0),
        bias=settings.take("qkv_bias", bool, True), activation=activation(settings, "hidden_act", "gelu"),
        eps=settings.take("layer_norm_eps", float, 1e-5), positions=positions,
        mask_token=holds(names, "embeddings.mask_token"),
    )  # fmt: skip


def _write(config: Swin.Config) -> dict[str, Any]:
    depths, heads = zip(*config.stages)
    return {
        "image_size": size_written(config.transform.view), "patch_size": config.patch, "embed_dim": config.dim,
        "depths": list(depths), "num_heads": list(heads), "window_size": config.window, "mlp_ratio": config.ratio,
        "qkv_bias": config.bias, "hidden_act": activation_name(config.activation), "layer_norm_eps": config.eps,
        "use_absolute_embeddings": config.positions, "hidden_size": config.width,
    }  # fmt: skip


def _rules(config: Swin.Config) -> list[Rule]:
    patch, row = "embeddings.patch_embeddings.projection", Reshaped(1, -1, config.dim)
    block = "encoder.layers.{}.blocks.{}"
    mask = Rule("embeddings.mask_token", "mask_token", row)
    return [
        Rule(f"{patch}.weight", "patch.weight", Reshaped(-1, 3, config.patch, config.patch)),
        Rule(f"{patch}.bias", "patch.bias"), Rule("embeddings.norm.*", "patch_norm.*"),
        Rule("embeddings.position_embeddings", "place", row), *([mask] if config.mask_token else []),
        *(Rule(f"{block}.{there}", f"stages.{{}}.{{}}.{here}") for there, here in _LAYER.items()),
        Rule("encoder.layers.{}.downsample.norm.*", "merge.{}.norm.*"),
        Rule("encoder.layers.{}.downsample.reduction.*", "merge.{}.linear.*"), Rule("layernorm.*", "norm.*"),
    ]  # fmt: skip


SWIN = Alone(
    "swin", "Swin", "swin.", Swin.Config, _read, _write, _rules, lambda config: Head.Config(reads="mean"),
    spare=tuple(f"{root}encoder.layers.{{}}.blocks.{{}}.attention.self.relative_position_index"
                for root in ("", "swin.")),
)  # fmt: skip
