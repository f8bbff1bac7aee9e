"""Yi-VL: LLaVA with a larger ViT that learns too."""

from __future__ import annotations

from sensorium.connectors.mlp import MLP
from sensorium.encoders.vit import clip_vit_h14
from sensorium.models.fused import Fused
from sensorium.recipes.common import (
    FAMILY,
    STAND_INS,
    align,
    fields_for,
    instruct,
    instructions,
    language_for,
    template_for,
    vision_for,
    yi_6b,
)
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite answers."
)
PROMPT = Template(
    chat="{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Human: ' + m['content'] + '\\n' }}"
    "{% else %}{{ '### Assistant: ' + m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:' }}{% endif %}",
    system=SYSTEM,
    media={"image": ("", "\n")},
    stop="<|endoftext|>",
    plain="<|endoftext|>",
)


def yi_vl(size: Size = "small") -> Recipe:
    """Yi-VL-6B (Yi: Open Foundation Models by 01.AI, 2024, arXiv 2403.04652, section 6).

    New in it: LLaVA's shape at 448 px with CLIP ViT-H/14 (1,024 features), a LayerNorm after each layer of the MLP,
    and an encoder that learns in every stage: 1 ViT and projection at 224 px on 100 M pairs, 2 the same at 448 px on
    25 M more, 3 the whole model on about 1 M.
    """
    published = clip_vit_h14(448)
    vision = vision_for(size, published.replace(transform=published.transform.replace(resize="pad")))
    seeing = ("encoders.*", "connectors.*")
    stages = (
        align(size, name="align", train=seeing, lr=1e-4, clip=0.5,
              published="100M LAION-400M pairs at 224 px, 1 epoch, batch 4096, lr 1e-4; ViT and projection"),
        align(size, name="refine", train=seeing, lr=1e-4, clip=0.5,
              published="25M pairs at 448 px, 1 epoch, batch 4096, lr 1e-4; ViT and projection"),
        instruct(size, train=(*seeing, "backbone.*"), lr=2e-5, epochs=2, clip=1.0,
                 data=instructions(languages=("en", "zh")),
                 published="1M samples, 2 epochs, batch 256, lr 2e-5; the whole model"),
    )  # fmt: skip
    figures = (
        Figure(name="parameters.encoders.image", published=632e6, source="OpenCLIP ViT-H/14, arXiv 2212.07143"),
        Figure(name="parameters.backbone", published=6.06e9, source="Yi-6B, released checkpoint"),
        Figure(name="kv_heads", published=4, tolerance=0.0, source="arXiv 2403.04652, table 2"),
        Figure(name="view.image", published=448, tolerance=0.0, source="arXiv 2403.04652, section 6"),
        Figure(name="tokens.image", published=1024, tolerance=0.0, source="(448 / 14)^2"),
        Figure(name="stages", published=3, tolerance=0.0, source="arXiv 2403.04652, section 6"),
    )
    deviations = (
        *STAND_INS,
        "stage 1 runs at the resolution of the later stages: a model has one resolution",
        "turns end with <|endoftext|>, published ones with the text ###; the system prompt is its English half",
    )
    return Recipe(
        name="yi-vl", title="Yi-VL-6B", paper="arXiv 2403.04652", family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": MLP.Config(norm=True)},
            backbone=language_for(size, yi_6b()),
        ),
        template=template_for(size, PROMPT), stages=stages, figures=figures if size == "paper" else (),
        deviations=deviations, **fields_for(size),
    )  # fmt: skip
