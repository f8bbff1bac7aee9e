"""BEiT (Bao et al. 2021, arXiv 2106.08254): layer scale, keys without bias, a bias of cells in place of positions."""

from __future__ import annotations

from typing import Any

from sensorium.convert.keys import Reshaped, Rule
from sensorium.convert.settings import Settings
from sensorium.convert.vision import (
    CLASSIFIER,
    OLD_LAYER,
    POOLER,
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
from sensorium.nn.relative import CellBias

_TABLE = "relative_position_bias.relative_position_bias_table"
_SEGMENTS = ("use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs",
             "auxiliary_concat_input", "semantic_loss_ignore_index", "pool_scales", "add_fpn",
             "segmentation_indices")  # fmt: skip
"""Fields of the classes that cut pictures into segments."""


def _read(settings: Settings, transform: ImageTransform, names: set[str]) -> ViT.Config:
    settings.skip("vocab_size", "use_mask_token", *_SEGMENTS)
    view = view_of(settings, transform, fixed=True)
    patch = patch_of(settings, view)
    learned = settings.take("use_absolute_position_embeddings", bool, False)
    own = settings.take("use_relative_position_bias", bool, False)
    shared = settings.take("use_shared_relative_position_bias", bool, False)
    if view[0] != view[1] and (learned or own or shared):
        raise settings.error(f"image_size is {view}: the positions of this layout are for square views (the reference "
                             "reads a table of others by the wrong side)")  # fmt: skip
    cells = CellBias.Config(rows=view[0] // patch["patch"], cols=view[1] // patch["patch"], before=1)
    scale = settings.take("layer_scale_init_value", float, 0.1)
    attention = Attention.Config(heads=settings.count("num_attention_heads"), bias=True, key_bias=False)
    backbone = blocks(
        settings, settings.count("intermediate_size"), 1e-12, attention, layer_scale=scale if scale > 0 else None,
        relative=cells if own else None,
    )  # fmt: skip
    mean = settings.take("use_mean_pooling", bool, True)
    heads = {}
    if mean and holds(names, "pooler."):
        heads[POOLER] = Head.Config(reads="mean", norm=backbone.block.norm)
    return ViT.Config(
        transform=transform, class_feature=True, positions="learned" if learned else "none", heads=heads,
        backbone=backbone.replace(final_norm=not mean, relative=cells if shared else None),
        mask_token=holds(names, "embeddings.mask_token"), **patch,
    )  # fmt: skip


def _scores(config: ViT.Config) -> Head.Config:
    """The classifier reads what the pooler makes, whose norm is then its own."""
    mean = not config.backbone.final_norm
    return Head.Config(reads="mean", norm=config.backbone.block.norm) if mean else Head.Config()


def _write(config: ViT.Config) -> dict[str, Any]:
    backbone = config.backbone
    block = backbone.block
    return {
        **blocks_written(backbone), "intermediate_size": block.ffn.hidden, "patch_size": config.patch,
        "image_size": size_written(config.transform.view), "use_mask_token": config.mask_token,
        "use_absolute_position_embeddings": config.positions == "learned",
        "use_relative_position_bias": block.relative is not None,
        "use_shared_relative_position_bias": backbone.relative is not None,
        "layer_scale_init_value": block.layer_scale or 0.0, "use_mean_pooling": not backbone.final_norm,
    }  # fmt: skip


def _rules(config: ViT.Config) -> list[Rule]:
    mask = Rule("embeddings.mask_token", "mask_token", Reshaped(1, 1, -1))
    pooled = [name for name in (CLASSIFIER, POOLER) if name in config.heads and config.heads[name].norm is not None]
    scaled = {"lambda_1": "scale1", "lambda_2": "scale2", f"attention.attention.{_TABLE}": "relative.table"}
    return [
        *entry_rules(config), *layer_rules("encoder.layer.{}", {**OLD_LAYER, **scaled}),
        Rule(f"encoder.{_TABLE}", "backbone.relative.table"), Rule("layernorm.*", "backbone.norm.*"),
        *([mask] if config.mask_token else []),
        *(Rule("pooler.layernorm.*", f"heads.{name}.norm.*") for name in pooled),
    ]  # fmt: skip


BEIT = Alone(
    "beit", "Beit", "beit.", ViT.Config, _read, _write, _rules, _scores, "Beit",
    spare=tuple(f"{root}encoder.{one}relative_position_bias.relative_position_index"
                for root in ("", "beit.") for one in ("layer.{}.attention.attention.", "")),
)  # fmt: skip
