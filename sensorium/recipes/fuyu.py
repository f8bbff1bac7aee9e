"""Fuyu: a decoder alone, which reads the patches of a picture as it reads words."""

from __future__ import annotations

from typing import Any

from sensorium.connectors.rows import Rows
from sensorium.data.questions import EmojiQuestions
from sensorium.data.reframe import Aspect, Reframed
from sensorium.encoders.patch import Patch
from sensorium.encoders.transform import ImageTransform
from sensorium.evaluate.choice import Choice
from sensorium.models.fused import Fused
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope
from sensorium.recipes.common import BUILT_IN, TOKENIZER
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size, Stage

TEMPLATE = Template(
    chat="{% for m in messages %}{{ m['content'] + ('\\n\\x04' if m['role'] == 'user' else eos_token) }}{% endfor %}",
    begin="<s>", plain="|ENDOFTEXT|", stop="|ENDOFTEXT|",
)  # fmt: skip
ASPECTS: tuple[Aspect, ...] = ((1, 1), (2, 3), (3, 2), (1, 2), (2, 1), (3, 4))


def persimmon_8b() -> Backbone.Config:
    """Persimmon-8B as Fuyu has it: squared ReLU, LayerNorm also on queries and keys, half of each head turned by
    rotary positions, biases, an untied head over 262,144 tokens (adept.ai/blog/persimmon-8b)."""
    norm = Norm.Config(kind="layer")
    return persimmon(width=4096, depth=36, heads=64, hidden=16_384, vocab=262_144, norm=norm, tied=False)


def persimmon(
    *, width: int, depth: int, heads: int, hidden: int, vocab: int, norm: Norm.Config, tied: bool
) -> Backbone.Config:
    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True, qk_norm=norm),
        ffn=FeedForward.Config(hidden=hidden, activation="relu2", gated=False, bias=True),
        norm=norm,
    )
    rope = Rope.Config(theta=25_000.0, share=0.5)
    return Backbone.Config(vocab=vocab, width=width, depth=depth, block=block, rope=rope, tied=tied)


def fuyu(size: Size = "tiny") -> Recipe:
    """Fuyu-8B: A Multimodal Architecture for AI Agents (Bavishi et al. 2023, adept.ai/blog/fuyu-8b).

    New in it: no image encoder. Patches of 30 x 30 pixels go through one linear layer and stand among the words, row
    after row, each row ended by an image-newline; so pictures keep their size and aspect ratio, and there is neither
    resizing nor a second tower, nor stages that freeze one of them.
    """
    if size == "paper":
        backbone, transform, patch = persimmon_8b(), ImageTransform(size=1920, resize="keep", multiple=30), 30
    else:
        width, depth, hidden = (192, 4, 768) if size == "tiny" else (256, 6, 1024)
        backbone = persimmon(width=width, depth=depth, heads=width // 32, hidden=hidden, vocab=259,
                             norm=Norm.Config(kind="layer"), tied=True)  # fmt: skip
        transform, patch = ImageTransform(size=96, resize="keep", multiple=16), 16
    model = Fused.Config(
        encoders={"image": Patch.Config(transform=transform, patch=patch, dim=backbone.width)},
        connectors={"image": Rows.Config()}, backbone=backbone,
    )  # fmt: skip
    figures = (
        Figure(name="parameters.total", published=9.408e9, tolerance=0.01, source="released fuyu-8b: 9.41 B"),
        Figure(name="parameters.encoders.image", published=30 * 30 * 3 * 4096 + 4096, tolerance=0.0,
               source="derived: one linear layer over 30 px patches"),
        Figure(name="features.image@1080x1920", published=36 * 64, tolerance=0.0, source="derived: 30 px patches"),
        Figure(name="tokens.image@1080x1920", published=36 * 65, tolerance=0.0, source="derived: a newline each row"),
        Figure(name="tokens.image@300x30", published=20, tolerance=0.0, source="derived: any aspect ratio"),
        Figure(name="width", published=4096, tolerance=0.0, source="released fuyu-8b"),
        Figure(name="depth", published=36, tolerance=0.0, source="released fuyu-8b"),
        Figure(name="heads", published=64, tolerance=0.0, source="released fuyu-8b"),
        Figure(name="vocab", published=262_144, tolerance=0.0, source="released fuyu-8b"),
    )  # fmt: skip
    return Recipe(
        name="fuyu", title="Fuyu-8B", paper="adept.ai/blog/fuyu-8b", family="linear patches", size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=_stages(size),
        figures=figures if size == "paper" else (), evaluations=() if size == "paper" else evaluations(300),
        deviations=(
            "tiny, small: 16 px patches of pictures up to 96 px, a smaller decoder, all from scratch",
            "the newline is learned beside the vocabulary, not a row of it",
            "the published training is not described beyond the architecture: one stage in which everything learns",
            BUILT_IN, TOKENIZER,
        ),
    )  # fmt: skip


def _stages(size: Size) -> tuple[Stage, ...]:
    every: dict[str, Any] = {
        "train": ("encoders.*", "connectors.*", "backbone.*"),
        "published": "not published: the decoder, the linear layer and the newline learn together",
    }
    if size == "paper":
        return (Stage(name="train", lr=1e-4, epochs=1, tokens=4096, checkpointing=True, **every),)
    # every round frames a picture anew: without an encoder trained elsewhere, shapes must be seen in many places
    names = EmojiQuestions(families=("caption",), questions_per_picture=1, rounds=40)
    data = Reframed(source=names, aspects=ASPECTS)
    common = {"tokens": 4096, "weight_decay": 0.05, "betas": (0.9, 0.98), "data": data, **every}
    return (Stage(name="train", lr=2e-3, steps={"tiny": 3000, "small": 4000}[size], **common),)


def evaluations(count: int) -> tuple[Choice, ...]:
    """Names among four, of pictures in six aspect ratios."""
    return tuple(
        Choice(name="multiple_choice", family="emoji", split=split, n=count, aspects=ASPECTS)
        for split in ("val_artist", "val_concept")
    )
