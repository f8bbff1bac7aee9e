"""What the contrastive recipes share: towers below paper size, their stage and what they are asked."""

from __future__ import annotations

from typing import Any

from sensorium.connectors.base import Connector
from sensorium.connectors.global_pool import GlobalPool
from sensorium.data.questions import Captions
from sensorium.encoders.base import Encoder
from sensorium.encoders.efficientnet import EfficientNetLite0
from sensorium.encoders.vit import ViT, stack, vit
from sensorium.evaluate.contrastive import TEMPLATES
from sensorium.hub.catalog import EFFICIENTNET_LITE0, SMOLLM2_135M_INSTRUCT
from sensorium.models.dual import Dual
from sensorium.nn.backbone import Backbone
from sensorium.nn.norm import Norm
from sensorium.objectives.contrastive import Contrastive
from sensorium.recipes.common import BUILT_IN, STARTS_RANDOM, TOKENIZER, evaluations_of
from sensorium.train.recipe import Size, Stage

FAMILY = "contrastive"
STAND_INS = (
    STARTS_RANDOM,
    "small: EfficientNet-Lite0, pretrained and frozen, stands for the published image tower, which learns from scratch",
    "small: a picture is the mean of the convnet's features, normalised (it has no class token, and SigLIP's "
    "learned query over its raw features never left the plateau of equal similarities within 130 steps)",
    "small: the text tower is smaller and reads SmolLM2's tokens",
    "tiny, small: a text has a token that begins it, whichever the published one has",
    BUILT_IN,
    TOKENIZER,
)
SPACE = {"tiny": 64, "small": 256}


def image_for(size: Size, paper: ViT.Config) -> Encoder.Config:
    """The image tower at a size; tiny's has a class token where the published one has."""
    if size == "small":
        return EfficientNetLite0.Config()
    if size == "tiny":
        small = vit(width=64, depth=3, heads=4, patch=8, size=64)
        same = {"class_token": paper.class_token, "class_feature": paper.class_feature}
        return small.replace(positions="learned" if paper.class_token else "sincos2d", **same)
    return paper


def pool_for(size: Size, paper: GlobalPool.Config) -> Connector.Config:
    """How the features of a picture become one vector: as published, at small their mean."""
    if size == "paper":
        return paper
    if size == "small":
        return GlobalPool.Config(by="mean", norm=Norm.Config(kind="layer"))
    return paper.replace(project=True, heads=4, hidden=None if paper.hidden is None else 128)


def text_for(size: Size, paper: Backbone.Config) -> Backbone.Config:
    """The text tower at a size, with the published activation."""
    if size == "paper":
        return paper
    width, depth, heads, vocab = (64, 3, 4, 259) if size == "tiny" else (256, 4, 4, 49_152)
    block = paper.block.ffn.activation
    return stack(width, depth, heads, activation=block, eps=1e-5).replace(vocab=vocab, positions=77)


def fields_for(size: Size, model: Dual.Config) -> dict[str, Any]:
    """What a size decides alone: the `tokenizer`, `init` and `evaluations` fields of a recipe."""
    match size:
        case "tiny":
            return {"evaluations": evaluations_of(model, 200)}
        case "small":
            init = {"encoders.image": EFFICIENTNET_LITE0}
            return {"tokenizer": SMOLLM2_135M_INSTRUCT, "init": init, "evaluations": evaluations_of(model, 500)}
        case "paper":
            return {}


def contrast(size: Size, objective: Contrastive, *, lr: float, published: str, **more: Any) -> Stage:
    """The one stage: both towers at once, from captions. `lr` is the published rate.

    UniCL's labels are equal captions, so there names stand alone; otherwise they are also put into the wordings that
    zero-shot classification uses.
    """
    fields: dict[str, Any] = {"name": "contrast", "train": ("*",), "published": published, "objectives": (objective,)}
    if size == "paper":
        return Stage(**{"lr": lr, "epochs": 32, "tokens": 32_768, "checkpointing": True, **fields, **more})
    data = Captions() if objective.labels else Captions(wordings=TEMPLATES)
    common = {"data": data, "tokens": 8192, "accumulate": 2, "weight_decay": 0.1, "betas": (0.9, 0.98), "warmup": 0.1}
    if size == "tiny":
        return Stage(**{**fields, **common, "lr": 2e-3, "items": 64, "steps": 150})
    train = ("connectors.*", "backbone.*", "head.*")
    return Stage(**{**fields, **common, "accumulate": 1, "train": train, "lr": 2e-3, "items": 256, "steps": 400})
