"""Idefics 1, the open Flamingo (Laurençon et al. 2023, arXiv 2306.16527): Llama reads pictures by gated attention.

A vision tower as CLIP's gives all its states as they leave the last block; a Perceiver resampler may follow. Ahead of
every so many blocks of the language model stands a gated one that reads the latest picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.connectors.as_is import AsIs
from sensorium.connectors.base import Connector
from sensorium.connectors.resampler import Resampler
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Appended, Reshaped, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.llama import RULES, like_llama, written
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import said
from sensorium.convert.towers import CLIP_VISION
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.cross import Cross
from sensorium.template import Template

IMAGE, AROUND, OVER = "<image>", "<fake_token_around_image>", "<end_of_utterance>"
_TOWER = {"embed_dim": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14, "num_hidden_layers": 32,
          "num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5}  # fmt: skip
_GATES = {"float": "scalar", "vector": "channel"}
_STARTS = ("alpha_initializer", "alphas_initializer_range", "freeze_text_layers", "freeze_text_module_exceptions",
           "freeze_lm_head", "freeze_vision_layers", "freeze_vision_module_exceptions")  # fmt: skip
"""Of how training begins and what of the model it leaves alone."""
_OLD = ("max_new_tokens", "word_embed_proj_dim", "ffn_dim", "cross_layer_activation_function")
"""Of older configs: the published class reads none of them."""
_CHAT = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}{{ message['role'].capitalize() + ':' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{{{{ '' if loop.previtem is defined and loop.previtem['type'] == 'image' else '{AROUND}' }}}}"
    f"{{{{ '{IMAGE}{AROUND}' }}}}{{% else %}}"
    "{{ (' ' if loop.first else '') + part['text'] }}{% endif %}{% endfor %}{{ over }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
"""The dialogue that the models were taught; pictures side by side share the mark between them."""


def _read(files: Files) -> Wiring.Config:
    config = files.config
    tower = _tower(config.inner("vision_config", {}))
    transform = _transform(files.pictures)
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    tower = tower.replace(transform=transform)
    return _model(tower, _connector(config), _backbone(config, tower.width))


def _model(tower: ViT.Config, connector: Connector.Config, backbone: Backbone.Config) -> Fused.Config:
    return Fused.Config(
        encoders={"image": tower}, connectors={"image": connector}, backbone=backbone, memory=("image",),
        rule=AttentionRule(memory="latest"),
    )  # fmt: skip


def _tower(fields: Settings) -> ViT.Config:
    fields.skip("vision_model_name")
    given = {name: value for name, value in fields.values.items() if value is not None and name != "vision_model_name"}
    named = {**_TOWER, **given}
    named["hidden_size"] = named.pop("embed_dim")
    settings = Settings(named, fields.where)
    tower = CLIP_VISION.read(settings)
    settings.done()
    return tower.replace(class_feature=True, normed=False)


def _transform(pictures: Settings) -> ImageTransform:
    """image_size is an older word for size, and counts where both are there."""
    pictures.only("image_num_channels", 3)
    side = pictures.count("image_size", None)
    if side is None:
        return transform_of(pictures, "Idefics")
    values = {name: value for name, value in pictures.values.items() if name != "image_size"}
    whole = Settings({**values, "size": {"height": side, "width": side}}, pictures.where)
    whole.skip("image_num_channels", "image_processor_type", "feature_extractor_type", "processor_class")
    transform = transform_of(whole, "Idefics")
    whole.done(idle=())
    pictures.skip(*pictures.values)
    return transform


def _connector(config: Settings) -> Connector.Config:
    resampled = config.take("use_resampler", bool, False)
    fields = config.inner("perceiver_config", {})
    fields.skip("use_resampler")
    connector = Resampler.Config(
        latents=fields.count("resampler_n_latents", 64), depth=fields.count("resampler_depth", 6),
        heads=fields.count("resampler_n_heads", 16), head_width=fields.count("resampler_head_dim", 96),
        qk_norm=fields.take("qk_layer_norms_perceiver", bool, False), activation="relu", project=False,
    )  # fmt: skip
    fields.done()
    return connector if resampled else AsIs.Config()


def _backbone(config: Settings, memory: int) -> Backbone.Config:
    """The language model with its gated blocks, whose keys and values are read from tokens of width `memory`."""
    for name in ("num_key_value_heads", "head_dim", "mlp_bias"):
        config.only(name, None)
    config.skip(*_STARTS, *_OLD)
    plain = like_llama(config)
    every = config.count("cross_layer_interval", 1)
    if plain.depth % every:
        raise config.error(f"cross_layer_interval {every} does not divide num_hidden_layers {plain.depth}")
    block = plain.block
    normed = config.take("qk_layer_norms", bool, False)
    cross = Cross.Config(
        attention=Attention.Config(heads=block.attention.heads, qk_norm=block.norm if normed else False),
        memory=memory, place="before", gated=True, gate=config.choose("alpha_type", _GATES, "float"), ffn=block.ffn,
        ffn_on="all", norm=block.norm,
    )  # fmt: skip
    added = config.count("additional_vocab_size", 0, least=0)
    return plain.replace(
        block=block.replace(cross=cross), cross_every=every, vocab=plain.vocab + added, added=added
    )  # fmt: skip


def _parts(model: Wiring.Config) -> tuple[ViT.Config, Connector.Config, Backbone.Config]:
    """Tower, connector and language model. Raises UserError for a model of other parts."""
    if isinstance(model, Fused.Config) and set(model.encoders) == {"image"} and set(model.connectors) == {"image"}:
        tower, connector = model.encoders["image"], model.connectors["image"]
        reads = model.memory == ("image",)
        if isinstance(tower, ViT.Config) and reads and _model(tower, connector, model.backbone) == model:
            return tower, connector, model.backbone
    raise OtherKind("the layout of Idefics holds a ViT, a resampler or nothing, and a language model whose tokens read "
                    f"the latest picture by cross-attention; this model is another: {model.tag()}")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    tower, connector, backbone = _parts(model)
    if tower.replace(class_feature=True, normed=False, drop_last=0, levels=()) != tower:
        raise UserError("the layout of Idefics reads all states of a tower, its class token's too, as they leave the "
                        f"last block; this model has class_feature={tower.class_feature}, normed={tower.normed}, "
                        f"drop_last={tower.drop_last}, levels={tower.levels}")  # fmt: skip
    vision = CLIP_VISION.write(tower)
    vision |= {"model_type": "idefics_vision", "embed_dim": vision.pop("hidden_size")}
    config = {**_text(backbone, tower.width), **_resampler(connector), "vision_config": vision}
    side = tower.transform.size
    name = {"processor_class": "IdeficsProcessor"}
    pictures = {**picture_settings(tower.transform, "Idefics"), "image_size": side, "image_num_channels": 3}
    return Written(config, {**name, **pictures}, name)


def _text(backbone: Backbone.Config, memory: int) -> dict[str, Any]:
    cross = backbone.block.cross
    assert cross is not None
    config = written(backbone, "idefics")
    del config["num_key_value_heads"]
    config |= {
        "vocab_size": backbone.vocab - backbone.added, "additional_vocab_size": backbone.added,
        "cross_layer_interval": backbone.cross_every, "qk_layer_norms": bool(cross.attention.qk_norm),
        "alpha_type": {ours: theirs for theirs, ours in _GATES.items()}[cross.gate],
    }  # fmt: skip
    return said(config, lambda settings: _backbone(settings, memory), backbone, "Idefics")


def _resampler(connector: Connector.Config) -> dict[str, Any]:
    config: dict[str, Any] = {"use_resampler": isinstance(connector, Resampler.Config)}
    if isinstance(connector, Resampler.Config):
        config["perceiver_config"] = {
            "model_type": "idefics_perciever", "use_resampler": True, "resampler_n_latents": connector.latents,
            "resampler_depth": connector.depth, "resampler_n_heads": connector.heads,
            "resampler_head_dim": connector.head_width, "qk_layer_norms_perceiver": connector.qk_norm,
        }  # fmt: skip
    if _connector(Settings(config)) != connector:
        raise UserError("the layout of Idefics has a resampler without a last linear layer and with ReLU, of the "
                        f"tower's width, or none (AsIs); this model has {connector}")  # fmt: skip
    return config


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    tower, _, backbone = _parts(model)
    rules = [
        *under(CLIP_VISION.rules(tower), "model.vision_model.", "encoders.image."),
        *_RESAMPLER,
        *_words(backbone),
        *under(RULES, ours="backbone."),
    ]
    cross = backbone.block.cross
    scalar = cross is None or cross.gate == "scalar"
    for place in range(0, backbone.depth, backbone.cross_every):
        there, here = f"model.gated_cross_attn_layers.{place // backbone.cross_every}", f"backbone.blocks.{place}.cross"
        gate = Reshaped(1) if scalar else Reshaped(1, 1, -1)
        rules += [
            *(Rule(f"{there}.cross_attn.{name}_proj.*", f"{here}.attention.{name}.*") for name in "qkvo"),
            *(Rule(f"{there}.cross_attn.{name}_layer_norm.*", f"{here}.attention.{name}_norm.*") for name in "qk"),
            *(Rule(f"{there}.mlp.{name}_proj.*", f"{here}.ffn.{name}.*") for name in ("gate", "up", "down")),
            Rule(f"{there}.input_layernorm.*", f"{here}.norm.*"),
            Rule(f"{there}.post_attention_layernorm.*", f"{here}.ffn_norm.*"),
            Rule(f"{there}.alpha_cross_attn", f"{here}.gate", gate),
            Rule(f"{there}.alpha_dense", f"{here}.ffn_gate", gate),
        ]
    return rules


def _words(backbone: Backbone.Config) -> list[Rule]:
    """Rows of the first words stand in one tensor, of those that were added in another."""
    if not backbone.added:
        return []
    fit = Appended(-1, backbone.added)
    there = "model.embed_tokens"
    return [
        Rule((f"{there}.weight", f"{there}.additional_embedding.weight"), "backbone.embed.weight", fit),
        Rule(("lm_head.weight", "lm_head.additional_fc.weight"), "backbone.head.weight", fit),
    ]


def _resampler_rules() -> list[Rule]:
    there, here = "model.perceiver_resampler.blocks.{}", "connectors.image.layers.{}"
    attention = {
        "context_layer_norm": "norm_features", "latents_layer_norm": "norm_latents", "q_layer_norm": "q_norm",
        "k_layer_norm": "k_norm", "q_proj": "q", "k_proj": "k", "v_proj": "v", "output_proj": "o",
    }  # fmt: skip
    ffn = {"ln": "norm_ffn", "fc": "ffn.up", "c_proj": "ffn.down"}
    return [
        Rule("model.perceiver_resampler.latents", "connectors.image.latents"),
        Rule("model.perceiver_resampler.layer_norm.*", "connectors.image.norm.*"),
        *(Rule(f"{there}.0.{theirs}.*", f"{here}.{ours}.*") for theirs, ours in attention.items()),
        *(Rule(f"{there}.1.{theirs}.*", f"{here}.{ours}.*") for theirs, ours in ffn.items()),
    ]


_RESAMPLER = _resampler_rules()


def _prompts(files: Files, plain: Template) -> Template:
    """A token marks each picture, and stays; a folder without a chat template gets the dialogue of the models."""
    tokenizer = files.words()
    for token in (IMAGE, AROUND):
        if token not in tokenizer.special:
            raise UserError(f"{files.folder}: its tokenizer has no special token {token!r}, by which prompts of "
                            "Idefics mark a picture")  # fmt: skip
    template = plain.replace(
        placeholder={"image": IMAGE}, marked=("image",), media={"image": (AROUND + IMAGE, AROUND)}, opens=plain.bos,
        begin=plain.bos,
    )  # fmt: skip
    if tokenizer.chat_template is not None:
        return template
    over = OVER if OVER in tokenizer.special else ""
    chat = f"{{% set over = '{over}' %}}{_CHAT}"
    return template.replace(chat=chat, ends=(*template.ends, over) if over else template.ends)


IDEFICS = Family(
    "idefics", ("idefics",), "IdeficsForVisionText2Text", _read, _write, _rules, prompts=_prompts,
    spare=("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.vision_model.embeddings.position_ids",
           "model.gated_cross_attn_layers.{}.cross_attn.rotary_emb.inv_freq"),
    copies={"lm_head.weight": "model.embed_tokens.weight",
            "lm_head.additional_fc.weight": "model.embed_tokens.additional_embedding.weight"},
)  # fmt: skip
