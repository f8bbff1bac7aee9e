"""CogVLM: a visual expert in every block of a language model that stays what it was for text."""

from __future__ import annotations

from sensorium.connectors.mlp import GatedMLP
from sensorium.data.questions import EmojiQuestions
from sensorium.encoders.vit import eva2_clip_e
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone
from sensorium.recipes.common import (
    FEW,
    NAMED,
    STAND_INS,
    fields_for,
    instruct,
    language_for,
    llama_7b,
    template_for,
    vision_for,
)
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

EXPERT = ("connectors.*", "backbone.blocks.*.routes.*")
PROMPT = Template(
    chat="{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Question: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'Answer: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}",
    stop="</s>",
    begin="<s>",
    plain="</s>",
)
RATES = {"connectors.*": 5e-5, "*": 2e-4}
PRETRAIN = {"small": {"steps": 500, "tokens": 768, "lr": RATES}}
REFER = {"small": {"steps": 20, "tokens": 1024, "lr": 2e-5}}
"""At ten times this rate, twenty steps on other questions undid the names: a third of choices right, not a half."""
PAPERS = ("white", "white", "white", "lightgray", "lightyellow", "lightblue", "mistyrose", "honeydew", "black")
"""What pictures lie on: a hundred million weights soon know 2,657 pictures by heart."""
NAMES = EmojiQuestions(families=("caption",), questions_per_picture=1, rounds=8, backgrounds=PAPERS)


def cogvlm(size: Size = "small") -> Recipe:
    """CogVLM-17B: Visual Expert for Pretrained Language Models (Wang et al. 2023, arXiv 2311.03079).

    New in it: in every block picture tokens have queries, keys, values, output and feed-forward of their own, started
    as copies of the language model's, and attend jointly with text; all tokens of a picture share one position.
    The language model is frozen, so for text alone it is to the last bit what it was. Stage 1 trains the expert and
    the adapter on captions, stage 2 on captions and referring expressions; fine-tuning is on instructions.
    """
    vision, language = vision_for(size, eva2_clip_e()), language_for(size, llama_7b())
    backbone: Backbone.Config = language.replace(block=language.block.replace(routes=2))
    connector = GatedMLP.Config(hidden=11_008)
    start = None
    if size == "small":
        vision, connector, start = vision.replace(positions="none"), FEW, NAMED
    elif size == "tiny":
        connector = GatedMLP.Config(hidden=128)
    stages = (
        instruct(size, name="pretrain", train=EXPERT, lr=1e-4, data=NAMES, start=start, here=PRETRAIN,
                 published="1.5B pairs of LAION-2B and COYO-700M at 224 px, 120,000 steps, batch 8192"),
        instruct(size, name="refer", train=EXPERT, lr=1e-4, here=REFER,
                 published="captions and 40M pictures with boxes, 60,000 steps, batch 1024; 490 px in the last 30,000"),
    )  # fmt: skip
    figures = (
        Figure(name="trained.pretrain", published=6.5e9, tolerance=0.025, source="systems.md, section 4; the expert "
               "alone has 6.48 B, the adapter adds 0.15 B"),
        Figure(name="parameters.backbone.routes", published=6.5e9, tolerance=0.02, source="survey 004"),
        Figure(name="parameters.total", published=17e9, tolerance=0.05, source="its name; 4.4 + 6.7 + 6.6 B"),
        Figure(name="view.image", published=490, tolerance=0.0, source="arXiv 2311.03079, section 2.2"),
        Figure(name="tokens.image", published=1225, tolerance=0.0, source="derived: (490 / 14)^2"),
    )  # fmt: skip
    deviations = (
        *STAND_INS,
        "stage 1 runs at the resolution of stage 2: a model has one resolution",
        "no learned marks around a picture; the encoder's class token is dropped, as in the paper",
        "small: a picture becomes one token (a scene ten) by a linear adapter that starts from a closed-form fit to "
        "word embeddings (train/warm.py), so that minutes on two cores suffice",
        "small: names among four are scored relative to what they have without any picture, as in the quickstart",
    )
    fields = fields_for(size)
    if size == "small":
        fields["evaluations"] = tuple(task.replace(scoring="prior") for task in fields["evaluations"])
    return Recipe(
        name="cogvlm", title="CogVLM-17B", paper="arXiv 2311.03079", family="cross-attention", size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": connector}, backbone=backbone, routes={"image": 1},
            together=("image",),
        ),
        template=template_for(size, PROMPT), stages=stages, figures=figures if size == "paper" else (),
        deviations=deviations, **fields,
    )  # fmt: skip
