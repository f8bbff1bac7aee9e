"""Chameleon (arXiv 2405.09818): a decoder with the codes of pictures in its vocabulary, and the codec they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ
from sensorium.convert.codec import codec_rules, read_codec, write_codec
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.llama import LLAMA
from sensorium.convert.pictures import Defaults, channels_of, filter_number, filter_of
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import OtherKind, UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.norm import Norm
from sensorium.template import Template

OPEN, CLOSE, IMAGE, CODE = "<racm3:break>", "<eoss>", "<image>", "IMGIMG"
"""Tokens that the released model and its processor have by heart; CODE begins the names of codes."""
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else SEP }}{% endfor %}"
)
"""As the processor writes a prompt: items and words in their order, then the token that ends a turn of the user."""
FIELDS = {
    "vocab_size": 65_536, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_parameters": None, "rope_theta": None,
    "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
"""Of the language model, with what their absence means."""
ONES = (1.0, 1.0, 1.0)
QK_NORM = Norm.Config(kind="layer", eps=1e-5)


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    codec, config = _parts(model)
    norms = [Rule(f"model.layers.{{}}.self_attn.{one}_norm.*", f"blocks.{{}}.attention.{one}_norm.*") for one in "qk"]
    return [
        *under([*LLAMA.rules(config.backbone), *norms], ours="backbone."),
        *under(codec_rules(codec), "model.vqmodel.", "codecs.image."),
    ]


def _parts(model: Wiring.Config) -> tuple[VQ.Config, Fused.Config]:
    """Raises UserError for a model that is no Chameleon."""
    codec = model.codecs.get("image")
    if not isinstance(model, Fused.Config) or model.kinds != ("image",) or not isinstance(codec, VQ.Config):
        raise OtherKind("the layout of Chameleon holds a decoder, and a codec whose codes of pictures are words of it: "
                        f"this model is another {model.tag()}")  # fmt: skip
    return codec, model


def _read(files: Files) -> Fused.Config:
    settings = files.config
    settings.skip("model_parallel_size", "image_token_id")
    given = {name: settings.take(name, object, default) for name, default in FIELDS.items()}
    backbone = LLAMA.read(Settings({one: value for one, value in given.items() if value is not None}, settings.where))
    block = backbone.block
    attention = block.attention.replace(qk_norm=QK_NORM, qk_norm_by_head=True)
    place = "behind" if settings.take("swin_norm", bool, False) else "pre"
    codec = read_codec(settings.inner("vq_config", {}), _transform(files.pictures))
    length = codec.grid((codec.transform.size,) * 2).tokens
    said = files.processor.count("image_seq_length", 1024)
    if said != length:
        raise files.processor.error(f"image_seq_length is {said}, and a picture of {codec.transform.size} pixels has "
                                    f"{length} codes (config.json vq_config)")  # fmt: skip
    files.token("image_token", IMAGE)
    return Fused.Config(
        codecs={"image": codec}, tokens={"image": _tokens(settings, codec)},
        backbone=backbone.replace(block=block.replace(attention=attention, place=place)),
    )  # fmt: skip


def _tokens(settings: Settings, codec: VQ.Config) -> CodeTokens:
    """Where codes stand in the vocabulary, by their names."""
    words: Mapping[str, Any] = settings.take("vocabulary_map", dict)
    ids = {_number(name, settings): id for name, id in words.items() if name.startswith(CODE)}
    missing = [one for one in (OPEN, CLOSE, IMAGE) if not isinstance(words.get(one), int)]
    if missing or sorted(ids) != list(range(codec.codes)):
        raise settings.error(f"vocabulary_map names {len(ids)} codes of pictures and lacks {missing or 'no mark'}: it "
                             f"needs {OPEN}, {CLOSE}, {IMAGE} and a name for each of {codec.codes} codes")  # fmt: skip
    table = tuple(ids[code] for code in range(codec.codes))
    return CodeTokens(first=table[0], codes=codec.codes, table=table, open=words[OPEN], close=words[CLOSE],
                      filler=words[IMAGE])  # fmt: skip


def _number(name: str, settings: Settings) -> int:
    """The code that a name says: its digits as letters from A, then one letter more."""
    digits = "".join(str(ord(sign) - ord("A")) for sign in name[len(CODE) : -1])
    if not digits.isdigit():
        raise settings.error(
            f"vocabulary_map has {name!r}: after {CODE} come letters A to J for digits, and a last one"
        )
    return int(digits)


def name_of(code: int) -> str:
    """The name of a code in the vocabulary."""
    return CODE + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def _transform(settings: Settings) -> ImageTransform:
    """The shorter side to a size, the centre of it, values of pixels scaled by a factor of its own."""
    settings.skip("default_to_square", "data_format")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"):
        settings.only(name, True)
    shortest, crop = (
        settings.inner("size", {"shortest_edge": 512}),
        settings.inner("crop_size", {"height": 512, "width": 512}),
    )
    sizes = {shortest.count("shortest_edge"), crop.count("height"), crop.count("width")}
    if len(sizes) > 1:
        raise settings.error(f"size and crop_size are {sorted(sizes)}: pictures of one size alone can be said here")
    for fields in (shortest, crop):
        fields.done(idle=())
    mean = channels_of(settings, "image_mean", ONES)
    std = channels_of(settings, "image_std", ONES)
    scale = settings.take("rescale_factor", float, 0.0078)
    return ImageTransform(
        size=sizes.pop(), filter=filter_of(settings, Defaults(filter="lanczos")), scale=scale, mean=mean, std=std
    )


def _write(model: Wiring.Config) -> Written:
    codec, config = _parts(model)
    tokens, transform, backbone = config.tokens["image"], codec.transform, config.backbone
    block = backbone.block
    attention = block.attention
    if attention.qk_norm != QK_NORM or not attention.qk_norm_by_head or block.place not in ("pre", "behind"):
        raise UserError("the layout of Chameleon has LayerNorm (eps 1e-5) on queries and keys, with weights for each "
                        f"head, and norms before or behind: this has {attention}, norms {block.place!r}")  # fmt: skip
    plain = block.replace(attention=attention.replace(qk_norm=False, qk_norm_by_head=False), place="pre")
    text = LLAMA.write(_of_heads(backbone.replace(block=plain)))
    if tokens.filler is None or tokens.row is not None or tokens.frame is not None:
        raise UserError("the layout of Chameleon has codes, two marks around them, a token that stands for them, and "
                        f"no others: row {tokens.row}, frame {tokens.frame}, "
                        f"filler {tokens.filler}")  # fmt: skip
    table = tokens.table or range(tokens.first, tokens.first + tokens.codes)
    words = {name_of(code): id for code, id in enumerate(table)}
    size = transform.size
    pictures: dict[str, Any] = {
        "image_processor_type": "ChameleonImageProcessor", "do_resize": True, "do_center_crop": True,
        "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size}, "rescale_factor": transform.scale or 1 / 255,
        "resample": filter_number(transform.filter),
        "image_mean": list(transform.mean), "image_std": list(transform.std),
    }  # fmt: skip
    if _transform(Settings(pictures)) != transform.replace(scale=transform.scale or 1 / 255):
        raise UserError(f"the layout of Chameleon cannot say how this model prepares pictures: {transform}")
    fields = {
        **{name: text[name] for name in FIELDS if name in text}, "model_type": "chameleon", "swin_norm":
        block.place == "behind", "vq_config": write_codec(codec), "image_token_id": tokens.filler,
        "vocabulary_map": {**words, IMAGE: tokens.filler, OPEN: tokens.open, CLOSE: tokens.close},
    }  # fmt: skip
    length = codec.grid((size, size)).tokens
    return Written(fields, pictures, {"processor_class": "ChameleonProcessor", "image_seq_length": length})


def _of_heads(backbone: Backbone.Config) -> Backbone.Config:
    """Raises UserError for heads whose widths do not add up to the model's."""
    attention = backbone.block.attention
    if attention.width_of_head(backbone.width) * attention.heads != backbone.width:
        raise UserError(f"the layout of Chameleon divides a width of {backbone.width} into heads: this model has "
                        f"{attention.heads} of {attention.head_width}")  # fmt: skip
    return backbone


def _prompts(files: Files, plain: Template) -> Template:
    """A tokenizer that has a chat template has its own way; the released one has a token that ends what is asked."""
    words = files.words()
    if words.chat_template is not None:
        return plain.replace(placeholder={"image": IMAGE})
    sep = words.named.get("sep_token")
    if sep is None or sep not in words.special:
        raise UserError(f"{files.folder}: its tokenizer names no token that ends what is asked (sep_token)")
    return plain.replace(chat=CHAT.replace("SEP", repr(sep)), placeholder={"image": IMAGE}, opens=plain.begin)


CHAMELEON = Family(
    "chameleon", ("chameleon",), "ChameleonForConditionalGeneration", _read, _write, _rules, spare=LLAMA.spare,
    copies=LLAMA.copies, prompts=_prompts,
)  # fmt: skip
