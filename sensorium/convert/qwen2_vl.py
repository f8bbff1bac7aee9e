"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): eyes for pictures of any size, 2 x 2 cells of which become a token,
and Qwen2 with places in time, row and column."""

from __future__ import annotations

from typing import Any

from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import PixelShuffle
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Reshaped, Rule, Split, under
from sensorium.convert.layout import Family
from sensorium.convert.llama import (
    MORE,
    RULES,
    depths_written,
    from_some_depth,
    like_llama,
    scaling_of,
    scaling_written,
    written,
)
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name, part, said
from sensorium.encoders.flex import FlexViT
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import CLIP_TRANSFORM, stack
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.rope import Rope
from sensorium.template import Template

_NAME = "the layout of Qwen2-VL"
_PLACEHOLDERS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
_LEAST, _MOST = 56 * 56, 28 * 28 * 1280
"""Pixels of a picture where the image processor says nothing of them."""
_LEAST_FRAME, _MOST_FRAME = 128 * 28 * 28, 28 * 28 * 768
"""Those of a clip's frame."""


# ---- the language model


def _rope(settings: Settings) -> Rope.Config:
    """Rotary positions in time, row and column; older files say them in rope_scaling, of type "mrope"."""
    longest = settings.count("max_position_embeddings", None)
    settings.skip("rope_scaling", "rope_parameters")
    fields = settings.inner("rope_scaling" if "rope_scaling" in settings else "rope_parameters", {})
    theta = fields.take("rope_theta", float, settings.take("rope_theta", float, 1e6))
    sections = fields.take("mrope_section", list, [16, 24, 24])
    if len(sections) != 3 or not all(type(one) is int and one >= 0 for one in sections):
        raise fields.error(f"mrope_section is {sections}, expected three counts: of time, row and column")
    kind = fields.take("rope_type", str, fields.take("type", str, "default"))
    own = ("rope_theta", "mrope_section", "rope_type", "type")
    rest = {name: value for name, value in fields.values.items() if name not in own}
    scaling = scaling_of(Settings({**rest, "rope_type": "default" if kind == "mrope" else kind}, fields.where), longest)
    return Rope.Config(theta=theta, sections=tuple(sections), scaling=scaling)


def _read_text(settings: Settings) -> Backbone.Config:
    rope = _rope(settings)
    config = like_llama(settings, bias=True, out_bias=False, kv_heads=8, eps=1e-5, rope=rope)
    head = config.block.attention.width_of_head(config.width)
    if config.block.attention.head_width is not None or 2 * sum(rope.sections or ()) != head:
        raise settings.error(
            f"mrope_section {list(rope.sections or ())} must sum to half the width of a head, which is hidden_size / "
            f"num_attention_heads = {config.width / config.block.attention.heads:g}"
        )
    return from_some_depth(settings, config)


def _write_text(config: Backbone.Config) -> dict[str, Any]:
    rope = config.rope
    if rope is None or rope.sections is None:
        raise UserError(f"{_NAME} has rotary positions in time, row and column (rope.sections), and this model has not")
    own = {**scaling_written(rope.scaling), "mrope_section": list(rope.sections)}
    both = {
        "rope_parameters": {**own, "rope_theta": rope.theta},
        "rope_scaling": {**own, "type": "mrope" if rope.scaling is None else rope.scaling.kind},
    }
    config_said = {**written(config, "qwen2_vl_text"), **depths_written(config), **both}
    return said(config_said, _read_text, config, "Qwen2-VL")


