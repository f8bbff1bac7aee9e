"""Emu3 (arXiv 2409.18869): a decoder as Llama's over words and codes, and the codec of pictures and clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sensorium.codecs.clips import ClipVQ
from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens, Size
from sensorium.codecs.vq import Quantizer
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Fit, Joined, Reshaped, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.llama import LLAMA
from sensorium.convert.pictures import CLIP_MEAN, CLIP_STD, Defaults, channels_of, filter_number, filter_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import part
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import OtherKind, UserError
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer

TEXT = replace(
    LLAMA, types=("emu3_text_model",), absent={
        "vocab_size": 184_622, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    },
)  # fmt: skip
"""The language model inside, which says no biases."""
NAMES = {"open": "boi_token", "close": "eoi_token", "wrap": "image_wrapper_token", "frame": "eof_token",
         "image": "image_token"}  # fmt: skip
"""Fields of the tokenizer with the tokens around pictures."""
ROW, CODE, AFTER = "<|extra_200|>", "<|visual token ", "|>"
"""Tokens that the released model has by heart: the end of a row, and what the names of codes begin and end with."""


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    codec, config = _parts(model)
    return [*under(LLAMA.rules(config.backbone), "text_model.", "backbone."),
            *under(_codec_rules(codec), "vqmodel.", "codecs.image.")]  # fmt: skip


def _parts(model: Wiring.Config) -> tuple[ClipVQ.Config, Fused.Config]:
    """Raises UserError for a model that is no Emu3."""
    codec = model.codecs.get("image")
    if (
        not isinstance(model, Fused.Config)
        or set(model.kinds) - {"video"} != {"image"}
        or not isinstance(codec, ClipVQ.Config)
    ):
        raise OtherKind("the layout of Emu3 holds a decoder, and a codec of clips whose codes are words of it: this "
                        f"model is another {model.tag()}")  # fmt: skip
    return codec, model


def _read(files: Files) -> Fused.Config:
    settings = files.config
    tied = settings.take("tie_word_embeddings", bool, False)
    backbone = part(settings, "text_config", (TEXT,), "emu3_text_model")[1].replace(tied=tied)
    codec = _read_codec(settings.inner("vq_config", {}), files.pictures)
    tokens = _tokens(settings, files.words(), codec)
    settings.only("image_token_id", tokens.filler)
    return Fused.Config(codecs={"image": codec}, tokens={"image": tokens}, backbone=backbone)


def _tokens(settings: Settings, tokenizer: Tokenizer, codec: ClipVQ.Config) -> CodeTokens:
    """Where codes and their marks stand in the vocabulary."""
    words: Mapping[str, Any] = settings.take("vocabulary_map", dict)
    ids = {int(name[len(CODE) : -len(AFTER)]): id for name, id in words.items() if name.startswith(CODE)}
    named = {part: tokenizer.special.get(tokenizer.named.get(field, ""), -1) for part, field in NAMES.items()}
    missing = [NAMES[part] for part, id in named.items() if id < 0]
    if missing or sorted(ids) != list(range(codec.codes)) or not isinstance(words.get(ROW), int):
        raise settings.error(f"vocabulary_map names {len(ids)} codes of pictures, expected {codec.codes} and {ROW}; the"
                             f" tokenizer lacks {missing or 'no mark'}")  # fmt: skip
    if words.get("<image>") != named["image"]:
        raise settings.error(
            f"<image> is {words.get('<image>')} in vocabulary_map and {named['image']} in the tokenizer"
        )
    digits = tuple(one for digit in range(10) for one in tokenizer.encode(str(digit)))
    by = tokenizer.encode("*")
    if tokenizer.encode("1234567890*10") != [digits[int(one)] if one != "*" else by[0] for one in "1234567890*10"]:
        raise settings.error(
            "the tokenizer says the size of a picture (90*120) in other tokens than one for each digit"
        )
    table = tuple(ids[code] for code in range(codec.codes))
    plain = table == tuple(range(table[0], table[0] + len(table)))
    return CodeTokens(
        first=table[0], codes=codec.codes, table=() if plain else table, open=named["open"], close=named["close"],
        row=words[ROW], frame=named["frame"], filler=named["image"],
        size=Size(digits=digits, by=by[0], then=named["wrap"]),
    )  # fmt: skip


def _read_codec(settings: Settings, pictures: Settings) -> ClipVQ.Config:
    settings.skip("attention_dropout")
    for name, value in (("double_latent", False), ("in_channels", 3), ("out_channels", 3), ("num_attention_heads", 1),
                        ("model_type", "emu3_vqgan")):  # fmt: skip
        settings.only(name, value)
    width = settings.count("embed_dim", 4)
    settings.only("latent_channels", 4 if "latent_channels" not in settings else width)
    blocks = settings.count("num_res_blocks", 2)
    conv = Convolutions(
        channels=settings.count("base_channels", 256), halving="end", blocks=blocks, time_blocks=blocks,
        multipliers=tuple(settings.take("channel_multiplier", list, [1, 2, 2, 4])),
        attend=tuple(settings.take("attn_resolutions", list, [3])),
        temporal=settings.count("temporal_downsample_factor", 4),
    )  # fmt: skip
    settings.only("hidden_size", 1024 if "hidden_size" not in settings else conv.widths[-1])
    if any(conv.widths[level] != conv.widths[-1] for level in conv.attend):
        raise settings.error(f"attn_resolutions {conv.attend} have other widths than the last level: {conv.widths}")
    book = Quantizer.Config(codes=settings.count("codebook_size", 32_768), width=width, learning="gradient", revive=0.0,
                            begin=False)  # fmt: skip
    settings.done()
    return ClipVQ.Config(transform=_transform(pictures, conv), conv=conv, quantizer=book)


def _transform(settings: Settings, conv: Convolutions) -> ImageTransform:
    """Both sides to multiples of a cell, the number of pixels in bounds."""
    settings.skip("size", "do_pad")
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        settings.only(name, True)
    settings.only("rescale_factor", 1 / 255)
    settings.only("spatial_factor", 8 if "spatial_factor" not in settings else conv.spatial)
    pixels = settings.count("min_pixels", 512 * 512), settings.count("max_pixels", 1024 * 1024)
    mean = channels_of(settings, "image_mean", CLIP_MEAN)
    std = channels_of(settings, "image_std", CLIP_STD)
    side = round(pixels[1] ** 0.5) // conv.spatial * conv.spatial
    return ImageTransform(size=max(side, conv.spatial), resize="area", multiple=conv.spatial, area=pixels,
                          filter=filter_of(settings, Defaults()), mean=mean, std=std)  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    codec, config = _parts(model)
    tokens, transform, conv = config.tokens["image"], codec.transform, codec.conv
    if tokens.size is None or tokens.row is None or tokens.frame is None or tokens.filler is None:
        raise UserError(
            "the layout of Emu3 says the size of a picture and ends its rows and frames: this model has "
            f"size {tokens.size}, row {tokens.row}, frame {tokens.frame}, filler {tokens.filler}"
        )
    vq = {
        "model_type": "emu3_vqgan", "codebook_size": codec.codes, "embed_dim": codec.quantizer.width,
        "latent_channels": codec.quantizer.width, "double_latent": False, "in_channels": 3, "out_channels": 3,
        "temporal_downsample_factor": conv.temporal, "base_channels": conv.channels, "num_attention_heads": 1,
        "channel_multiplier": list(conv.multipliers), "num_res_blocks": conv.blocks, "hidden_size": conv.widths[-1],
        "attn_resolutions": list(conv.attend),
    }  # fmt: skip
    pictures = {
        "image_processor_type": "Emu3ImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "rescale_factor": 1 / 255, "spatial_factor": conv.spatial,
        "min_pixels": transform.area[0], "max_pixels": transform.area[1],
        "resample": filter_number(transform.filter),
        "image_mean": list(transform.mean), "image_std": list(transform.std),
    }  # fmt: skip
    again = _read_codec(Settings(vq, "vq_config"), Settings(pictures))
    # how its codes would be learned on, the layout does not say
    learns = {name: getattr(again.quantizer, name) for name in ("learning", "decay", "revive", "begin")}
    same = codec.replace(
        quantizer=codec.quantizer.replace(**learns), transform=transform.replace(size=again.transform.size)
    )
    if again != same or codec.quantizer.counts:
        raise UserError(f"the layout of Emu3 cannot say this codec: it is {codec}, and {again} is what would be read")
    text = LLAMA.write(config.backbone)
    table = tokens.table or range(tokens.first, tokens.first + tokens.codes)
    words = {f"{CODE}{code:06d}{AFTER}": id for code, id in enumerate(table)}
    fields = {
        "model_type": "emu3", "vq_config": vq, "text_config": {**text, "model_type": "emu3_text_model"},
        "tie_word_embeddings": config.backbone.tied, "image_token_id": tokens.filler,
        "vocabulary_map": {**words, "<image>": tokens.filler, ROW: tokens.row},
    }  # fmt: skip
    return Written(fields, pictures, {"processor_class": "Emu3Processor"})


def _codec_rules(config: ClipVQ.Config) -> Iterator[Rule]:
    """Names of the codec's tensors, both sides."""
    conv = config.conv
    width = conv.widths[-1]
    yield Rule("quantize.embedding.weight", "quantizer.book")
    yield Rule("quant_conv.conv.*", "enter.conv.*")
    yield Rule("post_quant_conv.conv.*", "leave.conv.*")
    for theirs, time, stack in (("encoder", "halves", "before"), ("decoder", "doubles", "behind")):
        yield Rule(f"{theirs}.time_conv.{{}}.conv.conv.*", f"{time}.{{}}.conv.*")
        for number, ours in (("1", "first"), ("2", "second")):
            yield Rule(f"{theirs}.time_res_stack.{{}}.norm{number}.*", f"{stack}.{{}}.{ours}.0.*")
            yield Rule(f"{theirs}.time_res_stack.{{}}.conv{number}.conv.*", f"{stack}.{{}}.{ours}.2.conv.*")
    yield Rule("encoder.conv_in.*", "down.enter.*")
    yield Rule("encoder.norm_out.*", "down.leave.0.*")
    yield Rule("encoder.conv_out.*", "down.leave.2.*")
    yield Rule("decoder.conv_in.*", "up.enter.*")
    yield Rule("decoder.conv_out.*", "up.leave.*")
    yield from _by_codes("decoder.norm_out", "up.norm")
    for theirs, ours, residual, norm in (
        ("encoder", "down", _residual, _plain),
        ("decoder", "up", _residual_by_codes, _by_codes),
    ):
        yield from residual(f"{theirs}.middle_block.block_1", f"{ours}.middle.0")
        yield from residual(f"{theirs}.middle_block.block_2", f"{ours}.middle.2")
        yield from _attention(f"{theirs}.middle_block.attn_1", f"{ours}.middle.1", width)
        yield from norm(f"{theirs}.middle_block.attn_norm", f"{ours}.middle.1.norm")
    levels = len(conv.multipliers)
    for theirs, ours, order, more in (("encoder.down_block.down", "down", range(levels), 0),
                                      ("decoder.up_block.up", "up", range(levels - 1, -1, -1), 1)):  # fmt: skip
        residual, norm = (_residual_by_codes, _by_codes) if more else (_residual, _plain)
        place = 0
        for level in order:
            for block in range(conv.blocks + more):
                yield from residual(f"{theirs}.{level}.block.{block}", f"{ours}.levels.{place}")
                place += 1
                if level in conv.attend:
                    yield from _attention(f"{theirs}.{level}.attn.{block}", f"{ours}.levels.{place}", width)
                    yield from norm(f"{theirs}.{level}.attn_norms.{block}", f"{ours}.levels.{place}.norm")
                    place += 1
            if more:
                yield Rule(f"{theirs}.{level}.upsample.conv.*", f"{ours}.levels.{place}.conv.*")
            else:
                yield Rule(f"{theirs}.{level}.downsample.conv.*", f"{ours}.levels.{place}.*")
            place += 1


