"""BLIP (Li et al. 2022, arXiv 2201.12086): a ViT, and a BERT of which every block reads it.

Its captioner, a language model; and what finds pictures by texts, where the same BERT reads a text alone for the
contrastive space, and a text with a picture to judge whether they belong together.
"""

from __future__ import annotations

from typing import Any

from sensorium.connectors.as_is import AsIs
from sensorium.connectors.base import Connector
from sensorium.connectors.global_pool import GlobalPool
from sensorium.convert.blip_tower import BLIP_VISION
from sensorium.convert.clip import check_same, tower_of
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name, part, said
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.readout import Readout
from sensorium.template import Template

WORDS = "{% for message in messages %}{{ '' if loop.first else ' ' }}{{ message['content'] }}{% endfor %}"
"""There is no published chat template: what stands before a caption is the text itself, for example "a photo of"."""
_RULE, _BOTH_WAYS = AttentionRule(memory="all"), AttentionRule("full", memory="all")
_RETRIEVAL = "BLIP's retrieval model"
_START, _STOP = 30_522, 102
"""What a caption begins and ends with where text_config does not say it."""


def _read(files: Files) -> Wiring.Config:
    config = files.config
    kinds = {name.partition(".")[0] for name in files.tensors}
    captions, judges = "text_decoder" in kinds and "text_encoder" not in kinds, "itm_head" in kinds
    if not captions and not judges:
        name = config.take("architectures", list, ["not named"])[0]
        raise config.error(f"its class is {name}; of BLIP the captioner can be opened, BlipForConditionalGeneration, "
                           "and BlipForImageTextRetrieval")  # fmt: skip
    _, tower = part(config, "vision_config", (BLIP_VISION,), "blip_vision_model")
    fields = config.inner("text_config", {})
    backbone = _decoder(fields) if captions else _encoder(fields)
    fields.done()
    transform = transform_of(files.pictures)
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    cross = backbone.block.cross
    if cross is not None and cross.memory != tower.width:
        raise fields.error(f"encoder_hidden_size is {cross.memory}, and the vision tower is {tower.width} wide")
    config.only("tie_word_embeddings", True)
    config.skip("projection_dim", "logit_scale_init_value", "label_smoothing")
    width = config.count("image_text_hidden_size", 256)
    if judges:
        return _retrieval(tower.replace(transform=transform), backbone, width)
    return Fused.Config(encoders={"image": tower.replace(transform=transform)}, connectors={"image": AsIs.Config()},
                        backbone=backbone, memory=("image",), rule=_RULE)  # fmt: skip


def _decoder(settings: Settings) -> Backbone.Config:
    settings.only("model_type", "blip_text_model")
    settings.only("is_decoder", True)
    settings.only("tie_word_embeddings", True)
    settings.only("position_embedding_type", "absolute")
    settings.skip("projection_dim", "label_smoothing")
    kind = activation(settings, "hidden_act", "gelu")
    norm = Norm.Config(kind="layer", eps=settings.take("layer_norm_eps", float, 1e-12))
    attention = Attention.Config(heads=settings.count("num_attention_heads", 8), bias=True)
    ffn = FeedForward.Config(hidden=settings.count("intermediate_size", 3072), activation=kind, gated=False, bias=True)
    cross = Cross.Config(
        attention=attention, norm=norm, memory=settings.count("encoder_hidden_size", 768), passes=True
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size", 30_524), width=settings.count("hidden_size", 768),
        depth=settings.count("num_hidden_layers", 12), positions=settings.count("max_position_embeddings", 512),
        block=Block.Config(attention=attention, ffn=ffn, norm=norm, place="post", cross=cross), embed_norm=True,
        final_norm=False, readout=Readout.Config(dense=kind, norm=norm, bias=True),
    )  # fmt: skip


def _encoder(settings: Settings) -> Backbone.Config:
    return _decoder(settings).replace(readout=None)


def _retrieval(tower: ViT.Config, backbone: Backbone.Config, width: int) -> Dual.Config:
    return Dual.Config(
        encoders={"image": tower}, connectors={"image": GlobalPool.Config(by="class", bias=True)}, backbone=backbone,
        width=width, text="first", text_bias=True, scale=None, grounded=True, rule=_BOTH_WAYS,
    )  # fmt: skip