TEXT = Stack(
    ("qwen2_vl_text", "qwen2_vl"), "Qwen2VLTextModel", _read_text, _write_text, lambda config: RULES, **MORE,
    absent={"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "max_window_layers": 80, "max_position_embeddings": 32768},
)  # fmt: skip


def _text(config: Settings) -> Backbone.Config:
    """The language model, whose fields older releases have at the top of config.json."""
    outer = config.take("tie_word_embeddings", bool, False)
    if "text_config" not in config:
        fields = {name: value for name, value in config.values.items() if name not in _OWN}
        config.skip(*fields)
        config = Settings({"text_config": fields}, config.where)
    _, backbone = part(config, "text_config", (TEXT,), "qwen2_vl_text")
    return backbone.replace(tied=True) if outer else backbone


_OWN = ("vision_config", "text_config", "image_token_id", "video_token_id", "vision_start_token_id",
        "vision_end_token_id", "vision_token_id")  # fmt: skip
"""Fields of config.json that are not the language model's."""


# ---- the eyes


def _eyes(settings: Settings, width: int) -> tuple[FlexViT.Config, PixelShuffle.Config]:
    """The vision tower, and what joins its cells for a language model of this width. Pictures are not yet said."""
    settings.only("model_type", "qwen2_vl_vision", "qwen2_vl")
    for name in ("in_channels", "in_chans"):
        settings.only(name, 3)
    settings.skip("spatial_patch_size")  # once more what patch_size says
    own, heads = settings.count("embed_dim", 1280), settings.count("num_heads", 16)
    if own % (4 * heads):
        raise settings.error(f"embed_dim {own} must be a multiple of 4 times num_heads {heads}: a head has frequencies "
                             "for rows and for columns, each in pairs")  # fmt: skip
    if (out := settings.count("hidden_size", 3584)) != width:
        raise settings.error(f"hidden_size is {out}, and that of the language model is {width}: they must be the same")
    rope = settings.inner("rope_parameters", {})
    rope.only("rope_type", "axial", "default")
    theta, axis = rope.take("rope_theta", float, 10_000.0), own // heads // 4
    rope.done(idle=())
    backbone = stack(
        own, settings.count("depth", 32), heads, int(own * settings.take("mlp_ratio", float, 4.0)),
        activation(settings, "hidden_act", "quick_gelu"), eps=1e-6,
    ).replace(rope=Rope.Config(theta=theta, sections=(0, axis, axis), own=True))  # fmt: skip
    patch, merge = settings.count("patch_size", 14), settings.count("spatial_merge_size", 2)
    tower = FlexViT.Config(
        transform=_within(CLIP_TRANSFORM, patch * merge, (_LEAST, _MOST)), patch=patch, backbone=backbone, trained=None,
        patch_bias=False, temporal=settings.count("temporal_patch_size", 2),
    )  # fmt: skip
    settings.done()
    return tower, PixelShuffle.Config(factor=merge, inner=MLP.Config(hidden=own * merge**2))


def _write_eyes(tower: FlexViT.Config, connector: PixelShuffle.Config, width: int) -> dict[str, Any]:
    """The inverse of `_eyes`."""
    block, rope = tower.backbone.block, tower.backbone.rope
    config = {
        "model_type": "qwen2_vl_vision", "depth": tower.backbone.depth, "embed_dim": tower.width, "hidden_size": width,
        "hidden_act": activation_name(block.ffn.activation), "mlp_ratio": block.ffn.hidden // tower.width,
        "num_heads": block.attention.heads, "in_channels": 3, "patch_size": tower.patch,
        "spatial_merge_size": connector.factor, "temporal_patch_size": tower.temporal,
        "rope_parameters": {"rope_type": "axial", "rope_theta": rope.theta if rope is not None else 10_000.0},
    }  # fmt: skip
    again = _eyes(Settings(config, "what was written"), width)
    given = tower.replace(transform=again[0].transform, clips=None), connector
    if again != given:
        raise UserError(f"{_NAME} cannot say these eyes: {given}; {again} is what would be read")
    return config


# ---- pictures


PLAIN = ImageTransform()


def _within(plain: ImageTransform, side: int, area: tuple[int, int]) -> ImageTransform:
    return plain.replace(size=max(side, round(area[1] ** 0.5) // side * side), resize="area", multiple=side, area=area)


def _pictures(settings: Settings, tower: FlexViT.Config, merge: int, least: int, most: int) -> ImageTransform:
    """How the folder has pictures or clips prepared. least, most: pixels where it does not say.

    Raises UserError for settings that are not those of its config.json.
    """
    for name, value in (("patch_size", tower.patch), ("temporal_patch_size", tower.temporal), ("merge_size", merge)):
        given = settings.count(name, {"patch_size": 14}.get(name, 2))
        if given != value:
            raise settings.error(f"{name} is {given}, and the vision tower of config.json has {value}: the files are "
                                 "of different models")  # fmt: skip
    size = settings.inner("size", {})
    size.skip("min_pixels", "max_pixels")
    least = settings.count("min_pixels", size.count("shortest_edge", least))
    most = settings.count("max_pixels", size.count("longest_edge", most))
    size.done(idle=())
    side = tower.patch * merge
    if not least <= most or most < side**2:
        raise settings.error(f"pictures have at least {least} and at most {most} pixels: the second must be as large "
                             f"as the first, and as one token, {side} x {side}")  # fmt: skip
    settings.only("do_resize", True)
    settings.only("cap_pixels_per_frame", None, False)
    own = {name: value for name, value in settings.values.items() if value is not None and name not in _UNSAID}
    settings.skip(*own, *_FRAMES)
    whole = Settings({**_ABSENT, **own, "size": {"height": side, "width": side}}, settings.where)
    plain = transform_of(whole)
    whole.done(idle=())
    return _within(plain, side, (least, most))


_ABSENT = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3,
           "image_mean": list(CLIP_TRANSFORM.mean), "image_std": list(CLIP_TRANSFORM.std)}  # fmt: skip
"""What the processor does where its settings say nothing."""
_FRAMES = ("do_sample_frames", "fps", "num_frames", "min_frames", "max_frames", "max_video_tokens", "return_metadata",
           "video_metadata")  # fmt: skip
"""Which frames of a clip are read is its user's to say."""
_UNSAID = ("patch_size", "temporal_patch_size", "merge_size", "size", "min_pixels", "max_pixels", "processor_class",
           "image_processor_type", "video_processor_type", "cap_pixels_per_frame", *_FRAMES)  # fmt: skip


def _write_pictures(own: ImageTransform, tower: FlexViT.Config, merge: int) -> dict[str, Any]:
    """The inverse of `_pictures`; sizes are said in the words of older and of newer releases."""
    side = tower.patch * merge
    if own != _within(own, side, own.area):
        raise UserError(f"{_NAME} has pictures of so many pixels, sides multiples of {side}: this model prepares them "
                        f"as {own}")  # fmt: skip
    plain = picture_settings(own.replace(size=side, resize="squash", multiple=1, area=PLAIN.area))
    least, most = own.area
    return {
        **{name: value for name, value in plain.items() if name not in _VIEW},
        "size": {"shortest_edge": least, "longest_edge": most},
        "min_pixels": least, "max_pixels": most, "patch_size": tower.patch, "temporal_patch_size": tower.temporal,
        "merge_size": merge,
    }  # fmt: skip


_VIEW = ("do_center_crop", "crop_size", "image_processor_type")


# ---- the whole


def _read(files: Files) -> Wiring.Config:
    config = files.config
    config.skip("vision_start_token_id", "vision_end_token_id", "vision_token_id")
    backbone = _text(config)
    vision = config.inner("vision_config", {})
    tower, connector = _eyes(vision, backbone.width)
    if not files.pictures.values:
        raise files.pictures.error("it is missing or empty: nothing says how pictures are prepared for this model")
    transform = _pictures(files.pictures, tower, connector.factor, _LEAST, _MOST)
    framed = files.clips if files.clips.values else files.pictures
    clips = _pictures(framed, tower, connector.factor, _LEAST_FRAME, _MOST_FRAME).replace(backend="torch")
    files.clips.done(idle=())
    tower = tower.replace(transform=transform, clips=clips)
    return Fused.Config(
        encoders={"image": tower}, connectors={"image": connector}, backbone=backbone, share={"video": "image"},
        spread=("image", "video"),
    )  # fmt: skip


def _parts(model: Wiring.Config) -> tuple[FlexViT.Config, PixelShuffle.Config, Backbone.Config]:
    if isinstance(model, Fused.Config) and tuple(model.encoders) == tuple(model.connectors) == ("image",):
        tower, connector = model.encoders["image"], model.connectors["image"]
        plain = Fused.Config(encoders=model.encoders, connectors=model.connectors, backbone=model.backbone,
                             share={"video": "image"}, spread=("image", "video"))  # fmt: skip
        if isinstance(tower, FlexViT.Config) and isinstance(connector, PixelShuffle.Config) and plain == model:
            return tower, connector, model.backbone
    raise UserError(f"{_NAME} holds a FlexViT, whose cells are joined (PixelShuffle) and spread over rows and columns, "
                    f"for pictures and clips, and a language model; this model is another: {model.tag()} with "
                    f"{sorted(getattr(model, 'kinds', ()))}")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    tower, connector, backbone = _parts(model)
    config = {
        "model_type": "qwen2_vl", "text_config": _write_text(backbone), "tie_word_embeddings": backbone.tied,
        "vision_config": _write_eyes(tower, connector, backbone.width),
    }  # fmt: skip
    name = {"processor_class": "Qwen2VLProcessor"}
    if tower.clips is None or tower.clips.backend != "torch":
        raise UserError(f"{_NAME} has frames of clips resized by torch (clips, with backend='torch'): this model has "
                        f"clips={tower.clips}")  # fmt: skip
    pictures, clips = (_write_pictures(one, tower, connector.factor) for one in
                       (tower.transform, tower.clips.replace(backend="pillow")))  # fmt: skip
    return Written(
        config, {**name, "image_processor_type": "Qwen2VLImageProcessor", **pictures}, name,
        clips={**name, "video_processor_type": "Qwen2VLVideoProcessor", **clips},
    )  # fmt: skip


def _rules(model: Wiring.Config) -> list[Rule]:
    tower, _, _ = _parts(model)
    there, here = "visual.blocks.{}", "encoders.image.backbone.blocks.{}"
    attention = f"{here}.attention"
    return [
        Rule("visual.patch_embed.proj.weight", "encoders.image.linear.weight",
             Reshaped(-1, 3, tower.temporal, tower.patch, tower.patch)),
        Rule(f"{there}.attn.qkv.*", tuple(f"{attention}.{name}.*" for name in "qkv"), Split()),
        Rule(f"{there}.attn.proj.*", f"{attention}.o.*"),
        *(Rule(f"{there}.norm{number}.*", f"{here}.norm{number}.*") for number in (1, 2)),
        Rule(f"{there}.mlp.fc1.*", f"{here}.ffn.up.*"),
        Rule(f"{there}.mlp.fc2.*", f"{here}.ffn.down.*"),
        Rule("visual.merger.ln_q.*", "encoders.image.backbone.norm.*"),
        Rule("visual.merger.mlp.0.*", "connectors.image.inner.layers.0.*"),
        Rule("visual.merger.mlp.2.*", "connectors.image.inner.layers.1.*"),
        *under(RULES, ours="backbone."),
    ]  # fmt: skip


def _prompts(files: Files, plain: Template) -> Template:
    """Conversations as the processor writes them; what stands for items has its name in the tokenizer."""
    special = files.words().special
    for kind, token in _PLACEHOLDERS.items():
        if token not in special:
            raise UserError(f"{files.folder}: its tokenizer has no special token {token!r}, which stands for each "
                            f"{kind} among the words")  # fmt: skip
    return plain.replace(placeholder=_PLACEHOLDERS, opens=plain.begin)


QWEN2_VL = Family(
    "qwen2_vl", ("qwen2_vl",), "Qwen2VLForConditionalGeneration", _read, _write, _rules,
    spare=(*MORE["spare"], "visual.rotary_pos_emb.inv_freq"), copies=MORE["copies"], prompts=_prompts,
    tokens={"image": "image_token_id", "video": "video_token_id"},
    older=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    modules=(("visual.", "model.visual."), ("model.", "model.language_model.")),
)  # fmt: skip
