"""Fuyu (adept.ai/blog/fuyu-8b): Persimmon, which reads the patches of a picture as it reads words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sensorium.connectors.as_is import AsIs
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Fit, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.persimmon import PERSIMMON
from sensorium.convert.pictures import HALF, Defaults, channels_of, filter_number, filter_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import part
from sensorium.encoders.patch import Patch
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import OtherKind, UserError
from sensorium.models.fused import Fused
from sensorium.models.marks import Marks
from sensorium.models.wiring import Wiring
from sensorium.template import Template

PATCH, NEWLINE, ANSWER = "|SPEAKER|", "|NEWLINE|", "<0x04>"
"""Tokens that the released processor has by heart."""
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '|SPEAKER|' }}{% endfor %}{{ '<s>' }}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ '<0x04>' }}{% endif %}{% endif %}{% endfor %}"
)
"""As the processor writes a prompt: its picture, <s>, the words, the token that begins an answer."""


class ByPixel(Fit):
    """Of a linear layer over patches: (D, P * P * 3) there, a patch pixel by pixel; (D, 3 * P * P) here, by channel."""

    def __init__(self, side: int) -> None:
        self.side = side

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [one.unflatten(1, (self.side**2, 3)).transpose(1, 2).flatten(1) for one in tensors]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [one.unflatten(1, (3, self.side**2)).transpose(1, 2).flatten(1) for one in tensors]


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    patch, config = _parts(model)
    return (
        Rule("vision_embed_tokens.weight", "encoders.image.linear.weight", ByPixel(patch.patch)),
        Rule("vision_embed_tokens.bias", "encoders.image.linear.bias"),
        *under(PERSIMMON.rules(config.backbone), "language_model.", "backbone."),
    )


def _parts(model: Wiring.Config) -> tuple[Patch.Config, Fused.Config]:
    """Raises UserError for a model that is no Fuyu."""
    if not isinstance(model, Fused.Config) or model.kinds != ("image",) or "image" not in model.marks:
        raise OtherKind("the layout of Fuyu holds patches of pictures in a language model, with a mark that ends each "
                        f"row: this model is another {model.tag()}")  # fmt: skip
    encoder, connector = model.encoders.get("image"), model.connectors.get("image")
    if not isinstance(encoder, Patch.Config) or not isinstance(connector, AsIs.Config) or not encoder.bias:
        raise UserError("the layout of Fuyu puts patches through one linear layer with a bias, into the stream")
    return encoder, model


def _read(files: Files) -> Fused.Config:
    settings = files.config
    settings.skip("image_size")
    settings.only("num_channels", 3)
    side, tied = settings.count("patch_size", 30), settings.take("tie_word_embeddings", bool, False)
    if "text_config" in settings:  # in released files its fields stand among the others
        backbone = part(settings, "text_config", (PERSIMMON,), "persimmon")[1].replace(tied=tied)
    else:
        settings.skip("text_config")
        backbone = PERSIMMON.read(settings)
    image = _token(files, PATCH)
    settings.only("image_token_id", 71011 if "image_token_id" not in settings else image)
    return Fused.Config(
        encoders={"image": Patch.Config(transform=_transform(files.pictures, side), patch=side, dim=backbone.width)},
        connectors={"image": AsIs.Config()}, backbone=backbone,
        marks={"image": Marks(row=_token(files, NEWLINE), filler=image)},
    )  # fmt: skip


def _token(files: Files, name: str) -> int:
    found = files.words().id(name)
    if found is None:
        raise UserError(f"{files.folder}: its tokenizer has no {name}, which Fuyu's pictures are made of")
    return found


def _transform(settings: Settings, side: int) -> ImageTransform:
    """How the image processor prepares a picture: never larger, padded to whole patches."""
    for name in ("do_resize", "do_pad", "do_rescale", "do_normalize"):
        settings.only(name, True)
    settings.only("padding_mode", "constant")
    settings.only("rescale_factor", 1 / 255)
    limit = _pair(settings, "size", (1080, 1920))
    if _pair(settings, "patch_size", (30, 30)) != (side, side) or any(one % side for one in limit):
        raise settings.error(f"size {limit} and patch_size must fit patches of {side} x {side} pixels (config.json)")
    grey = settings.take("padding_value", float, 1.0)
    if grey not in range(256):
        raise settings.error(f"padding_value is {grey}, expected a whole value of a pixel, 0 to 255")
    mean = channels_of(settings, "image_mean", HALF)
    std = channels_of(settings, "image_std", HALF)
    shade = int(grey)
    filter = filter_of(settings, Defaults(filter="bilinear"))
    return ImageTransform(
        size=max(limit), limit=limit, resize="keep", multiple=side, filter=filter,
        pad_color=(shade, shade, shade), mean=mean, std=std,
    )  # fmt: skip


def _pair(settings: Settings, name: str, default: tuple[int, int]) -> tuple[int, int]:
    fields = settings.inner(name, {"height": default[0], "width": default[1]})
    pair = fields.count("height"), fields.count("width")
    fields.done(idle=())
    return pair


def _write(model: Wiring.Config) -> Written:
    patch, config = _parts(model)
    text, transform, marks = PERSIMMON.write(config.backbone), patch.transform, config.marks["image"]
    pictures: dict[str, Any] = {
        "image_processor_type": "FuyuImageProcessor", "do_resize": True, "do_pad": True, "do_rescale": True,
        "do_normalize": True, "padding_mode": "constant", "rescale_factor": 1 / 255,
        "size": dict(zip(("height", "width"), transform.limit or (transform.size,) * 2)),
        "patch_size": {"height": patch.patch, "width": patch.patch}, "resample": filter_number(transform.filter),
        "padding_value": float((transform.pad_color or (0,))[0]), "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }  # fmt: skip
    if _transform(Settings(pictures), patch.patch) != transform:
        raise UserError(f"the layout of Fuyu cannot say how this model prepares pictures: {transform}")
    if marks != Marks(row=marks.row, filler=marks.filler) or marks.row is None or marks.filler is None:
        raise UserError(f"the layout of Fuyu has a token of a patch and one that ends a row, and no others: {marks}")
    fields = {
        "model_type": "fuyu", "patch_size": patch.patch, "num_channels": 3, "image_token_id": marks.filler,
        "tie_word_embeddings": config.backbone.tied, "text_config": text,
    }  # fmt: skip
    return Written(fields, pictures, {"processor_class": "FuyuProcessor"})


def _prompts(files: Files, plain: Template) -> Template:
    """A tokenizer that has a chat template has its own way; the released one has none."""
    chat = CHAT if files.words().chat_template is None else plain.chat
    return plain.replace(chat=chat, placeholder={"image": PATCH})


FUYU = Family(
    "fuyu", ("fuyu",), "FuyuForCausalLM", _read, _write, _rules,
    spare=tuple(f"language_model.{one}" for one in PERSIMMON.spare),
    copies={f"language_model.{one}": f"language_model.{of}" for one, of in PERSIMMON.copies.items()},
    older=(("lm_head", "language_model.lm_head"), ("model.language_model", "language_model.model"),
           ("model.vision_embed_tokens", "vision_embed_tokens")),  # as they are in memory -> as they are written
    prompts=_prompts,
)  # fmt: skip
