"""LLaVA, LLaVA-1.5 and LLaVA-NeXT: a CLIP ViT, a projection, a Llama; two stages."""

from __future__ import annotations

from sensorium.connectors.anyres import AnyRes
from sensorium.connectors.mlp import MLP
from sensorium.encoders.vit import clip_vit_l14
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone
from sensorium.recipes.common import (
    FAMILY,
    STAND_INS,
    VICUNA,
    align,
    fields_for,
    instruct,
    language_for,
    llama_7b,
    llama_13b,
    template_for,
    vision_for,
    yi_34b,
)
from sensorium.train.recipe import Figure, Recipe, Size

# Tiles of LLaVA-NeXT: 2 x 2, 1 x {2, 3, 4} and {2, 3, 4} x 1 (rows, columns)
GRIDS = ((2, 2), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1))


def llava(size: Size = "small") -> Recipe:
    """LLaVA: Visual Instruction Tuning (Liu et al. 2023, arXiv 2304.08485).

    New in it: instructions about pictures written by a text-only GPT-4, and how little is needed to see: one linear
    layer from the second-last block of CLIP ViT-L/14 (256 features at 224 px) into Vicuna's word embeddings.
    Stage 1 trains that layer on captions, stage 2 the layer and the language model.
    """
    vision = vision_for(size, clip_vit_l14(224))
    connector = MLP.Config(depth=1)
    backbone = language_for(size, llama_13b())
    stages = (
        align(size, lr=2e-3, published="595K CC3M pairs, 1 epoch, batch 128, lr 2e-3; projection only"),
        instruct(size, lr=2e-5, epochs=3, published="LLaVA-Instruct-158K, 3 epochs, batch 32, lr 2e-5; ViT frozen"),
    )
    figures = (
        Figure(name="parameters.encoders.image", published=303.5e6, source="CLIP ViT-L/14, vision tower"),
        Figure(name="parameters.connectors.image", published=5_248_000, source="derived: 1024 x 5120 + 5120"),
        Figure(name="parameters.backbone", published=13.0e9, source="LLaMA 13B, arXiv 2302.13971, table 2"),
        Figure(name="tokens.image", published=256, tolerance=0.0, source="(224 / 14)^2, arXiv 2304.08485"),
        Figure(name="lr.align", published=2e-3, tolerance=0.0, source="arXiv 2304.08485, section 5"),
        Figure(name="lr.instruct", published=2e-5, tolerance=0.0, source="arXiv 2304.08485, section 5"),
    )
    return Recipe(
        name="llava", title="LLaVA", paper="arXiv 2304.08485", family=FAMILY, size=size,
        model=Fused.Config(encoders={"image": vision}, connectors={"image": connector}, backbone=backbone),
        template=template_for(size, VICUNA), stages=stages, figures=figures if size == "paper" else (),
        deviations=(*STAND_INS, "paper: prompts are those of the v1 release, which end turns with </s> instead of ###"),
        **fields_for(size),
    )  # fmt: skip


def llava_1_5(size: Size = "small") -> Recipe:
    """LLaVA-1.5 7B: Improved Baselines with Visual Instruction Tuning (Liu et al. 2023, arXiv 2310.03744).

    New in it: a two-layer MLP in place of the linear layer, 336 px (576 features) of pictures padded to a square, and
    questions that say in which form the answer is wanted. Stages as in LLaVA.
    """
    return _one_point_five(size, "llava-1.5", "LLaVA-1.5 7B", llama_7b(), total=7.06e9, connector=20_979_712)


def llava_1_5_13b(size: Size = "small") -> Recipe:
    """LLaVA-1.5 13B: the same with Vicuna-13B v1.5 (arXiv 2310.03744); the size the surveys describe."""
    return _one_point_five(size, "llava-1.5-13b", "LLaVA-1.5 13B", llama_13b(), total=13.35e9, connector=31_467_520)


