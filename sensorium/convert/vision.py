"""Image encoders that are published by themselves: their pictures, their heads, and ViT (Dosovitskiy et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Reshaped, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.pictures import CLASSES, picture_settings, transform_of
from sensorium.convert.settings import Settings
from sensorium.convert.stack import activation, activation_name
from sensorium.encoders.base import Encoder
from sensorium.encoders.head import Head
from sensorium.encoders.transform import ImageTransform, Size
from sensorium.encoders.vit import ViT
from sensorium.errors import OtherKind, UserError
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm

E = TypeVar("E", bound=Encoder.Config)
CLASSIFIER, POOLER = "classifier", "pooler"
IDLE = ("encoder_stride", "out_features", "out_indices", "_out_features", "_out_indices", "stage_names",
        "apply_layernorm", "reshape_hidden_states", "drop_path_rate")  # fmt: skip
"""Fields for training, and for the class that gives several levels of features."""


@dataclass(frozen=True)
class Alone(Generic[E]):
    """How one encoder is published.

    name      model_type
    classes   beginning of its class names: <classes>Model, <classes>ForImageClassification
    root      what the encoder's tensors begin with where a classifier stands beside them
    read      config fields, how pictures are prepared, names of the tensors (without root) -> the encoder. The head
              `classifier`, where there is one, is added by `heads`
    write     the encoder -> config fields
    rules     its tensors, without root and heads
    scores    what its classifier reads
    pictures  the class of image processor that is written, where the model came with none
    """

    name: str
    classes: str
    root: str
    part: type[E]
    read: Callable[[Settings, ImageTransform, set[str]], E]
    write: Callable[[E], dict[str, Any]]
    rules: Callable[[E], Sequence[Rule]]
    scores: Callable[[E], Head.Config] | None = None
    pictures: str = "ViT"
    spare: tuple[str, ...] = ()

    def family(self) -> Family:
        return Family(
            self.name, (self.name,), f"{self.classes}Model", self._read, self._write, self._rules, spare=self.spare
        )

    def _read(self, files: Files) -> Wiring.Config:
        names = set(files.tensors)
        scored = f"{CLASSIFIER}.weight" in names
        inner = {name.removeprefix(self.root) for name in names if name.startswith(self.root)} if scored else names
        encoder = self._with_scores(
            self._plain(files.config, transform_of(files.pictures), inner), files.config, scored
        )
        files.pictures.skip("crop_pct")
        return Wiring.Config(encoders={"image": encoder})

    def _plain(self, settings: Settings, transform: ImageTransform, names: set[str]) -> E:
        settings.only("num_channels", 3)
        settings.skip(*IDLE)
        try:
            return self.read(settings, transform, names)
        except ValidationError as error:
            raise settings.error(explain(error)) from error

    def _with_scores(self, encoder: E, settings: Settings, scored: bool) -> E:
        if not scored:
            return encoder
        if self.scores is None:
            raise settings.error(f"{self.name} is published without a classifier, and the files hold one")
        head = self.scores(encoder)
        labels = _labels(settings)
        head = head.replace(out=len(labels), labels=labels)
        return encoder.replace(heads={CLASSIFIER: head})

    def encoder(self, model: Wiring.Config) -> E:
        """The encoder that a model is. Raises UserError for another model."""
        found = model.encoders.get("image")
        if not isinstance(found, self.part) or model != Wiring.Config(encoders={"image": found}):
            raise OtherKind(f"the layout of {self.name} holds an image encoder ({self.part.tag()}) alone, this model "
                            f"is another: {model.tag()} with {sorted(model.kinds)}")  # fmt: skip
        return found

    def _write(self, model: Wiring.Config) -> Written:
        encoder = self.encoder(model)
        heads = dict(_heads(encoder))
        classifier = heads.pop(CLASSIFIER, None)
        fields = {"model_type": self.name, "num_channels": 3, **self.write(encoder)}
        if classifier is not None:
            labels = classifier.labels or tuple(f"LABEL_{number}" for number in range(classifier.out))
            encoder = encoder.replace(heads={**_heads(encoder), CLASSIFIER: classifier.replace(labels=labels)})
            fields |= {"id2label": {str(at): label for at, label in enumerate(labels)},
                       "label2id": {label: at for at, label in enumerate(labels)},
                       "architectures": [f"{self.classes}ForImageClassification"]}  # fmt: skip
        transform = encoder.transform
        usual = CLASSES[self.pictures].floats != transform.rounded and transform.resize != "pad"
        pictures = picture_settings(transform, self.pictures if usual else None)
        settings = Settings(fields)
        names = {name for rule in self.rules(encoder) for name in rule.sides[0]}
        again = self._with_scores(self._plain(settings, transform_of(Settings(pictures)), names), settings,
                                  classifier is not None)  # fmt: skip
        same(again, encoder, self.name)
        return Written(fields, pictures)

    def _rules(self, model: Wiring.Config) -> list[Rule]:
        encoder = self.encoder(model)
        root = self.root if CLASSIFIER in _heads(encoder) else ""
        head = [Rule(f"{CLASSIFIER}.*", f"heads.{CLASSIFIER}.linear.*")]
        return under([*under(self.rules(encoder), root), *head], ours="encoders.image.")


def _heads(encoder: Encoder.Config) -> dict[str, Head.Config]:
    return getattr(encoder, "heads", {})


def _labels(settings: Settings) -> tuple[str, ...]:
    """Names of what a classifier scores; two without names where the config says nothing, as transformers has it."""
    said = settings.take("id2label", dict, {})
    count = len(said) or settings.count("num_labels", 2)
    labels = [said.get(str(number), f"LABEL_{number}") for number in range(count)]
    return tuple(map(str, labels))


def same(read: Encoder.Config, config: Encoder.Config, name: str) -> None:
    """Raises UserError where what was written of an encoder reads as another one."""
    first, second = (_fields(one.model_dump(mode="json"), "") for one in (config, read))
    for path in sorted(first.keys() | second.keys()):
        if first.get(path) != second.get(path):
            raise UserError(f"the layout of {name} cannot say this encoder: its {path} is {first.get(path)!r}, and "
                            f"{second.get(path)!r} is what would be read")  # fmt: skip


def _fields(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: one for key, inner in value.items() for name, one in _fields(inner, f"{path}.{key}".strip(".")).items()
    }


def view_of(settings: Settings, transform: ImageTransform, fixed: bool) -> Size:
    """image_size as (height, width).

    fixed  the model reads views of that size alone. Raises UserError where pictures become others
    """
    size = settings.take("image_size", (int, list, tuple))
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise settings.error(f"image_size is {size!r}, expected a number of pixels or (height, width)")
    if fixed and sides != transform.view:
        raise settings.error(f"image_size is {sides}, and the image processor makes views of {transform.view} (height, "
                             "width): they must agree")  # fmt: skip
    return sides


def size_written(view: Size) -> int | list[int]:
    """image_size, as one number where a view is square."""
    return view[0] if view[0] == view[1] else list(view)


def holds(names: set[str], beginning: str) -> bool:
    """Whether there are tensors whose names begin so."""
    return any(name.startswith(beginning) for name in names)


def patch_of(settings: Settings, *views: Size) -> dict[str, Any]:
    """Fields of a ViT: the side of a patch, and whether these views are cut to whole ones.

    Raises UserError for patches that are not square.
    """
    side = settings.take("patch_size", (int, list))
    sides = side if isinstance(side, list) else [side]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise settings.error(f"patch_size is {side!r}; only square patches can be said here")
    return {"patch": sides[0], "cut": any(side % sides[0] for view in views for side in view)}


def blocks(
    settings: Settings, hidden: int, eps: float, attention: Attention.Config | None = None, **more: Any
) -> Backbone.Config:
    """Pre-norm LayerNorm, biases, a plain feed-forward: the stack of all these encoders. more: fields of the block."""
    width, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    if width % heads:
        raise settings.error(f"hidden_size {width} is not shared evenly by num_attention_heads {heads}")
    if attention is None:
        bias = settings.take("qkv_bias", bool, True)
        attention = Attention.Config(heads=heads, bias=bias, out_bias=None if bias else True)
    ffn = FeedForward.Config(
        hidden=hidden, activation=activation(settings, "hidden_act", "gelu"), gated=False, bias=True
    )  # fmt: skip
    norm = Norm.Config(kind="layer", eps=settings.take("layer_norm_eps", float, eps))
    block = Block.Config(attention=attention, norm=norm, **{"ffn": ffn, **more})
    return Backbone.Config(width=width, depth=settings.count("num_hidden_layers"), block=block)


def blocks_written(backbone: Backbone.Config) -> dict[str, Any]:
    block = backbone.block
    return {
        "hidden_size": backbone.width, "num_hidden_layers": backbone.depth, "layer_norm_eps": block.norm.eps,
        "num_attention_heads": block.attention.heads, "hidden_act": activation_name(block.ffn.activation),
    }  # fmt: skip


def layer_rules(layer: str, names: dict[str, str]) -> list[Rule]:
    """names: published ones within a layer -> those within a block here."""
    return [Rule(f"{layer}.{there}", f"backbone.blocks.{{}}.{here}") for there, here in names.items()]


OLD_ATTENTION = {
    "attention.attention.query.*": "attention.q.*", "attention.attention.key.*": "attention.k.*",
    "attention.attention.value.*": "attention.v.*", "attention.output.dense.*": "attention.o.*",
}  # fmt: skip
OLD_LAYER = {
    **OLD_ATTENTION, "layernorm_before.*": "norm1.*", "layernorm_after.*": "norm2.*",
    "intermediate.dense.*": "ffn.up.*", "output.dense.*": "ffn.down.*",
}  # fmt: skip
"""Names of the files, which newer releases write as well."""


def entry_rules(config: ViT.Config, patch: str = "embeddings.patch_embeddings.projection") -> list[Rule]:
    """Patches, tokens before them, positions."""
    weight = Reshaped(-1, 3, config.patch, config.patch)
    row = Reshaped(1, -1, config.backbone.width)
    return [
        Rule("embeddings.cls_token", "class_token", row), Rule("embeddings.position_embeddings", "place", row),
        Rule("embeddings.register_tokens", "registers", row),
        Rule(f"{patch}.weight", "patch.weight", weight), Rule(f"{patch}.bias", "patch.bias"),
    ]  # fmt: skip


# ---- ViT


def _read_vit(settings: Settings, transform: ImageTransform, names: set[str]) -> ViT.Config:
    settings.skip("pooler_output_size", "pooler_act")
    view_of(settings, transform, fixed=True)
    heads = {}
    if holds(names, "pooler."):
        known = {"tanh": "tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
        heads[POOLER] = Head.Config(out=settings.count("pooler_output_size", settings.count("hidden_size")),
                                       activation=settings.choose("pooler_act", known, "tanh"))  # fmt: skip
    return ViT.Config(
        transform=transform, backbone=blocks(settings, settings.count("intermediate_size"), 1e-12),
        class_feature=True, mask_token=holds(names, "embeddings.mask_token"), heads=heads,
        **patch_of(settings, transform.view),
    )  # fmt: skip


def _write_vit(config: ViT.Config) -> dict[str, Any]:
    backbone, pooler = config.backbone, config.heads.get(POOLER)
    head = {} if pooler is None else {"pooler_output_size": pooler.out, "pooler_act": pooler.activation}
    return {
        **blocks_written(backbone), "intermediate_size": backbone.block.ffn.hidden, "patch_size": config.patch,
        "image_size": size_written(config.transform.view), "qkv_bias": backbone.block.attention.bias, **head,
    }  # fmt: skip


def _rules_vit(config: ViT.Config) -> list[Rule]:
    mask = Rule("embeddings.mask_token", "mask_token", Reshaped(1, 1, -1))
    pooler = Rule("pooler.dense.*", f"heads.{POOLER}.linear.*")
    return [
        *entry_rules(config), *layer_rules("encoder.layer.{}", OLD_LAYER), Rule("layernorm.*", "backbone.norm.*"),
        *([mask] if config.mask_token else []), *([pooler] if POOLER in config.heads else []),
    ]  # fmt: skip


VIT = Alone("vit", "ViT", "vit.", ViT.Config, _read_vit, _write_vit, _rules_vit, lambda config: Head.Config())
