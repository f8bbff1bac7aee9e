"""Flamingo and OpenFlamingo: a frozen language model that reads pictures through gated cross-attention."""

from __future__ import annotations

from typing import Literal

from sensorium.connectors.resampler import Resampler
from sensorium.data.chained import Chained
from sensorium.data.questions import Captions, EmojiQuestions
from sensorium.encoders.nfnet import nfnet_f6
from sensorium.encoders.vit import clip_vit_l14
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.gates import Gates
from sensorium.evaluate.task import EvaluationTask
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone, llama
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.recipes.common import STAND_INS, fields_for, instruct, language_for, llama_7b, template_for, vision_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size
from sensorium.train.warm import RidgeStart

FAMILY = "cross-attention"
SHOTS = (0, 4, 8, 16)
PROMPT = Template(
    chat="{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
    "{% else %}{{ 'Output:' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}",
    media={"image": ("<image>", ""), "video": ("<image>", "")},
    stop="<|endofchunk|>",
    begin="",
    plain="<|endofchunk|>",
)
TRAIN = ("connectors.*", "backbone.blocks.*.cross.*")
BLIND = (
    "a token that reads no picture passes by the feed-forward of the new layers too, so that text alone stays the "
    "language model's own; the published one acts on every token"
)
START = (
    "small: the resampler's last layer starts from a closed-form fit to word embeddings (train/warm.py), values and "
    "output of the new attention start as the identity: what a gate lets through is at once of use to the frozen "
    "language model, and minutes suffice to open it"
)
RATES = {"*gate": 3e-2, "connectors.image.out.*": 5e-5, "connectors.*": 2e-4, "*": 3e-4}
"""Gates start at zero and move by about their rate a step: few steps ask for a large one. The fitted layer moves
slowly, or it follows what all features have in common, which outweighs what tells them apart."""
HERE = {"small": {"steps": 300, "tokens": 768, "lr": RATES}}


def flamingo(size: Size = "small") -> Recipe:
    """Flamingo-80B: a Visual Language Model for Few-Shot Learning (Alayrac et al. 2022, arXiv 2204.14198).

    New in it: between frozen blocks of a frozen language model stand new ones that cross-attend to pictures, gated by
    tanh of a scalar that starts at zero, so that at first the language model is what it was; a Perceiver resampler
    makes 64 tokens of any picture or clip; a token reads only the last picture before it; interleaved pages and pairs
    teach it to learn from examples in its prompt.
    """
    vision, backbone = vision_for(size, nfnet_f6()), language_for(size, chinchilla_70b())
    if size == "paper":
        connector = Resampler.Config(width=1536, heads=16, head_width=128, frames=8)
        backbone = with_reading(backbone, every=7, heads=64, head_width=128)
    else:
        connector, backbone = _small(size, backbone)
    figures = (
        Figure(name="parameters.encoders.image", published=435e6, tolerance=0.02, source="arXiv 2204.14198, table 1"),
        Figure(name="matching.connectors.image.[!o]*", published=194e6, tolerance=0.02,
               source="arXiv 2204.14198, table 1; without the last projection, see deviations"),
        Figure(name="trained.train", published=10e9, tolerance=0.02, source="arXiv 2204.14198, table 1: 10B + 194M"),
        Figure(name="tokens.image", published=64, tolerance=0.0, source="arXiv 2204.14198, section 3.1.1"),
        Figure(name="view.image", published=288, tolerance=0.0, source="systems.md, section 4"),
        Figure(name="reading.every", published=7, tolerance=0.0, source="arXiv 2204.14198, table 1"),
    )  # fmt: skip
    deviations = (
        *STAND_INS,
        "paper: the resampler projects its latents to the language model's width (12.6 M); the 10 B of the paper's "
        "table 1 come out only when keys and values read that width: 12 x 805 M + 0.2 B",
        "paper: Chinchilla's relative positions (a further projection of 67 M a block, 5.4 B in all) are rotary here",
        "feed-forwards use GELU, the published ones squared ReLU",
        BLIND,
        START,
    )
    return _recipe(size, "flamingo", "Flamingo-80B", "arXiv 2204.14198", vision, connector, backbone,
                   "M3W (43M pages), ALIGN (1.8B), LTIP (312M), VTP (27M); AdamW, lr 1e-4, gradients accumulated over "
                   "the sets", 1e-4, figures, deviations)  # fmt: skip


