"""Kosmos-2 (Peng et al. 2023, arXiv 2306.14824): latents read a CLIP tower, and stand among the words of a Magneto.

Words for places (`<patch_index_0000>`) and phrases are added tokens as others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.connectors.latents import LatentReader
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name, said
from sensorium.convert.towers import CLIP_VISION
from sensorium.encoders.vit import ViT
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.sinusoid import Sinusoid
from sensorium.template import Template

_TOWER = {**CLIP_VISION.absent, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
          "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
_CHAT = "{% for message in messages %}{{ '' if loop.first else ' ' }}{{ message['content'] }}{% endfor %}"
"""There are no turns: an answer goes on where the words end."""


def _read(files: Files) -> Wiring.Config:
    config = files.config
    tower = _tower(config.inner("vision_config", {}))
    transform = transform_of(files.pictures, "CLIP")
    if transform.size != tower.transform.size or transform.width not in (None, transform.size):
        raise files.pictures.error(f"views are {transform.view} pixels, and the vision tower of config.json reads "
                                   f"{tower.transform.size}")  # fmt: skip
    text = config.inner("text_config", {})
    backbone = _backbone(text)
    text.done()
    tied = config.take("tie_word_embeddings", bool, True)
    if tied != backbone.tied:
        raise config.error(f"tie_word_embeddings is {tied}, and {backbone.tied} in text_config: they contradict")
    connector = _connector(backbone, config.count("latent_query_num", 64))
    return _model(tower.replace(transform=transform), connector, backbone)


def _model(tower: ViT.Config, connector: LatentReader.Config, backbone: Backbone.Config) -> Fused.Config:
    return Fused.Config(encoders={"image": tower}, connectors={"image": connector}, backbone=backbone)


def _connector(backbone: Backbone.Config, latents: int) -> LatentReader.Config:
    """As many heads as the language model has, and its scale of words."""
    return LatentReader.Config(
        latents=latents, heads=backbone.block.attention.heads, unit=True, scaled=backbone.scaled_embed
    )  # fmt: skip


def _tower(fields: Settings) -> ViT.Config:
    given = {name: value for name, value in fields.values.items() if value is not None}
    settings = Settings({**_TOWER, **given}, fields.where)
    tower = CLIP_VISION.read(settings)
    settings.done()
    return tower.replace(class_feature=True)


def _backbone(settings: Settings) -> Backbone.Config:
    settings.only("add_cross_attention", False)
    settings.skip("init_std", "activation_dropout", "max_position_embeddings")  # positions of any length are computed
    norm = Norm.Config(kind="layer", eps=settings.take("layer_norm_eps", float, 1e-5))
    attention = Attention.Config(heads=settings.count("attention_heads", 32), bias=True, inner_norm=norm)
    ffn = FeedForward.Config(
        hidden=settings.count("ffn_dim", 8192), gated=False, bias=True, inner_norm=norm,
        activation=activation(settings, "activation_function", "gelu"),
    )  # fmt: skip
    return Backbone.Config(
        vocab=settings.count("vocab_size", 65037), width=settings.count("embed_dim", 2048),
        depth=settings.count("layers", 24), block=Block.Config(attention=attention, ffn=ffn, norm=norm),
        scaled_embed=settings.take("scale_embedding", bool, True),
        sinusoid=Sinusoid.Config(first=settings.count("pad_token_id", 1, least=0) + 1),
        tied=settings.take("tie_word_embeddings", bool, True),
    )  # fmt: skip


def _parts(model: Wiring.Config) -> tuple[ViT.Config, LatentReader.Config, Backbone.Config]:
    """Tower, connector and language model. Raises UserError for a model of other parts."""
    if isinstance(model, Fused.Config) and set(model.encoders) == {"image"} and set(model.connectors) == {"image"}:
        tower, connector = model.encoders["image"], model.connectors["image"]
        if (
            isinstance(tower, ViT.Config)
            and isinstance(connector, LatentReader.Config)
            and _model(tower, connector, model.backbone) == model
        ):
            return tower, connector, model.backbone
    raise UserError("the layout of Kosmos-2 holds a ViT, learned latents that read it (LatentReader), and a language "
                    f"model that reads them among its words; this model is another: {model.tag()}")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    tower, connector, backbone = _parts(model)
    if tower.replace(class_feature=True, normed=True, drop_last=0, levels=()) != tower:
        raise UserError("the layout of Kosmos-2 reads all states of a tower, its class token's too, behind the final "
                        f"norm; this model has class_feature={tower.class_feature}, normed={tower.normed}, "
                        f"drop_last={tower.drop_last}, levels={tower.levels}")  # fmt: skip
    if connector != _connector(backbone, connector.latents):
        raise UserError("in the layout of Kosmos-2 latents have the language model's heads and its scale of words, and "
                        f"features length 1; this model has {connector}")  # fmt: skip
    vision = {**CLIP_VISION.write(tower), "model_type": "kosmos_2_vision_model"}
    config = {
        "model_type": "kosmos-2", "text_config": _text(backbone), "vision_config": vision,
        "latent_query_num": connector.latents, "tie_word_embeddings": backbone.tied,
    }  # fmt: skip
    name = {"processor_class": "Kosmos2Processor"}
    return Written(config, {**name, **picture_settings(tower.transform, "CLIP")}, name)


def _text(backbone: Backbone.Config) -> dict[str, Any]:
    block, places = backbone.block, backbone.sinusoid
    if places is None or places.first < 1:
        raise UserError("the layout of Kosmos-2 has sines and cosines as positions, counted from behind the id of its "
                        f"padding token; this language model has sinusoid={places}")  # fmt: skip
    config = {
        "model_type": "kosmos_2_text_model", "vocab_size": backbone.vocab, "embed_dim": backbone.width,
        "layers": backbone.depth, "attention_heads": block.attention.heads, "ffn_dim": block.ffn.hidden,
        "activation_function": activation_name(block.ffn.activation), "layer_norm_eps": block.norm.eps,
        "scale_embedding": backbone.scaled_embed, "tie_word_embeddings": backbone.tied,
        "pad_token_id": places.first - 1,
    }  # fmt: skip
    return said(config, _backbone, backbone, "Kosmos-2")


_LAYER, _BLOCK = "model.layers.{}", "blocks.{}"
_HEADS = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
_WORDS = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("lm_head.weight", "head.weight"),
    Rule("model.layer_norm.*", "norm.*"),
    *(Rule(f"{_LAYER}.self_attn.{there}.*", f"{_BLOCK}.attention.{here}.*") for there, here in _HEADS),
    Rule(f"{_LAYER}.self_attn.inner_attn_ln.*", f"{_BLOCK}.attention.inner_norm.*"),
    Rule(f"{_LAYER}.self_attn_layer_norm.*", f"{_BLOCK}.norm1.*"),
    Rule(f"{_LAYER}.final_layer_norm.*", f"{_BLOCK}.norm2.*"),
    Rule(f"{_LAYER}.ffn.fc1.*", f"{_BLOCK}.ffn.up.*"),
    Rule(f"{_LAYER}.ffn.fc2.*", f"{_BLOCK}.ffn.down.*"),
    Rule(f"{_LAYER}.ffn.ffn_layernorm.*", f"{_BLOCK}.ffn.inner_norm.*"),
)
_LATENTS = (
    Rule("dense.*", "enter.*"),
    Rule("latent_query", "latents"),
    *(Rule(f"x_attn.{there}.*", f"{here}.*") for there, here in _HEADS),
)


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    tower, _, _ = _parts(model)
    return [
        *under(CLIP_VISION.rules(tower), "vision_model.model.", "encoders.image."),
        *under(_LATENTS, "image_to_text_projection.", "connectors.image."),
        *under(_WORDS, "text_model.", "backbone."),
    ]


def _prompts(files: Files, plain: Template) -> Template:
    """A picture stands between marks, which are tokens, before the words; the tokenizer's <s> begins all."""
    chat = plain.chat if files.words().chat_template is not None else _CHAT
    return plain.replace(chat=chat, opens=plain.bos, begin=plain.bos, media={"image": ("<image>", "</image> ")})


KOSMOS2 = Family(
    "kosmos-2", ("kosmos-2",), "Kosmos2ForConditionalGeneration", _read, _write, _rules, prompts=_prompts,
    spare=("vision_model.model.embeddings.position_ids", "text_model.model.embed_positions.weights"),
    copies={"text_model.lm_head.weight": "text_model.model.embed_tokens.weight"},
)  # fmt: skip