def _plain(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.*", f"{ours}.*")


def _by_codes(theirs: str, ours: str) -> Iterator[Rule]:
    for there, here in (("norm_layer", "norm"), ("conv_y", "scale"), ("conv_b", "shift")):
        yield Rule(f"{theirs}.{there}.*", f"{ours}.{here}.*")


def _residual(theirs: str, ours: str) -> Iterator[Rule]:
    names = {"norm1": "first.0", "conv1": "first.2", "norm2": "second.0", "conv2": "second.2", "nin_shortcut": "skip"}
    return (Rule(f"{theirs}.{there}.*", f"{ours}.{here}.*") for there, here in names.items())


def _residual_by_codes(theirs: str, ours: str) -> Iterator[Rule]:
    for name in ("norm1", "norm2"):
        yield from _by_codes(f"{theirs}.{name}", f"{ours}.{name}")
    for there, here in (("conv1", "conv1"), ("conv2", "conv2"), ("nin_shortcut", "skip")):
        yield Rule(f"{theirs}.{there}.*", f"{ours}.{here}.*")


def _attention(theirs: str, ours: str, width: int) -> Iterator[Rule]:
    """Linear layers there, 1 x 1 convolutions here."""
    for leaf, fit in (("weight", Reshaped(width, width)), ("bias", Fit())):
        yield Rule(tuple(f"{theirs}.{one}_proj.{leaf}" for one in "qkv"), f"{ours}.qkv.{leaf}", Joined(3, fit))
        yield Rule(f"{theirs}.out_proj.{leaf}", f"{ours}.out.{leaf}", fit)


def _prompts(files: Files, plain: Template) -> Template:
    """Pictures stand where the chat template has them; the processor begins every text."""
    image = files.words().named["image_token"]
    return plain.replace(placeholder={"image": image}, opens=plain.bos, begin=plain.bos)


EMU3 = Family(
    "emu3", ("emu3",), "Emu3ForConditionalGeneration", _read, _write, _rules,
    spare=tuple(f"text_model.{one}" for one in LLAMA.spare),
    copies={f"text_model.{one}": f"text_model.{of}" for one, of in LLAMA.copies.items()},
    older=(("lm_head", "text_model.lm_head"), ("model.text_model", "text_model.model"),
           ("model.vqmodel", "vqmodel")),  # as they are in memory -> as they are written
    prompts=_prompts,
)  # fmt: skip
