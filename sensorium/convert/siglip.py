"""SigLIP (Zhai et al. 2023, arXiv 2303.15343); SigLIP 2 (Tschannen et al. 2025, 2502.14786), at one size or NaFlex.

The text tower was trained on texts that are filled to as many tokens as it has positions. It reads what fills them as
it reads words, in both directions, and the state of the last token stands for the text, whatever that token is. So
texts are filled here as well (Template.length, Template.pad): the ids, and with them the numbers, are the same. The
tokenizer that is written gives no mask of the padding, like the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sensorium.connectors.global_pool import GlobalPool
from sensorium.convert.clip import SPARE, TEXT, VISION, AtMost, check_same, dual_of, seeing, tower_of
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Reshaped, Rule, Split, under
from sensorium.convert.layout import Family
from sensorium.convert.naflex import NAFLEX_VISION, flexible, flexible_settings
from sensorium.convert.pictures import picture_settings
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, filled, part
from sensorium.convert.text_tower import SIGLIP2_TEXT, SIGLIP_TEXT
from sensorium.convert.towers import SIGLIP_VISION
from sensorium.encoders.flex import FlexViT
from sensorium.encoders.vit import ViT
from sensorium.errors import UserError
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.template import Template

T = TypeVar("T", ViT.Config, FlexViT.Config)
_ONE = Reshaped(1)
_POOL = (
    Rule("probe", "query.query", Reshaped(1, 1, -1)),
    *(Rule(f"attention.in_proj_{one}", tuple(f"query.attention.{part}.{one}" for part in "qkv"), Split())
      for one in ("weight", "bias")),
    Rule("attention.out_proj.*", "query.attention.o.*"),
    Rule("layernorm.*", "query.norm.*"),
    Rule("mlp.fc1.*", "query.ffn.up.*"),
    Rule("mlp.fc2.*", "query.ffn.down.*"),
)  # fmt: skip
"""Of the learned query that reads a picture's features."""


