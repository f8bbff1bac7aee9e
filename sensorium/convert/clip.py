"""CLIP (Radford et al. 2021, arXiv 2103.00020): a picture's class token and a text's end token meet in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from sensorium.connectors.global_pool import GlobalPool
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import SAME, Fit, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.pictures import picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import filled, part
from sensorium.convert.text_tower import CLIP_TEXT
from sensorium.convert.towers import CLIP_VISION
from sensorium.encoders.base import Encoder
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.models.dual import Dual
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone

T = TypeVar("T", bound=Encoder.Config)
LARGEST = 2
"""What old configs give as the id of the end token: the state of a text is then that at its largest id."""
SCALE = 2.6592
"""Natural logarithm of the scale at first, where the config leaves it out."""
TEXT, VISION = "text_model.", "vision_model."
_EYES = "CLIP's vision tower"
_POOL = GlobalPool.Config(by="class")


class AtMost(Fit):
    """The logarithm of a scale that is never used above `most` is written as it is used; None: as it is.

    then  the shape that it has there
    """

    def __init__(self, most: float | None, then: Fit = SAME) -> None:
        self.most, self.then = most, then

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return self.then.into(tensors, shapes)

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        most = math.inf if self.most is None else math.log(self.most)
        return self.then.back([tensor.clamp(max=most) for tensor in tensors])


def _read(files: Files) -> Wiring.Config:
    config = files.config
    text, vision = _fields(config, "text_config"), _fields(config, "vision_config")
    _check_end(files, config.inner(text, {}))
    _, tower = part(config, vision, (CLIP_VISION,), "clip_vision_model")
    _, backbone = part(config, text, (CLIP_TEXT,), "clip_text_model")
    return Dual.Config(
        encoders={"image": _whole(seeing(tower, files))}, connectors={"image": _POOL},
        backbone=backbone, width=config.count("projection_dim", 512), ceiling=None,
        scale=math.exp(config.take("logit_scale_init_value", float, SCALE)),
    )  # fmt: skip


def _fields(settings: Settings, name: str) -> str:
    """Which field describes a tower. Old configs have two, of which `.._dict` counts, down to what it leaves out."""
    older = f"{name}_dict"
    used, other = (older, name) if older in settings else (name, older)
    settings.skip(other)
    return used


def _check_end(files: Files, text: Settings) -> None:
    """Raises UserError where the state that stands for a text is not that of the token that ends it here."""
    end, tokenizer = text.take("eos_token_id", int, 49_407), files.words()
    if end == LARGEST and tokenizer.eos != tokenizer.vocab_size - 1:
        raise text.error(f"eos_token_id is {LARGEST}, so the largest id of a text stands for it, and the tokenizer "
                         f"ends texts with {tokenizer.eos}, one of {tokenizer.vocab_size} ids")  # fmt: skip
    if end not in (LARGEST, tokenizer.eos):
        raise text.error(f"eos_token_id is {end}, and the tokenizer ends texts with {tokenizer.eos}: they are of "
                         "different models")  # fmt: skip


def _write(model: Wiring.Config) -> Written:
    both, text = dual_of(model, "CLIP")
    tower = tower_of(model, ViT.Config, "CLIP")
    plain = Dual.Config(
        encoders={"image": _whole(tower)}, connectors={"image": _POOL}, backbone=text,
        width=both.width, scale=both.scale, ceiling=both.ceiling,
    )  # fmt: skip
    check_same(both, plain, "CLIP")
    scale = both.measures["logit_scale"]
    space = {"projection_dim": both.width}
    config = {
        "model_type": "clip", "logit_scale_init_value": math.log(scale), **space,
        "text_config": {**CLIP_TEXT.write(text), **space}, "text_config_dict": None,
        "vision_config": {**CLIP_VISION.write(tower), **space}, "vision_config_dict": None,
    }  # fmt: skip
    return Written(config, picture_settings(tower.transform), {"processor_class": "CLIPProcessor"})


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    both, text = dual_of(model, "CLIP")
    return (
        *under(CLIP_TEXT.rules(text), TEXT, "backbone."),
        *under(CLIP_VISION.rules(tower_of(model, ViT.Config, "CLIP")), VISION, "encoders.image."),
        Rule("text_projection.weight", "head.text.weight"),
        Rule("visual_projection.weight", "connectors.image.project.weight"),
        Rule("logit_scale", "head.log_scale", AtMost(both.ceiling)),
    )


def _whole(tower: ViT.Config) -> ViT.Config:
    """The tower, of which all blocks count, with the feature of its class token where it has one."""
    return tower.replace(drop_last=0, levels=(), class_feature=tower.class_token, normed=True)


def seeing(tower: ViT.Config, files: Files) -> ViT.Config:
    """The tower with pictures prepared as the folder says. Raises UserError where they have another size than its."""
    transform = transform_of(files.pictures)
    if transform.size != tower.transform.size:
        raise files.pictures.error(f"pictures become {transform.size} pixels wide, and the vision tower of config.json "
                                   f"reads {tower.transform.size}")  # fmt: skip
    return tower.replace(transform=transform)


def dual_of(model: Wiring.Config, name: str) -> tuple[Dual.Config, Backbone.Config]:
    """A model of two towers, and the one that reads text. Raises UserError for any other."""
    two = isinstance(model, Dual.Config) and model.scale is not None and list(model.encoders) == ["image"]
    if not isinstance(model, Dual.Config) or model.backbone is None or not two:
        raise OtherKind(f"the layout of {name} holds two towers that meet in one space, of pictures and of texts, with "
                        f"a learned scale; this model is {model.tag()} with encoders of "
                        f"{sorted(model.encoders)}")  # fmt: skip
    return model, model.backbone


def tower_of(model: Wiring.Config, kind: type[T], name: str) -> T:
    """The tower that reads pictures. Raises UserError for a model without, or with one of another kind."""
    tower = model.encoders.get("image")
    if not isinstance(tower, kind):
        raise OtherKind(f"the layout of {name} holds {kind.tag()}, which reads pictures; this model has "
                        f"{'none' if tower is None else tower.tag()}")  # fmt: skip
    return tower


def check_same(model: Wiring.Config, plain: Wiring.Config, name: str) -> None:
    """Raises UserError that names the field in which a model is not the one that a layout holds."""
    if type(model) is not type(plain):
        raise OtherKind(f"the layout of {name} holds {plain.tag()}, this model is {model.tag()}")
    for field in type(plain).model_fields:
        ours, theirs = getattr(model, field), getattr(plain, field)
        if ours != theirs:
            raise UserError(f"the layout of {name} cannot say this model: its {field} is {ours!r}, and {theirs!r} is "
                            "what would be read")  # fmt: skip


def _read_alone(files: Files) -> Wiring.Config:
    return _alone(seeing(filled(files.config, CLIP_VISION), files))


def _alone(tower: ViT.Config) -> Wiring.Config:
    """The vision tower by itself: its published features are not yet normalised."""
    return Wiring.Config(encoders={"image": _whole(tower).replace(normed=False)})


def _write_alone(model: Wiring.Config) -> Written:
    tower = tower_of(model, ViT.Config, _EYES)
    check_same(model, _alone(tower), _EYES)
    return Written(CLIP_VISION.write(tower), picture_settings(tower.transform))


def _rules_alone(model: Wiring.Config) -> Sequence[Rule]:
    return under(CLIP_VISION.rules(tower_of(model, ViT.Config, _EYES)), ours="encoders.image.")


SPARE = tuple(f"{tower}embeddings.position_ids" for tower in (TEXT, VISION))
CLIP = Family("clip", ("clip",), "CLIPModel", _read, _write, _rules, SPARE)
CLIP_EYES = Family(
    "clip_vision", CLIP_VISION.types, CLIP_VISION.architecture, _read_alone, _write_alone, _rules_alone,
    CLIP_VISION.spare, older=((VISION, ""),),
)  # fmt: skip