def _one_point_five(
    size: Size, name: str, title: str, language: Backbone.Config, total: float, connector: int
) -> Recipe:
    published = clip_vit_l14(336)
    vision = vision_for(size, published.replace(transform=published.transform.replace(resize="pad")))
    stages = (
        align(size, lr=1e-3, published="558K LAION/CC/SBU pairs, 1 epoch, batch 256, lr 1e-3; projection only"),
        instruct(size, lr=2e-5, published="665K mixture, 1 epoch, batch 128, lr 2e-5; projection and LLM"),
    )
    figures = (
        Figure(name="parameters.total", published=total, source="released checkpoint"),
        Figure(name="parameters.connectors.image", published=connector, source="derived from 1024 -> width -> width"),
        Figure(name="view.image", published=336, tolerance=0.0, source="survey 004"),
        Figure(name="tokens.image", published=576, tolerance=0.0, source="arXiv 2310.03744, section 3.4"),
        Figure(name="lr.align", published=1e-3, tolerance=0.0, source="arXiv 2310.03744, table 9"),
        Figure(name="lr.instruct", published=2e-5, tolerance=0.0, source="arXiv 2310.03744, table 9"),
    )
    return Recipe(
        name=name, title=title, paper="arXiv 2310.03744", family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": MLP.Config()}, backbone=language_for(size, language)
        ),
        template=template_for(size, VICUNA), stages=stages, figures=figures if size == "paper" else (),
        deviations=STAND_INS, **fields_for(size),
    )  # fmt: skip


def llava_next(size: Size = "small") -> Recipe:
    """LLaVA-NeXT (LLaVA-1.6) 7B (Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next).

    New in it: pictures of any shape. Besides a thumbnail, the picture is fitted into the best of several canvases of
    336 px tiles (up to 672 x 672, 336 x 1344, 1344 x 336); the features of all tiles are put together, the padding is
    cut away, and a learned newline ends each row. Stage 2 trains everything, the ViT with a tenth of the rate.
    """
    return _next(size, "llava-next", "LLaVA-NeXT 7B", llama_7b(), total=7.06e9)


def llava_next_34b(size: Size = "small") -> Recipe:
    """LLaVA-NeXT 34B: the same on Nous-Hermes-2-Yi-34B; one day on 32 A100 (survey 004)."""
    return _next(size, "llava-next-34b", "LLaVA-NeXT 34B", yi_34b(), total=34.75e9)


def _next(size: Size, name: str, title: str, language: Backbone.Config, total: float) -> Recipe:
    published = clip_vit_l14(336)
    squashed = published.replace(transform=published.transform.replace(resize="squash"))
    vision = vision_for(size, squashed, GRIDS)
    stages = (
        align(size, lr=1e-3, published="558K pairs, 1 epoch, batch 256, lr 1e-3; projection only"),
        instruct(
            size, lr={"encoders.*": 2e-6, "*": 2e-5}, train=("encoders.*", "connectors.*", "backbone.*"),
            published="760K mixture, 1 epoch, batch 128, lr 2e-5 (ViT 2e-6); the whole model",
        ),
    )  # fmt: skip
    canvases = ("672x672", "336x1344", "1344x336")
    figures = (
        Figure(name="parameters.total", published=total, source="LLaVA-NeXT blog, model card"),
        *(Figure(name=f"tiles.image@{canvas}", published=4, tolerance=0.0, source="survey 004") for canvas in canvases),
        *(
            Figure(name=f"pixels.image@{canvas}", published=4 * 336**2, tolerance=0.0, source="survey 004, derived")
            for canvas in canvases
        ),
        Figure(name="tokens.image@672x672", published=2928, tolerance=0.0, source="derived: 576 + 48 x (48 + 1)"),
        Figure(name="lr.align", published=1e-3, tolerance=0.0, source="LLaVA-NeXT blog"),
    )
    return Recipe(
        name=name, title=title, paper="llava-vl.github.io/blog/2024-01-30-llava-next", family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": AnyRes.Config()}, backbone=language_for(size, language)
        ),
        template=template_for(size, VICUNA), stages=stages, figures=figures if size == "paper" else (),
        deviations=(*STAND_INS, "the canvases are those of the blog; released checkpoints leave out 1 x 4 and 4 x 1"),
        **fields_for(size),
    )  # fmt: skip
