"""BLIP-2, InstructBLIP and MiniGPT-4: a Q-Former between a frozen image encoder and a frozen language model."""

from __future__ import annotations

from typing import Any

from sensorium.connectors.qformer import QFormer
from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, EmojiQuestions, SceneQuestions
from sensorium.data.source import SourceConfig
from sensorium.encoders.vit import ViT, eva_vit_g14
from sensorium.evaluate.contrastive import Retrieval
from sensorium.evaluate.instruction import Instructed
from sensorium.evaluate.matching import Matches
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.models.fused import Fused
from sensorium.nn.backbone import Backbone, opt, t5
from sensorium.objectives.contrastive import Contrastive
from sensorium.objectives.language import NextToken
from sensorium.objectives.matching import Matching
from sensorium.recipes.common import (
    FAMILY,
    STAND_INS,
    fields_for,
    language_for,
    llama_7b,
    llama_13b,
    template_for,
    vision_for,
)
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size, Stage
from sensorium.train.warm import RidgeStart

_TURNS = (
    "{{% for m in messages %}}{{% if m['role'] == 'user' %}}{{{{ {user} }}}}"
    "{{% else %}}{{{{ {assistant} + eos_token }}}}{{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
)
BLIP_2 = Template(
    chat=_TURNS.format(user="m['content']", assistant="' ' + m['content']", prompt="''"),
    asks=("Question: ", " Answer:"), begin="</s>", stop="</s>", plain="</s>",
)  # fmt: skip
INSTRUCTBLIP = BLIP_2.replace(asks=("", ""), begin="<s>")
MINIGPT_4 = Template(
    chat=_TURNS.format(
        user="'###Human: ' + m['content'] + ' '", assistant="'###Assistant: ' + m['content']", prompt="'###Assistant:'"
    ),
    media={"image": ("<Img>", "</Img> ")}, begin="<s>", stop="</s>", plain="</s>",
)  # fmt: skip

SPACE = {"tiny": 64, "small": 256, "paper": 256}
MARK = {"tiny": 259, "small": 49_152, "paper": 30_522}
"""The id of [DEC], one past the tokenizer's last."""

# what of a Q-Former works when no text stands beside its queries
QUERIES = (
    "connectors.image.queries",
    "connectors.image.[no]*",  # out, and a norm where there is one
    "connectors.image.stack.embed_norm.*",
    *(f"connectors.image.stack.blocks.*.{part}.*" for part in ("attention", "norm1", "cross", "routes")),
)
LINEAR = ("connectors.image.out.*",)
START = RidgeStart(data=Captions(), layer="out", ridge=0.03, gain=1.5)

STEPS = {
    "tiny": {"represent": 100, "generate": 100, "align": 60, "instruct": 150, "project": 60, "curate": 50},
    "small": {"represent": 300, "generate": 600, "align": 100, "instruct": 700, "project": 250, "curate": 100},
}
TOKENS = {"represent": 2048, "generate": 512, "align": 512, "instruct": 768, "project": 512, "curate": 768}
"""Of a micro-batch at size small."""
RATES: dict[str, float | dict[str, float]] = {
    "tiny": {"connectors.image.out.*": 2e-3, "*": 1e-3},
    "small": {"connectors.image.out.*": 1e-3, "*": 5e-4},
}
SPEAKING: dict[str, float] = {"connectors.image.out.*": 5e-5, "*": 3e-4}
"""Of stages before a language model at size small. Faster, the fitted layer follows what all pictures have in common,
and what tells them apart drowns in it."""
STARTED = (
    "small: the layer behind the Q-Former starts from a closed-form fit of what stage 1 made of pictures to word "
    "embeddings (train/warm.py), so that minutes on two cores suffice"
)
SMALLER = (
    "tiny, small: the Q-Former is small and starts random (no BERT), reads the language model's tokens, and normalises "
    "the features itself",
    "paper: the Q-Former reads BERT's tokens, whose tokenizer comes with the published weights",
    "a text begins with the template's first token in the contrastive and the matching pass, where BLIP-2 writes [CLS]",
    "hard negatives are drawn within a micro-batch, the published ones from all devices",
    STARTED,
)
ASKED = "tiny, small: stage 2's captions answer a question, so that the model can be asked afterwards"
NAMES = EmojiQuestions(families=("caption",), questions_per_picture=1, rounds=8)


