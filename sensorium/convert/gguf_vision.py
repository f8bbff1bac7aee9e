"""The eyes of a LLaVA in GGUF: a ViT and the MLP behind it, the "mmproj" file of llama.cpp's multimodal tools.

llama.cpp reads such towers as its LLaVA graph does: patches, a learned class token, positions from a table, a LayerNorm
before the first block (CLIP), pre-norm blocks, the output of the block that `clip.vision.feature_layer` names, a
LayerNorm behind it, then two linear layers with GELU between them (LLaVA-1.5), or with a LayerNorm behind each (Yi-VL).

It computes the projector's GELU, and a tower's, in its tanh form from a table of float16 numbers, so features agree to
about three digits. Towers with a class token need care: since mid-2025 llama.cpp puts it behind the patches, while
their positions and the choice of outputs count from it (llama.cpp's issue 25814). The file has the published order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sensorium.connectors.mlp import MLP
from sensorium.convert.gguf_draft import Draft
from sensorium.convert.keys import Rule, pairs
from sensorium.encoders.vit import ViT
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm

_FLAGS: dict[str, dict[str, bool]] = {
    "quick_gelu": {}, "gelu": {"clip.use_gelu": True}, "gelu_tanh": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
}  # fmt: skip
_PADDING = (122, 116, 104)
"""The colour around a picture that is not square, in llama.cpp's LLaVA."""
_TOWER = (
    Rule("v.pre_ln.*", "backbone.embed_norm.*"),
    Rule("v.blk.{}.ln1.*", "backbone.blocks.{}.norm1.*"),
    Rule("v.blk.{}.ln2.*", "backbone.blocks.{}.norm2.*"),
    *(Rule(f"v.blk.{{}}.attn_{one}.*", f"backbone.blocks.{{}}.attention.{one}.*") for one in "qkv"),
    Rule("v.blk.{}.attn_out.*", "backbone.blocks.{}.attention.o.*"),
    Rule("v.blk.{}.ffn_up.*", "backbone.blocks.{}.ffn.up.*"),
    Rule("v.blk.{}.ffn_down.*", "backbone.blocks.{}.ffn.down.*"),
)


def vision_draft(network: Fused, name: str) -> tuple[Draft, list[str]]:
    """The file of what a model sees with, and what llama.cpp does otherwise with it, in words.

    Raises UserError for an encoder or a connector that llama.cpp's LLaVA does not have.
    """
    encoder, connector = network.encoders["image"], network.connectors["image"]
    tower, projector = network.config.encoders["image"], network.config.connectors["image"]
    if not isinstance(encoder, ViT):
        raise UserError(f"llama.cpp's LLaVA looks through a ViT, this model through {tower.tag()}")
    if not isinstance(connector, MLP) or type(projector) is not MLP.Config:
        raise UserError(f"llama.cpp's LLaVA has an MLP behind its ViT, this model {projector.tag()}")
    _check_tower(encoder.config)
    _check_projector(projector, encoder.config)
    keys = _keys(encoder.config, network.config.backbone.width) | {"general.name": name}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from _tower(encoder)
        yield from _projector(connector)

    whole = ("v.patch_embd.weight", "v.position_embd.weight")
    return Draft("clip", keys, tensors, whole), _notes(encoder.config)


# ---- what can be said


def _check_tower(config: ViT.Config) -> None:
    stack, block, view = config.backbone, config.backbone.block, config.transform.view
    plain = Backbone.Config(
        width=stack.width, depth=stack.depth, embed_norm=stack.embed_norm, final_norm=stack.final_norm,
        tied=stack.tied, block=Block.Config(
            attention=Attention.Config(
                heads=block.attention.heads, bias=block.attention.bias, out_bias=block.attention.out_bias
            ),
            ffn=FeedForward.Config(hidden=block.ffn.hidden, activation=block.ffn.activation, gated=False,
                                   bias=block.ffn.bias),
            norm=Norm.Config(kind="layer", eps=block.norm.eps),
        ),
    )  # fmt: skip
    if stack != plain:
        raise UserError("llama.cpp's LLaVA has a ViT of plain pre-norm blocks with LayerNorm; this one is\n"
                        f"{stack.to_yaml()}")  # fmt: skip
    if block.ffn.activation not in _FLAGS:
        raise UserError(f"llama.cpp's ViT has {', '.join(_FLAGS)}, this one {block.ffn.activation}")
    for asked, what in ((config.class_feature, "class_feature: the feature of the class token as a token"),
                        (bool(config.levels), "levels: features of several blocks"),
                        (any(side % config.patch for side in view), "cut: pixels behind the last whole patch"),
                        (view[0] != view[1], "views that are not square"),
                        (config.transform.scaled is not None or config.transform.resize in ("centre", "keep"),
                         f"pictures as {config.transform.resize!r} makes them"),
                        (config.transform.first is not None, "first: pictures that are resized twice"),
                        (bool(config.registers), "registers"),
                        (config.positions == "none", "tower without a table of positions"),
                        (bool(config.transform.tiles) or config.transform.split, "tiles: several views of a picture"),
                        (config.out_norm and _final(config), "out_norm behind the stack's own norm")):  # fmt: skip
        if asked:
            raise UserError(f"llama.cpp's LLaVA has no {what}, which this model has")


