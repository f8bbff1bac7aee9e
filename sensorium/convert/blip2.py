"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): a ViT, a Q-Former, a projection, a language model (OPT or Flan-T5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sensorium.connectors.qformer import QFormer
from sensorium.convert.blip_tower import BLIP_2_VISION
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Reshaped, Rule, under
from sensorium.convert.language import LANGUAGE
from sensorium.convert.layout import Family
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name, part, stack_for
from sensorium.convert.t5 import T5
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.template import Template

WORDS = (
    "{% for message in messages %}{{ '' if loop.first else ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}"
)
"""There is no published chat template: what is asked is the text itself, for example "Question: .. Answer:"."""
_BERT, _LANGUAGE = "connectors.image.stack", "language_model."


def _read(files: Files) -> Wiring.Config:
    config = files.config
    fields = config.inner("qformer_config", {})
    fields.only("model_type", "blip_2_qformer")
    fields.skip("vocab_size", "max_position_embeddings")  # nothing here reads words
    qformer = qformer_of(fields, config.count("num_query_tokens", 32)).replace(
        vocab=0, text_ffn=fields.take("use_qformer_text_input", bool, False)
    )
    config.skip("image_text_hidden_size")
    return fused(files, BLIP_2_VISION, qformer, fields)


def qformer_of(fields: Settings, queries: int) -> QFormer.Config:
    """A Q-Former's config, without what it says of words."""
    fields.only("position_embedding_type", "absolute")
    return QFormer.Config(
        queries=queries, every=fields.count("cross_attention_frequency", 2), width=fields.count("hidden_size", 768),
        depth=fields.count("num_hidden_layers", 12), heads=fields.count("num_attention_heads", 12),
        hidden=fields.count("intermediate_size", 3072), activation=activation(fields, "hidden_act", "gelu"),
        eps=fields.take("layer_norm_eps", float, 1e-12),
    )  # fmt: skip


def fused(files: Files, stack: Stack[ViT.Config], qformer: QFormer.Config, fields: Settings) -> Fused.Config:
    """The tower with its pictures as the folder says, the Q-Former, and the language model of the folder."""
    config = files.config
    _, tower = part(config, "vision_config", (stack,), stack.types[0])
    language = _language(files)
    transform = transform_of(files.pictures)
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    reads = fields.take("encoder_hidden_size", int, tower.backbone.width)
    if reads != tower.backbone.width:
        raise fields.error(f"encoder_hidden_size is {reads}, and the vision tower is {tower.backbone.width} wide")
    fields.done()
    said = files.processor.take("num_query_tokens", int, qformer.queries)
    if said != qformer.queries:
        raise files.processor.error(f"num_query_tokens is {said}, and that of config.json {qformer.queries}")
    config.only("use_decoder_only_language_model", language.source is None)
    config.skip("image_token_index", "image_token_id", "tie_word_embeddings")
    return language.replace(encoders={"image": tower.replace(transform=transform)}, connectors={"image": qformer})


def _language(files: Files) -> Fused.Config:
    """The language model of the folder, which is a decoder alone or an encoder-decoder."""
    if not _says_t5(files):
        return Fused.Config(backbone=part(files.config, "text_config", LANGUAGE, "opt")[1])
    inner = _inner(files)
    language = T5.read(inner)
    inner.config.done()
    assert isinstance(language, Fused.Config)
    return language


def _says_t5(files: Files) -> bool:
    return files.config.inner("text_config", {}).take("model_type", str, "opt") in T5.types


def _inner(files: Files) -> Files:
    """What the folder says of its language model."""
    names = (name.removeprefix(_LANGUAGE) for name in files.tensors if name.startswith(_LANGUAGE))
    return replace(files, config=files.config.inner("text_config", {}), tensors=frozenset(names))


def parts_of(model: Wiring.Config, name: str) -> tuple[ViT.Config, QFormer.Config, Fused.Config]:
    """Tower, Q-Former and the language model alone. Raises UserError for a model of other parts."""
    if isinstance(model, Fused.Config) and tuple(model.kinds) == ("image",) and "image" in model.connectors:
        tower, connector = model.encoders.get("image"), model.connectors["image"]
        language = Fused.Config(backbone=model.backbone, source=model.source, rule=model.rule)
        same = model == language.replace(encoders=model.encoders, connectors=model.connectors)
        if isinstance(tower, ViT.Config) and isinstance(connector, QFormer.Config) and same:
            return tower, connector, language
    own = ", ".join(one.tag() for one in (*model.encoders.values(), *model.connectors.values()))
    raise OtherKind(f"the layout of {name} holds a ViT, a Q-Former and a language model that reads pictures among its "
                    f"words; this model is another: {model.tag()} with {own or 'no items'}")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    _, connector, _ = parts_of(model, "BLIP-2")
    said = {**qformer_written(connector), "model_type": "blip_2_qformer", "use_qformer_text_input": connector.text_ffn}
    known = qformer_of(Settings(said), connector.queries).replace(vocab=0, text_ffn=connector.text_ffn)
    same_qformer(known, connector, "BLIP-2")
    return written(model, "blip-2", "Blip2Processor", BLIP_2_VISION, said)


def qformer_written(connector: QFormer.Config) -> dict[str, Any]:
    return {
        "hidden_size": connector.width, "num_hidden_layers": connector.depth, "num_attention_heads": connector.heads,
        "intermediate_size": connector.hidden, "hidden_act": activation_name(connector.activation),
        "layer_norm_eps": connector.eps, "cross_attention_frequency": connector.every,
    }  # fmt: skip


