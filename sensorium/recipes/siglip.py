"""SigLIP: every picture and text of a batch is judged for itself."""

from __future__ import annotations

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.nn.backbone import Backbone
from sensorium.objectives.contrastive import Contrastive
from sensorium.recipes.contrastive import FAMILY, SPACE, STAND_INS, contrast, fields_for, image_for, pool_for, text_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

TEMPLATE = Template(begin="<s>", plain="</s>", stop="</s>")


def siglip_vit_b16() -> ViT.Config:
    """SigLIP's ViT-B/16 at 224 px: learned positions, no class token (arXiv 2303.15343)."""
    transform = ImageTransform(size=224, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return ViT.Config(
        transform=transform, backbone=stack(768, 12, 12, activation="gelu_tanh"), patch=16, class_token=False
    )


def siglip_text() -> Backbone.Config:
    """SigLIP's text tower: 12 blocks that see both ways, 64 learned positions, 32,000 tokens."""
    return stack(768, 12, 12, activation="gelu_tanh").replace(vocab=32_000, positions=64)


def siglip(size: Size = "small") -> Recipe:
    """SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al. 2023, arXiv 2303.15343).

    New in it: no softmax over the batch. Each cell of the pictures x texts table is a question of its own, pair or
    not, with a learned scale (at first 10) and a learned bias (at first -10, for most cells are none). So no rank ever
    needs more than its own rows. A learned query reads the picture's features.
    """
    model = Dual.Config(
        encoders={"image": image_for(size, siglip_vit_b16())},
        connectors={"image": pool_for(
            size, GlobalPool.Config(by="attention", heads=12, hidden=3072, project=False)
        )},
        backbone=text_for(size, siglip_text()), width=SPACE.get(size, 768), text="last", text_bias=True,
        scale=10.0, ceiling=None, bias=-10.0, rule=AttentionRule("full"),
    )  # fmt: skip
    stage = contrast(
        size, Contrastive(kind="sigmoid"), lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.95),
        published="WebLI, batch 32,768, lr 1e-3, weight decay 1e-4, beta2 0.95; all from scratch",
    )  # fmt: skip
    figures = (
        Figure(name="parameters.total", published=203_155_970, tolerance=1e-6, source="released base, 16 px at 224 px"),
        Figure(name="width", published=768, tolerance=0.0, source="released config"),
        Figure(name="vocab", published=32_000, tolerance=0.0, source="arXiv 2303.15343, section 4"),
        Figure(name="context", published=64, tolerance=0.0, source="released config; the paper's SigLiT uses 16"),
        Figure(name="features.image", published=196, tolerance=0.0, source="derived: (224 / 16)^2"),
        Figure(name="logit_scale", published=10, tolerance=1e-6, source="arXiv 2303.15343, section 3.2: t' = log 10"),
        Figure(name="logit_bias", published=-10, tolerance=0.0, source="arXiv 2303.15343, section 3.2"),
    )
    return Recipe(
        name="siglip", title="SigLIP base", paper="arXiv 2303.15343", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=(stage,),
        figures=figures if size == "paper" else (),
        deviations=(
            *STAND_INS,
            "a text is not padded to 64 tokens, the last of which the published model reads: the token that ends it "
            "stands for it, and a token begins it",
        ),
        **fields_for(size, model),
    )  # fmt: skip
