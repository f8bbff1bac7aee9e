"""UniCL, the objective of Florence: pairs of one label belong together."""

from __future__ import annotations

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.vit import CLIP_TRANSFORM, ViT, stack
from sensorium.models.dual import Dual
from sensorium.objectives.contrastive import Contrastive
from sensorium.recipes.clip import TEMPLATE, clip_text
from sensorium.recipes.contrastive import FAMILY, SPACE, STAND_INS, contrast, fields_for, image_for, pool_for, text_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size


def unicl_vit_b16() -> ViT.Config:
    """A ViT-B/16 whose features are averaged, in place of the paper's Swin."""
    blocks = stack(768, 12, 12, eps=1e-5)
    return ViT.Config(transform=CLIP_TRANSFORM.replace(size=224), backbone=blocks, patch=16, class_token=False)


def unicl(size: Size = "small") -> Recipe:
    """UniCL: Unified Contrastive Learning in Image-Text-Label Space (Yang et al. 2022, arXiv 2204.03610).

    New in it: pictures with a label and pictures with a text are one kind of data, triplets (picture, text, label);
    all pairs of one label are positives of each other, in both directions. So classification data with few names and
    caption data with many train the same two towers. It is the pretraining objective of Florence (arXiv 2111.11432).
    Here equal captions are equal labels: two artists' pictures of one concept do not repel each other.
    """
    model = Dual.Config(
        encoders={"image": image_for(size, unicl_vit_b16())},
        connectors={"image": pool_for(size, GlobalPool.Config(by="mean"))},
        backbone=text_for(size, clip_text()), width=SPACE.get(size, 512), text="last",
    )  # fmt: skip
    stage = contrast(
        size, Contrastive(labels=True), lr=1e-3, weight_decay=0.1,
        published="pictures with labels and pictures with texts together; both towers from scratch",
    )  # fmt: skip
    figures = (
        Figure(name="width", published=512, tolerance=0.0, source="arXiv 2204.03610, section 4: text width 512"),
        Figure(name="depth", published=12, tolerance=0.0, source="arXiv 2204.03610, section 4: 12 layers"),
        Figure(name="vocab", published=49_408, tolerance=0.0, source="CLIP's tokenizer"),
        Figure(name="context", published=77, tolerance=0.0, source="CLIP's text tower"),
        Figure(name="space", published=512, tolerance=0.0, source="arXiv 2204.03610, section 4"),
    )
    return Recipe(
        name="unicl", title="UniCL ViT-B/16", paper="arXiv 2204.03610", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=(stage,),
        figures=figures if size == "paper" else (),
        deviations=(
            *STAND_INS,
            "paper: a ViT-B/16 with averaged features stands for the paper's Swin and Florence's CoSwin (637 M), which "
            "are not built here",
            "labels are equal captions; a label that comes with data in other words is not read",
        ),
        **fields_for(size, model),
    )  # fmt: skip