def blip_2(size: Size = "small") -> Recipe:
    """BLIP-2 OPT-2.7B: Frozen Image Encoders and Large Language Models (Li et al. 2023, arXiv 2301.12597).

    New in it: the Q-Former, a small BERT whose 32 learned queries read a frozen image encoder, learns in two stages.
    First without a language model, from picture and text alone: contrastive, matching and language modelling, three
    attention rules of one stack. Then its queries' outputs, through one linear layer, are put before the words of a
    frozen language model that it learns to make speak.
    """
    model = _model(size, QFormer.Config(), opt(width=2560, depth=32, heads=32))
    stages = (
        represent(size, model),
        _stage(size, "generate", QUERIES, lr=1e-4, data=NAMES,
               published="129M pairs, 80K steps, batch 1920, lr 1e-4 falling to 5e-5; Q-Former, without its text side, "
                         "and projection"),
    )  # fmt: skip
    figures = (
        *_figures(188e6, "arXiv 2301.12597, table 1: trained parameters; heads of stage 1 left out"),
        Figure(name="parameters.total", published=3.8e9, tolerance=0.02, source="arXiv 2301.12597, table 2"),
        Figure(name="parameters.backbone", published=2.65e9, source="OPT-2.7B, arXiv 2205.01068, released checkpoint"),
        Figure(name="trained.represent", published=188e6, tolerance=0.02, source="arXiv 2301.12597, section 3.1"),
        Figure(name="trained.generate", published=107e6, tolerance=0.02, source="arXiv 2301.12597, table 2"),
        Figure(name="lr.represent", published=1e-4, tolerance=0.0, source="arXiv 2301.12597, section 3.4"),
        Figure(name="lr.generate", published=1e-4, tolerance=0.0, source="arXiv 2301.12597, section 3.4"),
    )
    return Recipe(
        name="blip-2", title="BLIP-2 OPT-2.7B", paper="arXiv 2301.12597", family=FAMILY, size=size, model=model,
        template=template_for(size, BLIP_2), stages=stages, figures=figures if size == "paper" else (),
        deviations=(*STAND_INS, *SMALLER, ASKED), **fields_for(size),
    )  # fmt: skip


def blip_2_flan_t5(size: Size = "small") -> Recipe:
    """BLIP-2 Flan-T5-XL (arXiv 2301.12597, section 3.2): the same before an encoder-decoder.

    The queries' outputs and the prompt are what its encoder reads; the answer is what its decoder says.
    """
    encoder, decoder = (_flan_t5(size, decoder) for decoder in (False, True))
    model = _model(size, QFormer.Config(), decoder)
    model = model.replace(source=encoder, backbone=decoder, rule=AttentionRule(memory="all"))
    stages = (
        represent(size, model),
        _stage(size, "generate", QUERIES, lr=1e-4, data=NAMES,
               published="129M pairs, 80K steps, batch 1520, lr 1e-4 falling to 5e-5; Q-Former, without its text side, "
                         "and projection"),
    )  # fmt: skip
    figures = (
        *_figures(188e6, "arXiv 2301.12597, table 1: trained parameters; heads of stage 1 left out"),
        Figure(name="parameters.total", published=4.1e9, tolerance=0.02, source="arXiv 2301.12597, table 2"),
        Figure(name="trained.generate", published=107e6, tolerance=0.02, source="arXiv 2301.12597, table 2"),
        Figure(name="lr.generate", published=1e-4, tolerance=0.0, source="arXiv 2301.12597, section 3.4"),
    )
    deviations = (
        *STAND_INS[:2], *STAND_INS[3:], *SMALLER, ASKED,
        "small: the encoder-decoder is small and starts random; no published one is at hand",
        "of a caption all is the decoder's; the published second stage leaves a random first part of it to the encoder",
    )  # fmt: skip
    fields = fields_for(size)
    if size == "small":
        fields = {**fields, "init": {"encoders.image": fields["init"]["encoders.image"]}}
    start = "</s>" if size == "paper" else "<|im_start|>"
    return Recipe(
        name="blip-2-flan-t5", title="BLIP-2 Flan-T5-XL", paper="arXiv 2301.12597", family=FAMILY, size=size,
        model=model, template=template_for(size, BLIP_2).replace(start=start), stages=stages,
        figures=figures if size == "paper" else (), deviations=deviations, **fields,
    )  # fmt: skip


def _flan_t5(size: Size, decoder: bool) -> Backbone.Config:
    """One side of Flan-T5-XL (arXiv 2210.11416): 24 + 24 blocks of 2048, 2.85 B parameters; below, a small one."""
    if size == "tiny":
        return t5(vocab=259, width=96, depth=2, heads=4, hidden=256, head_width=24, decoder=decoder)
    if size == "small":
        return t5(vocab=49_152, width=256, depth=4, heads=4, hidden=512, decoder=decoder)
    return t5(width=2048, depth=24, heads=32, hidden=5120, decoder=decoder)