def same_qformer(read: QFormer.Config, connector: QFormer.Config, name: str) -> None:
    """Raises UserError for a Q-Former that the layout has no words for."""
    for field in type(read).model_fields:
        wanted, known = getattr(connector, field), getattr(read, field)
        if wanted != known:
            raise UserError(f"the layout of {name} cannot say this Q-Former: its {field} is {wanted!r}, and {known!r} "
                            "is what would be read")  # fmt: skip


def written(
    model: Wiring.Config, kind: str, processor: str, stack: Stack[ViT.Config], qformer: dict[str, Any]
) -> Written:
    """What a folder says of a model whose Q-Former is said already."""
    tower, connector, language = parts_of(model, kind)
    if not tower.class_feature or tower.drop_last or tower.levels or not tower.normed:
        raise UserError(f"the layout of {kind} reads the last state of its tower behind the final norm, class token "
                        "included: this model reads others")  # fmt: skip
    plain = language.source is None
    text = stack_for(language.backbone, LANGUAGE)[1] if plain else T5.write(language).config
    config = {
        "model_type": kind, "vision_config": stack.write(tower), "text_config": text,
        "qformer_config": {**qformer, "encoder_hidden_size": tower.backbone.width},
        "num_query_tokens": connector.queries, "use_decoder_only_language_model": plain,
    }  # fmt: skip
    name = {"processor_class": processor}
    pictures = {**name, **picture_settings(tower.transform), "image_processor_type": "BlipImageProcessor"}
    return Written(config, pictures, {**name, "num_query_tokens": connector.queries})


def rules(model: Wiring.Config, stack: Stack[ViT.Config], embeddings: str) -> list[Rule]:
    """Names of all tensors; `embeddings` is what the Q-Former's norm of what goes in is called there."""
    tower, connector, language = parts_of(model, "BLIP-2")
    there, here = "qformer.encoder.layer.{}", f"{_BERT}.blocks.{{}}"
    reads = [("attention", "attention", "norm1"), ("crossattention", "cross.attention", "cross.norm")]
    names = (("query", "q"), ("key", "k"), ("value", "v"))
    says = [("_query", ".routes.1" if connector.text_ffn else ""), *([("", "")] if connector.text_ffn else [])]
    return [
        Rule("query_tokens", "connectors.image.queries", Reshaped(1, -1, connector.width)),
        Rule("language_projection.*", "connectors.image.out.*"),
        Rule(f"qformer.{embeddings}.*", f"{_BERT}.embed_norm.*"),
        Rule("qformer.embeddings.word_embeddings.weight", f"{_BERT}.embed.weight"),
        Rule("qformer.embeddings.position_embeddings.weight", f"{_BERT}.place.weight"),
        *(Rule(f"{there}.{a}.attention.{x}.*", f"{here}.{b}.{y}.*") for a, b, _ in reads for x, y in names),
        *(Rule(f"{there}.{a}.output.dense.*", f"{here}.{b}.o.*") for a, b, _ in reads),
        *(Rule(f"{there}.{a}.output.LayerNorm.*", f"{here}.{norm}.*") for a, _, norm in reads),
        *(Rule(f"{there}.intermediate{end}.dense.*", f"{here}{route}.ffn.up.*") for end, route in says),
        *(Rule(f"{there}.output{end}.dense.*", f"{here}{route}.ffn.down.*") for end, route in says),
        *(Rule(f"{there}.output{end}.LayerNorm.*", f"{here}{route}.norm2.*") for end, route in says),
        *under(stack.rules(tower), "vision_model.", "encoders.image."),
        *_language_rules(language),
    ]  # fmt: skip


def _language_rules(language: Fused.Config) -> list[Rule]:
    if language.source is not None:
        return under(T5.rules(language), _LANGUAGE)
    stack = stack_for(language.backbone, LANGUAGE)[0]
    return under(stack.rules(language.backbone), _LANGUAGE, "backbone.")


def query_prompts(files: Files, plain: Template) -> Template:
    """The processor puts the queries of a picture before all else, the token that begins a text included."""
    start = T5.prompts(_inner(files), plain).start if _says_t5(files) else ""
    return plain.replace(
        start=start, chat=files.words().chat_template or WORDS, ahead=("image",), opens=plain.begin,
        placeholder={"image": files.token("image_token", "<image>")},
    )  # fmt: skip


MORE = {
    "prompts": query_prompts,
    "tokens": {"image": "image_token_index"},
    "spare": ("qformer.embeddings.position_ids", f"{_LANGUAGE}model.layers.{{}}.self_attn.rotary_emb.inv_freq",
              *(_LANGUAGE + name for name in T5.spare)),
    "copies": {
        **{f"{_LANGUAGE}{side}.embed_tokens.weight": f"{_LANGUAGE}shared.weight" for side in ("encoder", "decoder")},
        f"{_LANGUAGE}lm_head.weight": f"{_LANGUAGE}model.decoder.embed_tokens.weight",
    },
}  # fmt: skip
BLIP_2 = Family(
    "blip-2", ("blip-2",), "Blip2ForConditionalGeneration", _read, _write,
    lambda model: rules(model, BLIP_2_VISION, "layernorm"), **MORE,
)  # fmt: skip
