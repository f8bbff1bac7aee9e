"""T5 (Raffel et al. 2020, arXiv 1910.10683), T5 1.1 and Flan-T5: an encoder of the prompt, and a decoder that reads it.

What tells the releases apart is not in their names: the first has one matrix for embeddings and head, and scales what
the head reads by width^-0.5; from 1.1 on the head is its own and nothing is scaled. Old configs say both with
`tie_word_embeddings`. Newer ones say `scale_decoder_outputs`, and whether the head is its own is seen in the files.
"""

from __future__ import annotations

from typing import Any

from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule
from sensorium.convert.layout import Family
from sensorium.convert.settings import Settings
from sensorium.convert.stack import ACTIVATIONS, activation_name, said
from sensorium.errors import OtherKind
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.readout import Readout
from sensorium.nn.relative import RelativeBias
from sensorium.render import Template

HEAD = "lm_head.weight"
_SPARE = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""Old files have it, and nothing reads it."""
_COPIES = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight",
           HEAD: "shared.weight"}  # fmt: skip
CHAT = (
    "{% if messages | length != 1 or messages[0]['role'] != 'user' %}{{ raise_exception('a T5 answers one prompt, "
    "which is plain text: give it a single message of the user') }}{% endif %}{{ messages[0]['content'] }}"
)
"""There is no published one: a prompt is the text itself."""


def _read(files: Files) -> Wiring.Config:
    """config.json, and where it leaves that open the files -> encoder and decoder."""
    settings = files.config
    tied, told = settings.take("tie_word_embeddings", bool, True), "scale_decoder_outputs" in settings
    return _model(settings, own_head=not tied or (told and HEAD in files.tensors))


def _model(settings: Settings, own_head: bool) -> Fused.Config:
    settings.only("is_encoder_decoder", True)
    settings.skip("dropout_rate", "n_positions", "output_past")
    scaled = settings.take("scale_decoder_outputs", bool, settings.take("tie_word_embeddings", bool, True))
    depth, width = settings.count("num_layers"), settings.count("d_model")
    depths = (depth, settings.count("num_decoder_layers", depth))
    attention = Attention.Config(heads=settings.count("num_heads"), head_width=settings.count("d_kv", 64), scaled=False)
    norm = Norm.Config(eps=settings.take("layer_norm_epsilon", float, 1e-6))
    block = Block.Config(attention=attention, ffn=_feed_forward(settings), norm=norm)
    relative = RelativeBias.Config(
        buckets=settings.count("relative_attention_num_buckets", 32, least=4),
        distance=settings.count("relative_attention_max_distance", 128, least=2),
    )  # fmt: skip
    source = Backbone.Config(width=width, depth=depths[0], block=block, tied=False, relative=relative)
    backbone = Backbone.Config(
        vocab=settings.count("vocab_size"), width=width, depth=depths[1], tied=not own_head,
        block=block.replace(cross=Cross.Config(attention=attention, norm=norm)), relative=relative.replace(both=False),
        readout=Readout.Config(scale=width**-0.5) if scaled else None,
    )  # fmt: skip
    return Fused.Config(source=source, backbone=backbone, rule=AttentionRule(memory="all"))


def _feed_forward(settings: Settings) -> FeedForward.Config:
    """`gated-gelu` has always meant the approximation by tanh; `dense_act_fn`, where it is written, says so."""
    kind = settings.take("feed_forward_proj", str, "relu")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    settings.only("is_gated_act", gated)
    activation = settings.choose("dense_act_fn", ACTIVATIONS, "gelu_new" if kind == "gated-gelu" else name)
    return FeedForward.Config(hidden=settings.count("d_ff"), activation=activation, gated=gated)


def _write(model: Wiring.Config) -> Written:
    """Raises UserError for a model that is no T5."""
    if not isinstance(model, Fused.Config) or model.source is None or model.kinds:
        kind = "reads more" if getattr(model, "source", None) else "is one without a source"
        raise OtherKind(f"the layout of T5 holds an encoder and a decoder of text alone, this {model.tag()} {kind}")
    source, stack = model.source, model.backbone
    attention, ffn, relative = stack.block.attention, stack.block.ffn, stack.relative
    buckets = relative if isinstance(relative, RelativeBias.Config) else RelativeBias.Config()
    name = "gelu_new" if ffn.activation == "gelu_tanh" else activation_name(ffn.activation)
    kind = f"gated-{'gelu' if name == 'gelu_new' else name}" if ffn.gated else name
    scaled = stack.readout is not None
    written: dict[str, Any] = {
        "model_type": "t5", "is_encoder_decoder": True, "vocab_size": stack.vocab, "d_model": stack.width,
        "d_kv": attention.width_of_head(stack.width), "d_ff": ffn.hidden, "num_layers": source.depth,
        "num_decoder_layers": stack.depth, "num_heads": attention.heads, "layer_norm_epsilon": stack.block.norm.eps,
        "relative_attention_num_buckets": buckets.buckets, "relative_attention_max_distance": buckets.distance,
        "feed_forward_proj": kind, "dense_act_fn": name, "is_gated_act": ffn.gated,
        "scale_decoder_outputs": scaled, "tie_word_embeddings": stack.tied or scaled,
    }  # fmt: skip
    said(written, lambda settings: _model(settings, not stack.tied).backbone, stack, "T5, in its decoder,")
    said(written, lambda settings: _read_source(settings, not stack.tied), source, "T5, in its encoder,")
    if model != Fused.Config(source=source, backbone=stack, rule=AttentionRule(memory="all")):
        raise OtherKind("the layout of T5 holds an encoder and a decoder of text, this model has further parts")
    return Written(written)


def _read_source(settings: Settings, own_head: bool) -> Backbone.Config:
    source = _model(settings, own_head).source
    assert source is not None
    return source


def _rules(model: Wiring.Config) -> tuple[Rule, ...]:
    """Encoder and decoder have the same blocks, but for the one sublayer more in which a decoder reads."""
    assert isinstance(model, Fused.Config)
    return (
        Rule("shared.weight", "backbone.embed.weight"),
        Rule(HEAD, "backbone.head.weight"),
        *_side("encoder", "source", model.backbone.block.ffn.gated, last=1),
        *_side("decoder", "backbone", model.backbone.block.ffn.gated, last=2),
    )  # fmt: skip


def _side(theirs: str, ours: str, gated: bool, last: int) -> list[Rule]:
    layer, block = f"{theirs}.block.{{}}.layer", f"{ours}.blocks.{{}}"
    up = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # the others share it
    return [
        Rule(first, f"{ours}.relative.table.weight"),
        Rule(f"{theirs}.final_layer_norm.weight", f"{ours}.norm.weight"),
        *(Rule(f"{layer}.0.SelfAttention.{one}.weight", f"{block}.attention.{one}.weight") for one in "qkvo"),
        Rule(f"{layer}.0.layer_norm.weight", f"{block}.norm1.weight"),
        *(Rule(f"{layer}.1.EncDecAttention.{one}.weight", f"{block}.cross.attention.{one}.weight") for one in "qkvo"),
        Rule(f"{layer}.1.layer_norm.weight", f"{block}.cross.norm.weight"),
        *(Rule(f"{layer}.{last}.DenseReluDense.{name}.weight", f"{block}.ffn.{one}.weight")
          for one, name in {**up, "down": "wo"}.items()),
        Rule(f"{layer}.{last}.layer_norm.weight", f"{block}.norm2.weight"),
    ]  # fmt: skip


def _prompts(files: Files, plain: Template) -> Template:
    """The prompt is what the encoder reads; the decoder's text begins with a token that the folder names.

    Raises UserError where it names none, or where its tokenizer begins texts: an encoder's text begins with its words.
    """
    if plain.begin:
        raise files.config.error(f"its tokenizer writes {plain.begin!r} before a text, a T5's writes nothing there")
    first = files.config.take("decoder_start_token_id", int, None)
    path = files.folder / "generation_config.json"
    if path.exists():
        first = Settings.load(path).take("decoder_start_token_id", int, first)
    tokenizer = files.words()
    start = None if first is None else tokenizer.token(first)
    if start not in tokenizer.special:
        raise files.config.error(f"decoder_start_token_id is {first}, expected the id of a special token: nothing else "
                                 "says what a decoder's text begins with")  # fmt: skip
    return plain.replace(start=start, chat=files.words().chat_template or CHAT)


T5 = Family(
    "t5", ("t5",), "T5ForConditionalGeneration", _read, _write, _rules, prompts=_prompts, spare=_SPARE, copies=_COPIES
)