def openflamingo(size: Size = "small") -> Recipe:
    """OpenFlamingo-9B (Awadalla et al. 2023, arXiv 2308.01390).

    New in it: Flamingo's shape for any CLIP encoder and any published language model; cross-attention of 8 heads of 64
    every fourth block; trained on LAION-2B pairs and MMC4 pages.
    """
    vision = vision_for(size, clip_vit_l14(224))
    backbone = language_for(size, llama_7b())
    if size == "paper":
        connector = Resampler.Config(heads=8, head_width=64, frames=0)
        backbone = with_reading(backbone, every=4, heads=8, head_width=64, memory=1024)
    else:
        connector, backbone = _small(size, backbone)
    figures = (
        Figure(name="parameters.total", published=9e9, tolerance=0.1,
               source="its name; with Llama 7B the parts sum to 8.2 B (the released one has MPT-7B)"),
        Figure(name="parameters.encoders.image", published=304e6, source="CLIP ViT-L/14, arXiv 2103.00020"),
        Figure(name="tokens.image", published=64, tolerance=0.0, source="arXiv 2308.01390, section 3.1"),
        Figure(name="reading.every", published=4, tolerance=0.0, source="arXiv 2308.01390, table 1"),
    )  # fmt: skip
    deviations = (
        *STAND_INS, "paper: feed-forwards use GELU; the resampler ends in a projection (1.05 M)", BLIND, START,
        "tiny, small: the stand-ins are Flamingo's, so this is the same model as flamingo at these sizes",
    )  # fmt: skip
    return _recipe(size, "openflamingo", "OpenFlamingo-9B", "arXiv 2308.01390", vision, connector, backbone,
                   "LAION-2B pairs and MMC4 pages, 120M + 60M samples, lr 1e-4, loss weights 0.2 and 1",
                   1e-4, figures, deviations)  # fmt: skip


def _recipe(size, name, title, paper, vision, connector, backbone, published, lr, figures, deviations) -> Recipe:
    start = None
    if size == "small":
        start = RidgeStart(data=Captions(), layer="out", centre=True, ridge=0.03, gain=6.0)
    stage = instruct(size, name="train", train=TRAIN, lr=lr, published=published, data=INTERLEAVED, warmup=0.05,
                     start=start, here=HERE)  # fmt: skip
    return Recipe(
        name=name, title=title, paper=paper, family=FAMILY, size=size,
        model=Fused.Config(
            encoders={"image": vision}, connectors={"image": connector}, backbone=backbone,
            memory=("image", "video"), share={"video": "image"},
            rule=AttentionRule(memory="latest"),
        ),
        template=template_for(size, PROMPT), stages=(stage,), figures=figures if size == "paper" else (),
        deviations=deviations, **{**fields_for(size), **({} if size == "paper" else {"evaluations": few_shot(size)})},
    )  # fmt: skip


INTERLEAVED = Chained(source=EmojiQuestions(families=("caption",), questions_per_picture=1, rounds=8), most=4)
"""One to four pictures in a document, each with a question and its answer."""


def few_shot(size: Size) -> tuple[EvaluationTask, ...]:
    """The same items behind 0, 4, 8 and 16 examples; concepts never trained on behind none and four. And the gates."""
    n = 40 if size == "tiny" else 200
    common = {"family": "emoji", "n": n}
    seen = [Choice(name=f"{shots}-shot", split="val_artist", shots=shots, **common) for shots in SHOTS]
    new = [Choice(name=f"{shots}-shot", split="val_concept", shots=shots, **common) for shots in SHOTS[:2]]
    return (*seen, *new, Gates())


def with_reading(
    backbone: Backbone.Config,
    every: int,
    heads: int,
    head_width: int,
    memory: int | None = None,
    ratio: int = 4,
    start: Literal["random", "copy"] = "random",
) -> Backbone.Config:
    """Gated cross-attention dense layers ahead of every so many blocks (section 3.1.2)."""
    cross = Cross.Config(
        attention=Attention.Config(heads=heads, head_width=head_width, start=start),
        memory=memory, place="before", gated=True,
        ffn=FeedForward.Config(hidden=ratio * backbone.width, activation="gelu", gated=False),
        norm=Norm.Config(kind="layer"),
    )  # fmt: skip
    return backbone.replace(block=backbone.block.replace(cross=cross), cross_every=every)


def _small(size: Size, backbone: Backbone.Config) -> tuple[Resampler.Config, Backbone.Config]:
    """Few latents for the few features of the small encoders, and reading at every third block."""
    if size == "tiny":
        return Resampler.Config(latents=4, depth=1, heads=4, head_width=16, frames=8), with_reading(
            backbone, 1, 4, 24, ratio=2
        )
    resampler = Resampler.Config(latents=4, depth=1, heads=20, head_width=64, ratio=1, frames=8, start="copy")
    return resampler, with_reading(backbone, 3, 9, 64, start="copy")


def chinchilla_70b() -> Backbone.Config:
    """Chinchilla 70B (Hoffmann et al. 2022, arXiv 2203.15556): 80 blocks of 8192 with 64 heads of 128."""
    plain = llama(vocab=32_000, width=8192, depth=80, heads=64, hidden=32_768)
    ffn = FeedForward.Config(hidden=32_768, activation="gelu", gated=False)
    return plain.replace(block=plain.block.replace(ffn=ffn))
