"""CLIP: an image tower and a text tower, told apart pair by pair."""

from __future__ import annotations

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.vit import CLIP_TRANSFORM, ViT, stack
from sensorium.models.dual import Dual
from sensorium.nn.backbone import Backbone
from sensorium.objectives.contrastive import Contrastive
from sensorium.recipes.contrastive import FAMILY, SPACE, STAND_INS, contrast, fields_for, image_for, pool_for, text_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

TEMPLATE = Template(begin="<|startoftext|>", plain="<|endoftext|>", stop="<|endoftext|>")


def clip_vit_b16() -> ViT.Config:
    """CLIP's ViT-B/16 (arXiv 2103.00020, table 20): 86.2 M parameters; gives its class token."""
    blocks = stack(768, 12, 12, activation="quick_gelu", eps=1e-5, embed_norm=True)
    return ViT.Config(
        transform=CLIP_TRANSFORM.replace(size=224), backbone=blocks, patch=16, patch_bias=False, class_feature=True
    )


def clip_text(width: int = 512, heads: int = 8) -> Backbone.Config:
    """CLIP's text tower: 12 causal blocks, 77 learned positions, 49,408 tokens (section 2.4)."""
    blocks = stack(width, 12, heads, activation="quick_gelu", eps=1e-5)
    return blocks.replace(vocab=49_408, positions=77)


def clip(size: Size = "small") -> Recipe:
    """CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021, 2103.00020).

    New in it: two towers from scratch on 400 M pairs, trained only to tell which picture and text of a batch of 32,768
    belong together (symmetric InfoNCE with a learned temperature). The projections of a picture's class token and of
    a text's end token meet in one space; a class is then the mean of its name in many prompts.
    """
    model = Dual.Config(
        encoders={"image": image_for(size, clip_vit_b16())},
        connectors={"image": pool_for(size, GlobalPool.Config(by="class"))},
        backbone=text_for(size, clip_text()), width=SPACE.get(size, 512), text="last",
        scale=1 / 0.07, ceiling=100.0,
    )  # fmt: skip
    stage = contrast(
        size, Contrastive(), lr=5e-4, weight_decay=0.2, betas=(0.9, 0.98),
        published="WIT-400M, 32 epochs, batch 32,768, Adam with cosine schedule, lr 5e-4 (ViT-B/16); all from scratch",
    )  # fmt: skip
    figures = (
        Figure(name="parameters.total", published=149_620_737, tolerance=1e-6, source="released ViT-B/16"),
        Figure(
            name="parameters.encoders.image", published=86.2e6, source="arXiv 2103.00020, table 20, with the projection"
        ),
        Figure(name="width", published=512, tolerance=0.0, source="arXiv 2103.00020, table 20, text width"),
        Figure(name="depth", published=12, tolerance=0.0, source="arXiv 2103.00020, section 2.4"),
        Figure(name="heads", published=8, tolerance=0.0, source="arXiv 2103.00020, section 2.4"),
        Figure(name="vocab", published=49_408, tolerance=0.01, source="49,152 merges; arXiv 2103.00020, section 2.4"),
        Figure(name="context", published=77, tolerance=0.02, source="released; section 2.4 says 76"),
        Figure(name="space", published=512, tolerance=0.0, source="arXiv 2103.00020, table 20"),
        Figure(name="features.image", published=197, tolerance=0.0, source="derived: (224 / 16)^2 and the class token"),
        Figure(name="temperature", published=0.07, tolerance=1e-6, source="arXiv 2103.00020, section 2.5"),
        Figure(name="lr.contrast", published=5e-4, tolerance=0.0, source="arXiv 2103.00020, table 20"),
    )
    return Recipe(
        name="clip", title="CLIP ViT-B/16", paper="arXiv 2103.00020", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=(stage,),
        figures=figures if size == "paper" else (), deviations=STAND_INS, **fields_for(size, model),
    )  # fmt: skip
