"""Janus (arXiv 2410.13848): pictures are read through a ViT, and said in codes that stand beside the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.connectors.mlp import MLP
from sensorium.convert.codec import codec_rules
from sensorium.convert.files import GENERATION, Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.language import LANGUAGE
from sensorium.convert.layout import Family
from sensorium.convert.pictures import CLIP_MEAN, CLIP_STD, Defaults, channels_of, filter_number, filter_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name, part, stack_for
from sensorium.convert.towers import patch_rule
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack
from sensorium.errors import OtherKind, UserError
from sensorium.models.code_head import CodeHead
from sensorium.models.fused import Fused
from sensorium.models.marks import Marks
from sensorium.models.wiring import Wiring
from sensorium.template import Template

NAMED = ("image_token", "boi_token", "eoi_token")
"""Fields of the tokenizer with the tokens of a picture: its places, what opens and what closes it."""
Parts = tuple[ViT.Config, MLP.Config, VQ.Config, CodeHead.Config, Fused.Config]


def _parts(model: Wiring.Config) -> Parts:
    """Raises UserError for a model that is no Janus."""
    if isinstance(model, Fused.Config) and model.kinds == ("image",) and "image" in model.codes:
        tower, connector, codec = (one.get("image") for one in (model.encoders, model.connectors, model.codecs))
        if isinstance(tower, ViT.Config) and isinstance(connector, MLP.Config) and isinstance(codec, VQ.Config):
            return tower, connector, codec, model.codes["image"], model
    raise OtherKind("the layout of Janus holds a ViT, an MLP and a language model that reads pictures, a codec whose "
                    f"codes have embeddings and a head of their own: this model is another {model.tag()}")  # fmt: skip


def _read(files: Files) -> Fused.Config:
    config = files.config
    config.skip("image_token_id")
    tied = config.take("tie_word_embeddings", bool, True)
    backbone = part(config, "text_config", LANGUAGE, "llama")[1].replace(tied=tied)
    transform = _transform(files.pictures)
    vision = config.inner("vision_config", {})
    tower = _tower(vision, transform)
    depth = _projected(vision, backbone.width, "depth")
    vision.done()
    count = tower.cells[0] * tower.cells[1]
    for settings in (files.processor, vision):
        if settings.count("num_image_tokens", 576) != count:
            raise settings.error(f"num_image_tokens is no {count}, the patches of a picture")
    files.processor.only("use_default_system_prompt", False)
    codec, head = _codec(config.inner("vq_config", {}), transform, tower.cells[0], backbone.width)
    words = files.words()
    head = head.replace(blank=_blank(files))
    image, opens, closes = (words.special.get(words.named.get(name, "")) for name in NAMED)
    if image is None or opens is None or closes is None:
        raise UserError(f"{files.folder}: its tokenizer must name special tokens for {', '.join(NAMED)}")
    return Fused.Config(
        encoders={"image": tower}, connectors={"image": MLP.Config(depth=depth)}, codecs={"image": codec},
        codes={"image": head}, marks={"image": Marks(open=(opens,), close=(closes,), filler=image)}, backbone=backbone,
    )  # fmt: skip


def _blank(files: Files) -> int | None:
    """The id in place of the words that a guided picture is compared with, as the folder says what pads a prompt."""
    path, words = files.folder / GENERATION, files.words()
    said = Settings.load(path).take("pad_token_id", int, None) if path.exists() else None
    return next((id for id in (said, words.pad, words.eos) if id is not None), None)


def _projected(settings: Settings, width: int, depth: str) -> int:
    """The depth of an MLP into the width of the decoder."""
    if settings.count("projection_dim", 2048) != width:
        raise settings.error(f"projection_dim must be the width of the language model, {width}")
    settings.only("hidden_act", "gelu")
    return settings.count(depth, 2)


def _tower(settings: Settings, transform: ImageTransform) -> ViT.Config:
    settings.skip("hidden_dropout_rate", "projection_dropout", "num_image_tokens")
    for name, value in (("model_type", "janus_vision_model"), ("num_channels", 3), ("use_qk_norm", False)):
        settings.only(name, value)
    width, size = settings.count("hidden_size", 1024), settings.count("image_size", 384)
    blocks = stack(
        width, settings.count("num_hidden_layers", 24), settings.count("num_attention_heads", 16),
        int(width * settings.take("mlp_ratio", float, 4.0)), activation(settings, "hidden_act", "gelu"),
        settings.take("layer_norm_eps", float, 1e-6),
    )  # fmt: skip
    attention = blocks.block.attention.replace(bias=settings.take("attention_bias", bool, True), out_bias=True)
    if size != transform.size:
        raise settings.error(f"image_size is {size}, and the image processor makes pictures of {transform.size}")
    return ViT.Config(
        transform=transform, backbone=blocks.replace(block=blocks.block.replace(attention=attention)),
        patch=settings.count("patch_size", 16), class_token=False, cut=True,
    )  # fmt: skip


def _codec(
    settings: Settings, transform: ImageTransform, cells: int, width: int
) -> tuple[VQ.Config, CodeHead.Config]:  # fmt: skip
    settings.skip("dropout")
    for name, value in (("double_latent", False), ("in_channels", 3), ("out_channels", 3), ("num_patches", cells),
                        ("image_token_embed_dim", width), ("model_type", "janus_vqgan")):  # fmt: skip
        settings.only(name, value)
    multipliers = tuple(settings.take("channel_multiplier", list, [1, 1, 2, 2, 4]))
    conv = Convolutions(
        channels=settings.count("base_channels", 128), multipliers=multipliers, halving="end", middle=2,
        blocks=settings.count("num_res_blocks", 2), attend=(len(multipliers) - 1,),
    )  # fmt: skip
    codes, narrow = settings.count("num_embeddings", 16_384), settings.count("embed_dim", 8)
    book = Quantizer.Config(codes=codes, width=narrow, learning="gradient", revive=0.0, begin=False, unit=True)
    head = CodeHead.Config(codes=codes, width=narrow, depth=_projected(settings, width, "num_hidden_layers"))
    wide = settings.count("latent_channels", 256)
    settings.done()
    said = transform.replace(size=cells * conv.spatial)
    return VQ.Config(transform=said, conv=conv, quantizer=book, wide=wide), head


def _transform(settings: Settings) -> ImageTransform:
    """The longer side to a size, then a square around it in the mean colour."""
    for name in ("do_resize", "do_pad", "do_rescale", "do_normalize"):
        settings.only(name, True)
    settings.only("do_convert_rgb", None, True)
    settings.only("rescale_factor", 1 / 255)
    settings.skip("background_color")  # follows from the mean
    size = settings.inner("size", {"height": 384, "width": 384})
    side = size.count("height")
    size.only("width", side)
    size.done(idle=())
    mean = channels_of(settings, "image_mean", CLIP_MEAN)
    std = channels_of(settings, "image_std", CLIP_STD)
    return ImageTransform(
        size=side, resize="fit", least=settings.count("min_size", 14), filter=filter_of(settings, Defaults()),
        mean=mean, std=std,
    )  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    tower, connector, codec, head, config = _parts(model)
    transform, marks, conv, block = tower.transform, config.marks.get("image"), codec.conv, tower.backbone.block
    if marks is None or len(marks.open) != 1 or len(marks.close) != 1 or marks.row is not None or marks.filler is None:
        raise UserError(
            f"the layout of Janus has a token that opens a picture and one that closes it: this has {marks}"
        )
    width, size = config.backbone.width, transform.size
    count = tower.cells[0] * tower.cells[1]
    vision: dict[str, Any] = {
        "model_type": "janus_vision_model", "hidden_size": tower.backbone.width, "num_hidden_layers":
        tower.backbone.depth, "num_attention_heads": block.attention.heads, "num_channels": 3, "image_size": size,
        "patch_size": tower.patch, "hidden_act": activation_name(block.ffn.activation),
        "layer_norm_eps": block.norm.eps,
        "mlp_ratio": block.ffn.hidden / tower.backbone.width, "attention_bias": block.attention.bias,
        "use_qk_norm": False, "projection_dim": width, "depth": connector.depth, "num_image_tokens": count,
    }  # fmt: skip
    vq = {
        "model_type": "janus_vqgan", "embed_dim": head.width, "num_embeddings": head.codes, "double_latent": False,
        "latent_channels": codec.wide, "in_channels": 3, "out_channels": 3, "base_channels": conv.channels,
        "channel_multiplier": list(conv.multipliers), "num_res_blocks": conv.blocks, "num_patches": tower.cells[0],
        "projection_dim": width, "num_hidden_layers": head.depth, "hidden_act": "gelu", "image_token_embed_dim": width,
    }  # fmt: skip
    pictures = {
        "image_processor_type": "JanusImageProcessor", "do_resize": True, "do_pad": True, "do_rescale": True,
        "do_normalize": True, "rescale_factor": 1 / 255, "size": {"height": size, "width": size},
        "min_size": transform.least, "resample": filter_number(transform.filter),
        "image_mean": list(transform.mean), "image_std": list(transform.std),
    }  # fmt: skip
    again = _transform(Settings(pictures))
    read, learns = _codec(Settings(vq), again, tower.cells[0], width), ("learning", "decay", "revive", "begin")
    book = codec.quantizer.replace(**{name: getattr(read[0].quantizer, name) for name in learns})
    same = (tower, connector, codec.replace(quantizer=book), head.replace(blank=None))
    if same != (_tower(Settings(vision), again), MLP.Config(depth=connector.depth), *read) or codec.quantizer.counts:
        raise UserError(f"the layout of Janus cannot say these parts: {same}; what would be read: {read}, {again}")
    _, text = stack_for(config.backbone, LANGUAGE)
    fields = {
        "model_type": "janus", "vision_config": vision, "vq_config": vq, "text_config": text,
        "image_token_id": marks.filler, "tie_word_embeddings": config.backbone.tied,
    }  # fmt: skip
    processor = {"processor_class": "JanusProcessor", "num_image_tokens": count, "use_default_system_prompt": False}
    answers: dict[str, Any] = {"generation_kwargs": {"boi_token_id": marks.open[0]}}
    if head.blank is not None:
        answers["pad_token_id"] = head.blank
    return Written(fields, pictures, processor, answers=answers)


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    tower, connector, codec, head, config = _parts(model)
    text = stack_for(config.backbone, LANGUAGE)[0]
    return [
        *_placed(text.rules(config.backbone), text.root),
        *under(_tower_rules(tower), "model.vision_model.", "encoders.image."),
        *under(_linear(connector.depth, "layers"), "model.aligner.", "connectors.image."),
        *under(codec_rules(codec), "model.vqmodel.", "codecs.image."),
        Rule("model.generation_embeddings.weight", "codes.image.embedding.weight"),
        *under(_linear(head.depth, "enter"), "model.generation_aligner.", "codes.image."),
        Rule("model.generation_head.proj_out.*", "codes.image.leave.0.*"),
        Rule("model.generation_head.vision_head.*", "codes.image.leave.1.*"),
    ]


def _placed(rules: Sequence[Rule], root: str) -> Iterator[Rule]:
    """A language model inside: its stack has another place, and its head is where it was."""
    for rule in under(rules, ours="backbone."):
        theirs = tuple(f"model.language_model.{one.removeprefix(root)}" if one.startswith(root) else one
                       for one in rule.sides[0])  # fmt: skip
        yield Rule(theirs, rule.ours, rule.fit)


def _linear(depth: int, ours: str) -> Iterator[Rule]:
    yield Rule("fc1.*", f"{ours}.0.*")
    for index in range(1, depth):
        yield Rule(f"hidden_layers.{index - 1}.*", f"{ours}.{index}.*")


def _tower_rules(config: ViT.Config) -> Iterator[Rule]:
    layer, block = "encoder.layers.{}", "backbone.blocks.{}"
    yield patch_rule(config, "embeddings.patch_embedding")
    yield Rule("embeddings.patch_embedding.bias", "patch.bias")
    yield Rule("embeddings.position_embedding.weight", "place")
    yield Rule("post_layernorm.*", "backbone.norm.*")
    names = {"self_attn.q_proj": "attention.q", "self_attn.k_proj": "attention.k", "self_attn.v_proj": "attention.v",
             "self_attn.projection_layer": "attention.o", "layer_norm1": "norm1", "layer_norm2": "norm2",
             "mlp.fc1": "ffn.up", "mlp.fc2": "ffn.down"}  # fmt: skip
    for there, here in names.items():
        yield Rule(f"{layer}.{there}.*", f"{block}.{here}.*")


def _prompts(files: Files, plain: Template) -> Template:
    """Pictures stand where the chat template has them; the tokenizer begins every text."""
    return plain.replace(placeholder={"image": files.words().named[NAMED[0]]}, opens=plain.begin)


JANUS = Family(
    "janus", ("janus",), "JanusForConditionalGeneration", _read, _write, _rules, prompts=_prompts,
    spare=("model.vision_model.embeddings.position_ids",
           "model.language_model.layers.{}.self_attn.rotary_emb.inv_freq"),
    copies={"lm_head.weight": "model.language_model.embed_tokens.weight"},
)  # fmt: skip