def _final(config: ViT.Config) -> bool:
    """Whether features have gone through the stack's own last norm."""
    return config.backbone.final_norm and config.drop_last == 0 and config.normed


def _check_projector(config: MLP.Config, tower: ViT.Config) -> None:
    if config != MLP.Config(hidden=config.hidden, norm=config.norm):
        raise UserError("llama.cpp's LLaVA has two linear layers with biases behind its ViT, with GELU between them; "
                        f"this model\n{config.to_yaml()}")  # fmt: skip
    eps = tower.backbone.block.norm.eps
    if config.norm and eps != 1e-5:
        raise UserError(f"llama.cpp gives the projector's norms the ViT's epsilon, {eps}; this model's is 1e-05")


def _notes(config: ViT.Config) -> list[str]:
    notes = []
    transform = config.transform
    colour = transform.pad_color or tuple(int(255 * channel) for channel in transform.mean)
    how = {"squash": "squashes it", "shortest": "cuts out its centre", "pad": f"pads it with {colour} and resizes it"}
    notes.append(f"llama.cpp resizes a picture that is not square and pads it with {_PADDING}; this model "
                 f"{how[transform.resize]}: the numbers are the same for square pictures")  # fmt: skip
    if transform.filter != "bicubic":
        notes.append(f"llama.cpp resizes pictures bicubic, this model {transform.filter}: give pictures of "
                     f"{transform.size} pixels")  # fmt: skip
    if config.class_token:
        notes.append("llama.cpp since mid-2025 puts the class token behind the patches (its issue 25814): "
                     "answers differ until that is mended there")  # fmt: skip
    return notes


# ---- keys and tensors


def _depth(config: ViT.Config) -> int:
    """Blocks that count."""
    return config.backbone.depth - config.drop_last


def _keys(config: ViT.Config, width: int) -> dict[str, Any]:
    block, transform = config.backbone.block, config.transform
    return {
        "general.type": "mmproj", "clip.has_vision_encoder": True, "clip.projector_type": "mlp",
        "clip.vision.image_size": transform.view[0], "clip.vision.patch_size": config.patch,
        "clip.vision.embedding_length": config.backbone.width, "clip.vision.feed_forward_length": block.ffn.hidden,
        "clip.vision.projection_dim": width, "clip.vision.attention.head_count": block.attention.heads,
        "clip.vision.attention.layer_norm_epsilon": block.norm.eps, "clip.vision.block_count": _depth(config),
        "clip.vision.feature_layer": [_depth(config)],
        "clip.vision.image_mean": list(transform.mean), "clip.vision.image_std": list(transform.std),
        **_FLAGS[block.ffn.activation],
    }  # fmt: skip


def _tower(encoder: ViT) -> Iterator[tuple[str, Tensor]]:
    config = encoder.config
    patch = encoder.patch
    yield "v.patch_embd.weight", patch.weight.reshape(-1, 3, config.patch, config.patch)
    if patch.bias is not None:
        yield "v.patch_embd.bias", patch.bias
    table = encoder.table()
    assert table is not None
    if encoder.class_token is not None:
        yield "v.class_embd", encoder.class_token
    yield "v.position_embd.weight", table
    own = encoder.state_dict()
    counted = tuple(f"backbone.blocks.{index}." for index in range(_depth(config)))
    for pair in pairs(_TOWER, [name for name in own if name.startswith((*counted, "backbone.embed_norm."))]):
        yield from pair.back([own[name] for name in pair.ours]).items()
    last = encoder.norm if config.out_norm else encoder.backbone.norm if _final(config) else None
    if last is not None:
        yield from ((f"v.post_ln.{name}", tensor) for name, tensor in last.state_dict().items())


def _projector(connector: MLP) -> Iterator[tuple[str, Tensor]]:
    """mm.0, (GELU,) mm.2; with norms mm.0, mm.1 (norm), (GELU,) mm.3, mm.4 (norm)."""
    parts = [connector.layers[0], connector.layers[1]]
    places = [0, 2]
    if len(connector.norms):
        parts, places = [parts[0], connector.norms[0], parts[1], connector.norms[1]], [0, 1, 3, 4]
    for place, part in zip(places, parts, strict=True):
        yield from ((f"mm.{place}.{name}", tensor) for name, tensor in part.state_dict().items())
