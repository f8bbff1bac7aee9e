"""SEEChat: LLaVA's design on ChatGLM, in Chinese."""

from __future__ import annotations

from sensorium.connectors.mlp import MLP
from sensorium.data.questions import Captions
from sensorium.encoders.vit import clip_vit_l14
from sensorium.models.fused import Fused
from sensorium.recipes.common import (
    FAMILY,
    STAND_INS,
    align,
    chatglm_6b,
    fields_for,
    instruct,
    instructions,
    language_for,
    template_for,
    vision_for,
)
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

PROMPT = Template(
    chat="{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '\\n答：' + m['content'] + eos_token + '\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '问：' + m['content'] }}{% else %}{{ m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n答：' }}{% endif %}",
    stop="<eop>",
    plain="<eop>",
)


def seechat(size: Size = "small") -> Recipe:
    """SEEChat v1.0 (360 AI Research 2023, github.com/360CVGroup/SEEChat).

    New in it: single-modality experts joined by a small bridge, for Chinese: CLIP ViT-L/14, a projection layer,
    ChatGLM-6B. Stage 1 trains the projection on 23 M Chinese pairs of the Zero set, stage 2 the projection and the
    language model on LLaVA's 158 K instructions, translated.
    """
    vision = vision_for(size, clip_vit_l14(224))
    stages = (
        align(size, data=Captions(language="zh"), lr=1e-3, published="23M pairs of Zero (Chinese); projection only"),
        instruct(size, data=instructions(languages=("zh",)), lr=2e-5,
                 published="LLaVA's 158K instructions in Chinese; projection and LLM"),
    )  # fmt: skip
    figures = (
        Figure(name="parameters.encoders.image", published=303.5e6, source="CLIP ViT-L/14, vision tower"),
        Figure(name="parameters.backbone", published=6.2e9, source="survey 001"),
        Figure(name="vocab", published=130_528, tolerance=0.0, source="ChatGLM-6B, released checkpoint"),
        Figure(name="tokens.image", published=256, tolerance=0.0, source="(224 / 14)^2"),
        Figure(name="stages", published=2, tolerance=0.0, source="github.com/360CVGroup/SEEChat"),
    )
    deviations = (
        *STAND_INS,
        "the bridge is the projection layer of the survey; the code of the repository also holds a Q-Former variant",
        "learning rates are LLaVA's: none are published",
        "ChatGLM's two-dimensional rotary positions, its scaled residuals and its bidirectional prompt are plain RoPE, "
        "plain residuals and causal attention here; parameters are the same",
    )
    return Recipe(
        name="seechat", title="SEEChat v1.0", paper="github.com/360CVGroup/SEEChat", family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": MLP.Config(depth=1)},
            backbone=language_for(size, chatglm_6b()),
        ),
        template=template_for(size, PROMPT), stages=stages, figures=figures if size == "paper" else (),
        deviations=deviations, **fields_for(size),
    )  # fmt: skip