def _pool(tower: ViT.Config | FlexViT.Config) -> GlobalPool.Config:
    """The learned query behind a tower: its heads, feed-forward and norm are as those of the tower's blocks."""
    block = tower.backbone.block
    return GlobalPool.Config(
        by="attention", heads=block.attention.heads, hidden=block.ffn.hidden, activation=block.ffn.activation,
        eps=block.norm.eps, project=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Siglip(Generic[T]):
    """SigLIP with one kind of vision tower, and that tower by itself.

    name     as it is asked for, and model_type
    title    in messages, and what the names of published classes begin with
    vision, tower  how the vision tower is published, and its kind here
    text     the text tower
    seeing   the vision tower with pictures prepared as a folder says; settings: how a folder says it
    whole    the vision tower, of which all blocks count
    lower    the published tokenizer reads every text in lower case, whatever its file says
    """

    name: str
    title: str
    vision: Stack[T]
    tower: type[T]
    text: Stack[Backbone.Config]
    seeing: Callable[[T, Files], T]
    settings: Callable[[T], dict[str, Any]]
    whole: Callable[[T], T]
    lower: bool = False

    def families(self) -> tuple[Family, Family]:
        """The two towers that meet, and the vision tower alone."""
        both = Family(self.name, (self.name,), f"{self.title}Model", self.read, self.write, self.rules, SPARE,
                      prompts=_prompts)  # fmt: skip
        alone = Family(f"{self.name}_vision", self.vision.types, self.vision.architecture, self.read_alone,
                       self.write_alone, self.rules_alone, self.vision.spare, older=((VISION, ""),))  # fmt: skip
        return both, alone

    def read(self, files: Files) -> Wiring.Config:
        config = files.config
        fields = config.inner("vision_config", {})
        tower, head = self._headed(fields)
        if not head:
            raise fields.error("vision_use_head is false: nothing makes one vector of a picture to compare with a text")
        _, backbone = part(config, "text_config", (self.text,), self.text.types[0])
        text = config.inner("text_config", {})
        width = text.count("projection_size", backbone.width)
        if width != tower.width:
            raise text.error(f"projection_size is {width}, and pictures become vectors of {tower.width}: they do not "
                             "meet in one space")  # fmt: skip
        if self.lower:
            files.tokenizer = files.words().lower_case()
        start = Dual.Config(backbone=backbone, width=width, scale=10.0, ceiling=None, bias=-10.0)
        return self._model(self.seeing(tower, files), start)

    def _headed(self, fields: Settings) -> tuple[T, bool]:
        """A vision tower by its own fields, and whether the learned query stands behind it."""
        head = fields.take("vision_use_head", bool, True)
        tower = filled(Settings({**fields.values, "vision_use_head": False}, fields.where), self.vision)
        fields.skip(*fields.values)
        return tower, head

    def _model(self, tower: T, like: Dual.Config) -> Dual.Config:
        """With the text tower of `like` and its logits at first (Zhai et al., section 3.2)."""
        return Dual.Config(
            encoders={"image": tower}, connectors={"image": _pool(tower)}, backbone=like.backbone, width=like.width,
            text_bias=True, scale=like.scale, ceiling=like.ceiling, bias=like.bias, rule=AttentionRule(kind="full"),
        )  # fmt: skip

    def write(self, model: Wiring.Config) -> Written:
        both, text = dual_of(model, self.title)
        tower = tower_of(model, self.tower, self.title)
        check_same(both, self._model(self.whole(tower), both), self.title)
        if both.bias is None:
            raise UserError(f"the layout of {self.title} cannot say this model: its logits have no bias")
        config = {
            "model_type": self.name, "text_config": {**self.text.write(text), "projection_size": both.width},
            "vision_config": {**self.vision.write(tower), "vision_use_head": True},
        }  # fmt: skip
        filled = {"padding_side": "right", "model_input_names": ["input_ids"], "model_max_length": text.positions}
        return Written(config, self.settings(tower), {"processor_class": f"{self.title}Processor"}, filled)

    def rules(self, model: Wiring.Config) -> Sequence[Rule]:
        both, text = dual_of(model, self.title)
        return (
            *under(self.text.rules(text), TEXT, "backbone."),
            *under(self.rules_alone(model), VISION),
            Rule(f"{TEXT}head.*", "head.text.*"),
            Rule("logit_scale", "head.log_scale", AtMost(both.ceiling, _ONE)),
            Rule("logit_bias", "head.bias", _ONE),
        )

    def read_alone(self, files: Files) -> Wiring.Config:
        tower, head = self._headed(files.config)
        return self._alone(self.seeing(tower, files), head)

    def _alone(self, tower: T, head: bool) -> Wiring.Config:
        return Wiring.Config(encoders={"image": tower}, connectors={"image": _pool(tower)} if head else {})

    def write_alone(self, model: Wiring.Config) -> Written:
        tower, head = tower_of(model, self.tower, self.title), bool(model.connectors)
        check_same(model, self._alone(self.whole(tower), head), self.title)
        return Written({**self.vision.write(tower), "vision_use_head": head}, self.settings(tower))

    def rules_alone(self, model: Wiring.Config) -> Sequence[Rule]:
        """Of the vision tower and the learned query behind it."""
        tower = tower_of(model, self.tower, self.title)
        return [*under(self.vision.rules(tower), ours="encoders.image."), *under(_POOL, "head.", "connectors.image.")]


def _prompts(files: Files, plain: Template) -> Template:
    """Texts are filled with the padding token to the length of the table of positions, behind their words.

    Raises UserError for a tokenizer that fills them before their words, or hides what fills them.
    """
    words, settings = files.words(), files.word_settings()
    settings.only("padding_side", "right")
    settings.only("model_input_names", ["input_ids"])
    pad = None if words.pad is None else words.token(words.pad)
    if pad not in words.special:
        raise files.config.error(f"SigLIP's texts are filled with a padding token, and the tokenizer's is {pad!r}")
    length = files.config.inner("text_config", {}).count("max_position_embeddings", 64)
    return plain.replace(length=length, pad=pad)


SIGLIP, SIGLIP_EYES = Siglip(
    "siglip", "Siglip", SIGLIP_VISION, ViT.Config, SIGLIP_TEXT, seeing,
    lambda tower: picture_settings(tower.transform, "Siglip"),
    lambda tower: tower.replace(drop_last=0, levels=(), normed=True),
).families()  # fmt: skip
NAFLEX, NAFLEX_EYES = Siglip(
    "siglip2", "Siglip2", NAFLEX_VISION, FlexViT.Config, SIGLIP2_TEXT, flexible, flexible_settings, lambda tower: tower,
    lower=True,
).families()  # fmt: skip
