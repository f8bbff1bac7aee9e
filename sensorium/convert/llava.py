"""LLaVA 1.5 (Liu et al. 2023, arXiv 2310.03744), LLaVA-NeXT (its pictures in tiles) and VipLLaVA (Cai et al. 2023,
2312.00784): a vision tower, a projector, a language model.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sensorium.connectors.anyres import AnyRes
from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.language import LANGUAGE
from sensorium.convert.layout import Family
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import part, stack_for
from sensorium.convert.towers import CLIP_VISION, SIGLIP_VISION
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.norm import Norm
from sensorium.template import Template

TOWERS = (CLIP_VISION, SIGLIP_VISION)
_CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
C = TypeVar("C", bound=Connector.Config)


def _read_llava(files: Files) -> Wiring.Config:
    tower = tower_of(files.config)
    transform = transform_of(files.pictures)
    return fused(files, tower, transform, MLP.Config(bias=files.config.take("multimodal_projector_bias", bool, True)))


def _read_next(files: Files) -> Wiring.Config:
    config = files.config
    tower = tower_of(config)
    size = tower.transform.size
    if tower.class_feature:
        raise config.error("vision_feature_select_strategy 'full' keeps class tokens, and tiles are put together of "
                           "patches alone: only 'default' can be said here")  # fmt: skip
    canvases = config.take("image_grid_pinpoints", list, _CANVASES)
    pictured = files.pictures.take("image_grid_pinpoints", list, _CANVASES)
    if canvases != pictured:
        raise config.error(f"image_grid_pinpoints are {canvases}, and those of the image processor {pictured}: the "
                           "files are of different models")  # fmt: skip
    config.only("use_image_newline_parameter", True)
    files.pictures.only("do_pad", True)
    plain = transform_of(files.pictures)
    # the whole picture is squashed into a view, and what the tiles leave free is black before it is normalised
    transform = plain.replace(resize="squash", tiles=tuple(map(tuple, canvases)), pad_color=(0, 0, 0))
    if any(side % size for canvas in transform.tiles for side in canvas):
        raise config.error(f"image_grid_pinpoints {canvases} must be multiples of the tower's {size} pixels")
    inner = MLP.Config(bias=config.take("multimodal_projector_bias", bool, True))
    return fused(files, tower, transform, AnyRes.Config(inner=inner))


def _read_vip(files: Files) -> Wiring.Config:
    config = files.config
    _, tower = part(config, "vision_config", TOWERS, "clip_vision_model")
    if not tower.class_token:
        raise config.error("its vision tower has no class token, and the first feature is left out: it needs one")
    layers = config.take("vision_feature_layers", (int, list), config.take("vision_feature_layer", (int, list),
                                                                            [-2, -5, -8, -11, 6]))  # fmt: skip
    eps = config.take("projector_layernorm_eps", float, 1e-5)
    config.only("projector_hidden_act", "gelu")
    entry = Norm.Config(kind="layer", eps=eps)
    return fused(files, layers_read(tower, layers, config), transform_of(files.pictures), MLP.Config(entry=entry))


def tower_of(config: Settings) -> ViT.Config:
    """The vision tower of a config, and which of its states are read."""
    _, tower = part(config, "vision_config", TOWERS, "clip_vision_model")
    config.only("projector_hidden_act", "gelu")
    whole = config.choose("vision_feature_select_strategy", {"default": False, "full": True}, "default")
    if not tower.class_token and not whole:
        raise config.error("vision_feature_select_strategy 'default' leaves out the first feature, and this tower's "
                           "first is no class token but a patch: only 'full' can be said here")  # fmt: skip
    tower = layers_read(tower, config.take("vision_feature_layer", (int, list), -2), config)
    return tower.replace(class_feature=tower.class_token and whole)


def fused(
    files: Files, tower: ViT.Config, transform: ImageTransform, connector: Connector.Config
) -> Fused.Config:  # fmt: skip
    """The tower with its pictures as the folder says, the connector, and the language model of the folder."""
    config = files.config
    _, backbone = part(config, "text_config", LANGUAGE, "llama")
    tied = config.take("tie_word_embeddings", bool, None)
    if tied is not None and tied != backbone.tied:
        backbone = backbone.replace(tied=tied)
    config.skip("image_token_index", "image_token_id", "image_seq_length", "ignore_index", "vocab_size")
    files.processor.skip("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "chat_template")
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    return Fused.Config(
        encoders={"image": tower.replace(transform=transform)}, connectors={"image": connector}, backbone=backbone
    )


def layers_read(tower: ViT.Config, said: int | list[int], settings: Settings) -> ViT.Config:
    """The tower, of which the states numbered as in `hidden_states` are read: 0 before the first block, -1 the last."""
    depth = tower.backbone.depth
    layers = said if isinstance(said, list) else [said]
    numbers = [layer if layer >= 0 else depth + 1 + layer for layer in layers]
    if not numbers or not all(1 <= number <= depth for number in numbers):
        raise settings.error(f"vision_feature_layer {layers}: there are blocks 1 to {depth}, or -{depth} to -1")
    first, *others = numbers
    if any(other > first for other in others):
        raise settings.error(f"vision_feature_layer {layers} begins before the last of them: this cannot be said here")
    return tower.replace(drop_last=depth - first, normed=first < depth, levels=tuple(others))


def layer_numbers(tower: ViT.Config) -> list[int]:
    """The states that are read, as `vision_feature_layer` says them: the last as -1."""
    depth = tower.backbone.depth
    if tower.drop_last == 0 and tower.normed:
        raise UserError(
            "the layout reads the states of a tower before its final norm: this model reads those behind it"
        )
    return [-1 - tower.drop_last, *(level - depth - 1 for level in tower.levels)]


def _write_llava(model: Wiring.Config) -> Written:
    tower, connector, backbone = parts_of(model, "LLaVA", MLP.Config)
    if connector != MLP.Config(bias=connector.bias):
        raise UserError(f"the layout of LLaVA has two linear layers with GELU between them, this model {connector}")
    return written("llava", "LlavaProcessor", tower, backbone, {"multimodal_projector_bias": connector.bias})


def _write_next(model: Wiring.Config) -> Written:
    tower, connector, backbone = parts_of(model, "LLaVA-NeXT", AnyRes.Config)
    inner, transform = connector.inner, tower.transform
    if not isinstance(inner, MLP.Config) or inner != MLP.Config(bias=inner.bias):
        raise UserError(f"the layout of LLaVA-NeXT has two linear layers with GELU between them, this model {inner}")
    if not transform.tiles or transform.resize != "squash" or transform.pad_color != (0, 0, 0):
        raise UserError("the layout of LLaVA-NeXT has pictures squashed into a view and cut into tiles on black: this "
                        f"model has resize {transform.resize!r}, tiles {transform.tiles}, pad_color "
                        f"{transform.pad_color}")  # fmt: skip
    canvases = {"image_grid_pinpoints": [list(canvas) for canvas in transform.tiles]}
    plain = tower.replace(transform=transform.replace(tiles=(), pad_color=None))
    said = written("llava_next", "LlavaNextProcessor", plain, backbone,
                   {"multimodal_projector_bias": inner.bias, **canvases})  # fmt: skip
    said.pictures |= {**canvases, "do_pad": True, "image_processor_type": "LlavaNextImageProcessor"}
    return said


def _write_vip(model: Wiring.Config) -> Written:
    tower, connector, backbone = parts_of(model, "VipLLaVA", MLP.Config)
    entry = connector.entry
    if entry is None or entry.kind != "layer" or connector != MLP.Config(entry=entry) or tower.class_feature:
        raise UserError("the layout of VipLLaVA has a LayerNorm and two linear layers with GELU between them, without "
                        f"class features; this model has {connector}")  # fmt: skip
    said = written("vipllava", "LlavaProcessor", tower, backbone, {"projector_layernorm_eps": entry.eps})
    del said.config["vision_feature_select_strategy"]
    return said


def parts_of(
    model: Wiring.Config, name: str, connects: type[C]
) -> tuple[ViT.Config, C, Backbone.Config]:  # fmt: skip
    """Tower, connector and language model. Raises UserError for a model of other parts."""
    if isinstance(model, Fused.Config) and tuple(model.kinds) == ("image",) and "image" in model.connectors:
        tower, connector = model.encoders.get("image"), model.connectors["image"]
        plain = Fused.Config(encoders=model.encoders, connectors=model.connectors, backbone=model.backbone)
        if isinstance(tower, ViT.Config) and isinstance(connector, connects) and plain == model:
            return tower, connector, model.backbone
    raise OtherKind(f"the layout of {name} holds a ViT, {connects.tag()} and a language model that reads pictures "
                    f"among its words; this model is another: {model.tag()} with {_parts(model)}")  # fmt: skip


def _parts(model: Wiring.Config) -> str:
    own = [*model.encoders.values(), *model.connectors.values(), *model.codecs.values()]
    return ", ".join(one.tag() for one in own) or "no items"


def written(
    kind: str, processor: str, tower: ViT.Config, backbone: Backbone.Config, more: dict[str, Any]
) -> Written:  # fmt: skip
    """What a folder says of a tower, a language model, and more."""
    _, vision = stack_for(tower, TOWERS)
    _, text = stack_for(backbone, LANGUAGE)
    layers = layer_numbers(tower)
    whole = "full" if tower.class_feature or not tower.class_token else "default"
    config = {
        "model_type": kind, "vision_config": vision, "text_config": text, "projector_hidden_act": "gelu",
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers, "vision_feature_select_strategy": whole,
        "image_seq_length": tower.extra + tower.cells[0] * tower.cells[1], **more,
        "tie_word_embeddings": backbone.tied,
    }  # fmt: skip
    name = {"processor_class": processor}
    words = {**name, "patch_size": tower.patch, "vision_feature_select_strategy": whole,
             "num_additional_image_tokens": int(tower.class_token), "image_token": "<image>"}  # fmt: skip
    return Written(config, {**name, **picture_settings(tower.transform)}, words)


def _rules(model: Wiring.Config) -> list[Rule]:
    tower, _, backbone = parts_of(model, "LLaVA", Connector.Config)
    there, here = "multi_modal_projector", "connectors.image"
    linear = [
        Rule(f"{there}.linear_{number}.*", f"{here}.{inner}layers.{number - 1}.*")
        for number in (1, 2) for inner in ("", "inner.")
    ]  # fmt: skip
    return [
        *linear,
        Rule(f"{there}.projector_layernorm.*", f"{here}.entry.*"),
        Rule("image_newline", f"{here}.newline"),
        *tower_rules(tower, "vision_tower."),
        *under(stack_for(backbone, LANGUAGE)[0].rules(backbone), "language_model.", "backbone."),
    ]


def tower_rules(tower: ViT.Config, theirs: str) -> list[Rule]:
    return under(stack_for(tower, TOWERS)[0].rules(tower), theirs, "encoders.image.")


def image_prompts(files: Files, plain: Template) -> Template:
    """Conversations as the processor writes them: the chat template places the pictures, the tokenizer what begins."""
    return plain.replace(placeholder={"image": files.token("image_token", "<image>")}, opens=plain.begin)


_LANGUAGE = "language_model."
_MORE = {
    "tokens": {"image": "image_token_index"},
    "prompts": image_prompts,
    "spare": (f"{_LANGUAGE}model.layers.{{}}.self_attn.rotary_emb.inv_freq", "vision_tower.embeddings.position_ids"),
    "copies": {f"{_LANGUAGE}lm_head.weight": f"{_LANGUAGE}model.embed_tokens.weight"},
    "modules": (
        (f"{_LANGUAGE}model.", "model.language_model."), (f"{_LANGUAGE}lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."), ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    "older": (
        ("vision_tower.vision_model.", "vision_tower."), ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", f"{_LANGUAGE}model."), ("lm_head.", f"{_LANGUAGE}lm_head."),
        ("model.image_newline", "image_newline"),
    ),
}  # fmt: skip
LLAVA = Family("llava", ("llava",), "LlavaForConditionalGeneration", _read_llava, _write_llava, _rules, **_MORE)
LLAVA_NEXT = Family(
    "llava_next", ("llava_next",), "LlavaNextForConditionalGeneration", _read_next, _write_next, _rules, **_MORE
)
VIPLLAVA = Family("vipllava", ("vipllava",), "VipLlavaForConditionalGeneration", _read_vip, _write_vip, _rules, **_MORE)