def _parts(model: Wiring.Config) -> tuple[ViT.Config, Backbone.Config]:
    if isinstance(model, Dual.Config):
        tower, backbone = tower_of(model, ViT.Config, _RETRIEVAL), model.backbone
        if backbone is None:
            raise OtherKind(f"the layout of {_RETRIEVAL} holds a text stack of its own, this model has none")
        check_same(model, _retrieval(tower, backbone, model.width), _RETRIEVAL)
        return tower, backbone
    if isinstance(model, Fused.Config) and model.memory == ("image",) and model.rule == _RULE:
        tower = model.encoders.get("image")
        stands: dict[str, Connector.Config] = {"image": AsIs.Config()}
        known = Fused.Config(
            encoders=model.encoders, connectors=stands, backbone=model.backbone, memory=model.memory, rule=model.rule
        )
        if isinstance(tower, ViT.Config) and model == known:
            return tower, model.backbone
    raise OtherKind("the layout of BLIP's captioner holds a ViT and a decoder that reads its features as they are "
                    f"(memory spans, AsIs), this model is another: {model.tag()}")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    tower, stack = _parts(model)
    if not tower.class_feature or tower.drop_last or tower.levels or not tower.normed:
        raise UserError("the layout of BLIP reads the last state of its tower behind the final norm, class token "
                        "included: this model reads others")  # fmt: skip
    block = stack.block
    text: dict[str, Any] = {
        "model_type": "blip_text_model", "vocab_size": stack.vocab, "hidden_size": stack.width,
        "encoder_hidden_size": tower.width, "intermediate_size": block.ffn.hidden, "is_decoder": True,
        "num_hidden_layers": stack.depth, "num_attention_heads": block.attention.heads,
        "max_position_embeddings": stack.positions, "hidden_act": activation_name(block.ffn.activation),
        "layer_norm_eps": block.norm.eps, "tie_word_embeddings": True,
    }  # fmt: skip
    said(text, _encoder if isinstance(model, Dual.Config) else _decoder, stack, "BLIP, in its text stack,")
    config = {"model_type": "blip", "vision_config": BLIP_VISION.write(tower), "text_config": text,
              "tie_word_embeddings": True}  # fmt: skip
    if isinstance(model, Dual.Config):
        config |= {"architectures": ["BlipForImageTextRetrieval"], "image_text_hidden_size": model.width}
    name = {"processor_class": "BlipProcessor"}
    pictures = {**name, **picture_settings(tower.transform), "image_processor_type": "BlipImageProcessor"}
    return Written(config, pictures, name)


_BERT = {
    "attention.self.query": "attention.q", "attention.self.key": "attention.k", "attention.self.value": "attention.v",
    "attention.output.dense": "attention.o", "attention.output.LayerNorm": "norm1",
    "crossattention.self.query": "cross.attention.q", "crossattention.self.key": "cross.attention.k",
    "crossattention.self.value": "cross.attention.v", "crossattention.output.dense": "cross.attention.o",
    "crossattention.output.LayerNorm": "cross.norm", "intermediate.dense": "ffn.up", "output.dense": "ffn.down",
    "output.LayerNorm": "norm2",
}  # fmt: skip
_HEAD = "cls.predictions"
_STACK = (
    Rule("embeddings.word_embeddings.weight", "embed.weight"),
    Rule("embeddings.position_embeddings.weight", "place.weight"),
    Rule("embeddings.LayerNorm.*", "embed_norm.*"),
    *(Rule(f"encoder.layer.{{}}.{theirs}.*", f"blocks.{{}}.{ours}.*") for theirs, ours in _BERT.items()),
)
_RULES = (
    *under(_STACK, "bert."),
    Rule(f"{_HEAD}.transform.dense.*", "readout.dense.*"),
    Rule(f"{_HEAD}.transform.LayerNorm.*", "readout.norm.*"),
    Rule(f"{_HEAD}.bias", "readout.bias"),
)


def _rules(model: Wiring.Config) -> list[Rule]:
    tower, _ = _parts(model)
    if isinstance(model, Dual.Config):
        return [*under(BLIP_VISION.rules(tower), "vision_model.", "encoders.image."),
                *under(_STACK, "text_encoder.", "backbone."), Rule("vision_proj.*", "connectors.image.project.*"),
                Rule("text_proj.*", "head.text.*"), Rule("itm_head.*", "grounding.match.*")]  # fmt: skip
    return [*under(BLIP_VISION.rules(tower), "vision_model.", "encoders.image."),
            *under(_RULES, "text_decoder.", "backbone.")]  # fmt: skip


def _prompts(files: Files, plain: Template) -> Template:
    """A caption begins and ends as text_config says, whatever the tokenizer puts around a text that is only read."""
    if "itm_head.weight" in files.tensors:
        return plain
    words, fields = files.words(), files.config.inner("text_config", {})
    ids = fields.take("bos_token_id", int, _START), fields.take("sep_token_id", int, _STOP)
    start, stop = (words.token(id) or "" for id in ids)
    for name, token, id in zip(("bos_token_id", "sep_token_id"), (start, stop), ids):
        if token not in words.special:
            raise fields.error(f"{name} is {id}, which is no special token of the folder's tokenizer")
    return plain.replace(chat=words.chat_template or WORDS, opens=start, begin=start, stop=stop, plain=stop, ends=())


BLIP = Family(
    "blip", ("blip",), "BlipForConditionalGeneration", _read, _write, _rules, prompts=_prompts,
    marks={"bos_token_id": "begin", "sep_token_id": "stop"}, also=("BlipForImageTextRetrieval",),
    spare=("text_decoder.bert.embeddings.position_ids", "text_encoder.embeddings.position_ids"),
    copies={f"text_decoder.{_HEAD}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
            f"text_decoder.{_HEAD}.decoder.bias": f"text_decoder.{_HEAD}.bias"},
)  # fmt: skip
