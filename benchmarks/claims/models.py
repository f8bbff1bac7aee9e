"""What claims a, b, d and e are tested on: one small LLaVA, of which every claim changes one thing.

Pictures are read by EfficientNet-Lite0, pretrained and (but for claim d) frozen. The language model is a Llama of 0.3
million parameters and bytes that starts random: it learns to read from the questions alone, which takes two minutes on
one core where tuning SmolLM2-135M takes tens of them. So these claims are about how a picture gets into a language
model, not about what that knows. Every connector starts centred on the features (train/warm.py): two thirds of what a
convnet's features say is the same of all pictures, and a resampler that starts on that has learned nothing after 500
steps, centred it has after 200. Sizes, learning rates and lengths were chosen on the training split and its dev slices.
"""

from __future__ import annotations

from typing import Any

from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.encoders.efficientnet import TRANSFORM, EfficientNetLite0
from sensorium.hub.catalog import EFFICIENTNET_LITE0
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone, llama
from sensorium.recipes.common import closed_questions
from sensorium.render import Template
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.warm import CentredStart

BATCH, COUNT = 16, 160
"""Pictures of a step; items of a task, a multiple of the numbers of options (8, 5)."""
RATES = {"encoders.*": 1e-4, "*gate": 3e-2, "*": 2e-3}
"""Peak learning rates: of the pretrained encoder; of gates, which start at zero and move by about their rate a step; of
all else, which starts random."""
SCENES = 1500
"""Different ones: every picture is encoded once, which costs more than a step on features that are known."""
QUESTIONS = closed_questions(SCENES)


def vision(side: int) -> EfficientNetLite0.Config:
    """Views of side x side pixels: (side / 32)^2 features."""
    return EfficientNetLite0.Config(transform=TRANSFORM.replace(size=side, resize="squash"), positions="sincos2d")


def language(width: int = 96, depth: int = 2) -> Backbone.Config:
    return llama(vocab=259, width=width, depth=depth, heads=width // 32, hidden=8 * width // 3, tied=True)


def small_llava(
    name: str,
    *,
    side: int = 128,
    connector: Connector.Config | None = None,
    backbone: Backbone.Config | None = None,
    train: tuple[str, ...] = ("connectors.*", "backbone.*"),
    **fields: Any,
) -> Recipe:
    """One stage of the questions, of one step: a comparison says how many. `fields` are those of Fused.Config."""
    model = Fused.Config(
        encoders={"image": vision(side)}, connectors={"image": connector or MLP.Config()},
        backbone=backbone or language(), **fields,
    )  # fmt: skip
    stage = Stage(**{"name": "instruct", "train": train, "lr": RATES, "data": QUESTIONS, "steps": 1,
                     "start": CentredStart()})  # fmt: skip
    return Recipe(
        name=name, title=name, paper="", family="claims", size="small", model=model, stages=(stage,),
        template=Template(media={"image": ("", "\n")}), init={"encoders.image": EFFICIENTNET_LITE0},
    )  # fmt: skip
