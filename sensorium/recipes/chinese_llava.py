"""Chinese-LLaVA: LLaVA on a bilingual Llama 2."""

from __future__ import annotations

from sensorium.connectors.mlp import MLP
from sensorium.data.questions import Captions
from sensorium.encoders.vit import clip_vit_l14
from sensorium.models.fused import Fused
from sensorium.recipes.common import (
    FAMILY,
    LLAMA_2,
    STAND_INS,
    align,
    fields_for,
    instruct,
    instructions,
    language_for,
    llama_7b,
    template_for,
    vision_for,
)
from sensorium.train.recipe import Figure, Recipe, Size


def chinese_llava(size: Size = "small") -> Recipe:
    """Chinese-LLaVA (LinkSoul 2023, github.com/LinkSoul-AI/Chinese-LLaVA).

    New in it: LLaVA in two languages with a licence for any use: Chinese-Llama-2-7b in place of Vicuna, and the
    Chinese and English set Chinese-LLaVA-Vision-Instructions. Shape and stages are LLaVA's, the prompt is
    Llama-2-chat's.
    """
    vision = vision_for(size, clip_vit_l14(224))
    stages = (
        align(size, data=Captions(language="zh"), lr=2e-3,
              published="as LLaVA, in Chinese and English; projection only"),
        instruct(size, data=instructions(languages=("zh", "en")), lr=2e-5,
                 published="Chinese-LLaVA-Vision-Instructions, Chinese and English; projection and LLM"),
    )  # fmt: skip
    figures = (
        Figure(name="parameters.encoders.image", published=303.5e6, source="CLIP ViT-L/14, vision tower"),
        Figure(name="parameters.backbone", published=6.74e9, source="Llama 2 7B, released checkpoint"),
        Figure(name="tokens.image", published=256, tolerance=0.0, source="(224 / 14)^2"),
        Figure(name="vocab", published=32_000, tolerance=0.0, source="Chinese-Llama-2-7b, released checkpoint"),
    )
    deviations = (
        *STAND_INS,
        "stages and learning rates are LLaVA's: the training code was not published",
        "the three marks around a picture's tokens are not added to the vocabulary",
        "tiny, small: stage 1 reads Chinese captions alone, stage 2 both languages",
    )
    return Recipe(
        name="chinese-llava", title="Chinese-LLaVA 7B", paper="github.com/LinkSoul-AI/Chinese-LLaVA", family=FAMILY,
        size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": MLP.Config(depth=1)},
            backbone=language_for(size, llama_7b()),
        ),
        template=template_for(size, LLAMA_2), stages=stages, figures=figures if size == "paper" else (),
        deviations=deviations, **fields_for(size),
    )  # fmt: skip