def instructblip(size: Size = "small") -> Recipe:
    """InstructBLIP Vicuna-7B: Towards General-purpose Vision-Language Models (Dai et al. 2023, arXiv 2305.06500).

    New in it: the Q-Former also reads the instruction, so its queries take from a picture what is asked for; 26
    datasets as instructions in 10 to 15 wordings each. Two stages as in BLIP-2, then instructions.
    """
    model = _model(size, QFormer.Config(instructed=True), llama_7b())
    stages = (
        represent(size, model),
        _stage(size, "align", LINEAR, lr=1e-4, data=Captions(), published="captions; projection alone"),
        _stage(size, "instruct", ("connectors.*",), lr=1e-5, data=single_questions(),
               published="13 held-in datasets, at most 60K steps, batch 128, lr 1e-5; Q-Former and projection"),
    )  # fmt: skip
    figures = (
        *_figures(188e6, "arXiv 2305.06500, section 2.6: trained parameters"),
        Figure(name="parameters.backbone", published=6.74e9, source="Vicuna-7B, released checkpoint"),
        Figure(name="trained.instruct", published=188e6, tolerance=0.02, source="arXiv 2305.06500, section 2.6"),
        Figure(name="lr.instruct", published=1e-5, tolerance=0.0, source="arXiv 2305.06500, section 2.6"),
        Figure(name="stages", published=3, tolerance=0.0, source="systems.md, section 2.1"),
    )
    deviations = (
        *STAND_INS, *SMALLER,
        "stage 2 trains the projection alone, as the survey says; BLIP-2's own second stage trains the Q-Former too",
        "what the Q-Former reads is the words of the picture's turn; each question has its picture to itself",
    )  # fmt: skip
    return Recipe(
        name="instructblip", title="InstructBLIP Vicuna-7B", paper="arXiv 2305.06500", family=FAMILY, size=size,
        model=model, template=template_for(size, INSTRUCTBLIP), stages=stages,
        figures=figures if size == "paper" else (), deviations=deviations, **_with_ablation(size),
    )  # fmt: skip


def _with_ablation(size: Size) -> dict[str, Any]:
    """What a size decides, and the question whether queries follow the instruction."""
    fields = fields_for(size)
    asked = Instructed(split="val_artist", n=60 if size == "tiny" else 200)
    return {**fields, "evaluations": (*fields["evaluations"], asked)} if "evaluations" in fields else fields


def minigpt_4(size: Size = "small") -> Recipe:
    """MiniGPT-4 (Zhu et al. 2023, arXiv 2304.10592).

    New in it: one linear layer is all that is trained between BLIP-2's frozen image side and a frozen Vicuna. Captions
    alone leave it speaking in fragments; 3,500 long, curated descriptions in a conversation's form mend that in
    minutes. The first stage here is BLIP-2's: it makes the Q-Former that MiniGPT-4 takes ready-made.
    """
    model = _model(size, QFormer.Config(), llama_13b())
    told = EmojiQuestions(families=("caption",), questions_per_picture=1)
    described = SceneQuestions(count=20_000, families=("describe",), questions_per_picture=1)
    curated = Mixture(parts=(Part(name="emoji", source=told), Part(name="scenes", source=described)))
    stages = (
        represent(size, model),
        _stage(size, "project", LINEAR, name="align", lr=1e-4, data=Captions(),
               published="5M pairs of LAION, CC and SBU, 20K steps, batch 256, lr 1e-4, 10 h on 4 A100; linear layer"),
        _stage(size, "curate", LINEAR, name="finetune", lr=3e-5, data=curated,
               published="3,500 curated descriptions, 400 steps, batch 12, lr 3e-5, 7 minutes on one A100; the same"),
    )  # fmt: skip
    figures = (
        *_figures(188e6, "BLIP-2's, arXiv 2301.12597, table 1"),
        Figure(name="parameters.backbone", published=13.0e9, source="LLaMA 13B, arXiv 2302.13971, table 2"),
        Figure(name="trained.align", published=3_937_280, tolerance=0.0, source="derived: 768 x 5120 + 5120"),
        Figure(name="trained.finetune", published=3_937_280, tolerance=0.0, source="derived: 768 x 5120 + 5120"),
        Figure(name="lr.align", published=1e-4, tolerance=0.0, source="released configuration of stage 1"),
        Figure(name="lr.finetune", published=3e-5, tolerance=0.0, source="released configuration of stage 2"),
    )
    deviations = (
        *STAND_INS, *SMALLER,
        "the Q-Former comes from BLIP-2's first stage; the published one went through its second, before Flan-T5, too",
        "an answer ends with the tokenizer's end token, the published one with ###",
    )  # fmt: skip
    return Recipe(
        name="minigpt-4", title="MiniGPT-4 13B", paper="arXiv 2304.10592", family=FAMILY, size=size, model=model,
        template=template_for(size, MINIGPT_4), stages=stages, figures=figures if size == "paper" else (),
        deviations=deviations, **fields_for(size),
    )  # fmt: skip


def represent(size: Size, model: Fused.Config) -> Stage:
    """BLIP-2's first stage (section 3.1): the Q-Former without a language model, three objectives in one pass."""
    wiring = Dual.Config(
        encoders=model.encoders, connectors=model.connectors, width=SPACE[size], text="first", text_bias=True,
        rule=AttentionRule("full"), grounded=True, start=MARK[size],
    )  # fmt: skip
    asked = tuple(Matches(split=split, n=60 if size == "tiny" else 200) for split in ("val_artist", "val_concept"))
    found = Retrieval(split="val_artist", n=100 if size == "tiny" else 500)
    return _stage(
        size, "represent", ("connectors.*", "head.*", "grounding.*"), lr=1e-4, data=Captions(), wiring=wiring,
        objectives=(Contrastive(), Matching(), NextToken()), items=32 if size == "tiny" else 64,
        evaluations=() if size == "paper" else (*asked, found), warmup=0.1,
        published="129M pairs, 250K steps, batch 1680, lr 1e-4 falling to 1e-6; Q-Former, encoder frozen",
    )  # fmt: skip


def single_questions() -> Mixture:
    """Each question with a picture to itself, whose tokens then depend on it; most of them what a picture shows."""
    emoji = EmojiQuestions(questions_per_picture=1, rounds=2)
    scenes = SceneQuestions(count=20_000, questions_per_picture=1)
    return Mixture(
        parts=(
            Part(name="names", source=NAMES, weight=4),
            Part(name="emoji", source=emoji),
            Part(name="scenes", source=scenes),
        )
    )


def _stage(
    size: Size, kind: str, train: tuple[str, ...], *, data: SourceConfig, name: str = "", lr: float, **more: Any
) -> Stage:
    fields = {"name": name or kind, "train": train, "weight_decay": 0.05, "betas": (0.9, 0.98), **more}
    if size == "paper":
        return Stage(**{**fields, "lr": lr, "epochs": 1, "tokens": 2048, "checkpointing": True})
    tokens = 1024 if size == "tiny" else TOKENS[kind]
    rates = SPEAKING if size == "small" and kind != "represent" else RATES[size]
    if size == "small" and kind in ("generate", "align", "project"):
        fields["start"] = START
    return Stage(**{**fields, "lr": rates, "data": data, "steps": STEPS[size][kind], "tokens": tokens})


def _model(size: Size, qformer: QFormer.Config, language: Backbone.Config) -> Fused.Config:
    """The Q-Former at a size, between its frozen neighbours."""
    published = eva_vit_g14(224).replace(class_feature=True)
    assert isinstance(published, ViT.Config)
    if size == "tiny":
        qformer = qformer.replace(queries=8, norm=True, vocab=260, width=64, depth=2, heads=4, hidden=128)
    if size == "small":
        qformer = qformer.replace(queries=4, norm=True, vocab=49_153, width=576, depth=2, heads=9, hidden=1152)
    return Fused.Config(
        encoders={"image": vision_for(size, published)}, connectors={"image": qformer},
        backbone=language_for(size, language),
    )  # fmt: skip


def _figures(qformer: float, source: str) -> tuple[Figure, ...]:
    """What the three systems share."""
    return (
        Figure(name="parameters.connectors.image", published=qformer, tolerance=0.02, source=source),
        Figure(name="parameters.encoders.image", published=1.01e9, source="EVA ViT-g, arXiv 2211.07636"),
        Figure(name="matching.connectors.image.queries", published=32 * 768, tolerance=0.0,
               source="arXiv 2301.12597, section 3.1: 32 queries of width 768"),
        Figure(name="tokens.image", published=32, tolerance=0.0, source="arXiv 2301.12597, section 3.1"),
        Figure(name="features.image", published=257, tolerance=0.0, source="arXiv 2301.12597, section 3.1: ViT's own"),
        Figure(name="view.image", published=224, tolerance=0.0, source="arXiv 2301.12597, section 3.4"),
    )  # fmt: skip
