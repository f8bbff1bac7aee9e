"""What the recipes share whose language model says pictures as it says words: codec, stages and questions."""

from __future__ import annotations

from typing import Any

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.data.interleaved import Interleaved
from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, EmojiQuestions
from sensorium.encoders.transform import ImageTransform
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.drawing import Drawn
from sensorium.evaluate.reconstruction import Reconstruction
from sensorium.evaluate.task import EvaluationTask
from sensorium.infer.sampling import Sampling
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.objectives.language import NextToken
from sensorium.objectives.reconstruction import Reconstruct
from sensorium.recipes.clip import clip
from sensorium.recipes.common import BUILT_IN, TOKENIZER
from sensorium.train.recipe import Recipe, Size, Stage

FAMILY = "unified tokens"
WORDS = 259
"""Ids of the byte tokenizer."""
CODES = 512
"""Codes in the book of a codec below paper size."""
SMALLER = (
    "tiny, small: 32 px pictures of 4 x 4 codes (512 in the book, moving means with revival) and a smaller language "
    "model, all from scratch; small differs in its width. Half of the codes that are said are read as other ones in "
    "training: a few thousand pictures are else known by their first codes, and names are not needed",
    "the codec learns by squared error and commitment alone; the published perceptual and adversarial terms are not in "
    "its stage",
    BUILT_IN,
    TOKENIZER,
)


def codec_for(size: Size, paper: VQ.Config) -> VQ.Config:
    """The image codec at a size: as published, or 8 x 8 pixels a code."""
    if size == "paper":
        return paper
    return VQ.Config(
        transform=ImageTransform(size=32), wide=96,
        conv=Convolutions(channels=48, multipliers=(1, 2), blocks=1, attention=False, patch=4, groups=8),
        quantizer=Quantizer.Config(codes=CODES, width=8, decay=0.95, revive=0.1),
    )  # fmt: skip


def language_for(size: Size, paper: Backbone.Config) -> Backbone.Config:
    """The language model at a size, of the published kind, with room for the codes and their marks."""
    if size == "paper":
        return paper
    width, depth, hidden = (192, 6, 512) if size == "tiny" else (256, 6, 768)
    attention = paper.block.attention.replace(heads=width // 32, kv_heads=None)
    block = paper.block.replace(attention=attention, ffn=paper.block.ffn.replace(hidden=hidden))
    return paper.replace(vocab=WORDS + CODES + 4, width=width, depth=depth, block=block, tied=True)


def tokens_for(size: Size, paper: CodeTokens) -> CodeTokens:
    """Where the codes stand in the vocabulary: as published, or behind the bytes with the published marks."""
    if size == "paper":
        return paper
    return CodeTokens.after(
        WORDS, CODES, rows=paper.row is not None, frames=paper.frame is not None, keep=0.5
    )  # fmt: skip


def stages_for(
    size: Size, model: Fused.Config, published: dict[str, dict[str, Any]], z: float = 0.0
) -> tuple[Stage, ...]:
    """The codec alone; then the language model on documents in both orders; then on requests and questions.

    published  what the paper says, by stage: `lr` and `published`, and further fields of a Stage
    """
    alone = Wiring.Config(codecs=model.codecs)
    codec = {
        "name": "codec",
        "wiring": alone,
        "train": ("codecs.*",),
        "objectives": (RECONSTRUCT,),
        "precision": "fp32",
    }
    language = {"train": ("backbone.*",), "objectives": (NextToken(z=z),)}
    every = [codec, {"name": "pretrain", **language}, {"name": "finetune", **language}]
    if size == "paper":
        common = {"epochs": 1, "tokens": 8192, "checkpointing": True}
        return tuple(Stage(**{**common, **fields, **published[str(fields["name"])]}) for fields in every)
    here = HERE[size]
    return tuple(
        Stage(**{**fields, **here[str(fields["name"])], "published": published[str(fields["name"])]["published"]})
        for fields in every
    )


RECONSTRUCT = Reconstruct(weights={"commitment": 0.25})
DOCUMENTS = Mixture(
    parts=(
        Part(name="draw", source=Interleaved(orders=("draw",), rounds=10), weight=6),
        Part(name="name", source=Interleaved(orders=("name",), rounds=10), weight=2),
        Part(name="interleaved", source=Interleaved(pairs=2, rounds=2)),
    )
)
REQUESTS = Mixture(
    parts=(
        Part(name="requests", source=Interleaved(plain=False, rounds=10), weight=4),
        Part(name="questions", source=EmojiQuestions(families=("caption", "choice_name"), questions_per_picture=2)),
    )
)
GUIDED = Sampling(temperature=1.0, top_k=64, guidance=1.5, max_tokens=1)
CODEC = {"data": Captions(), "lr": 3e-3, "steps": 2000, "tokens": 8192, "items": 32, "betas": (0.9, 0.99)}
COMMON = {"tokens": 4096, "weight_decay": 0.05, "betas": (0.9, 0.98)}
HERE: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "codec": CODEC,
        "pretrain": {"data": DOCUMENTS, "lr": 2e-3, "steps": 3000, **COMMON},
        "finetune": {"data": REQUESTS, "lr": 1e-3, "steps": 1000, **COMMON},
    },
    "small": {
        "codec": CODEC,
        "pretrain": {"data": DOCUMENTS, "lr": 1.5e-3, "steps": 2200, **COMMON},
        "finetune": {"data": REQUESTS, "lr": 7e-4, "steps": 800, **COMMON},
    },
}


def judge() -> Recipe:
    """CLIP at small size, trained on the training split: a tiny one, all from scratch, tells too little apart."""
    return clip("small").replace(evaluations=())


def fields_for(size: Size) -> dict[str, Any]:
    """What a size decides alone: what is asked, and who judges pictures."""
    if size == "paper":
        return {}
    return {"evaluations": evaluations(100), "judge": judge()}


def evaluations(count: int) -> tuple[EvaluationTask, ...]:
    """Pictures from names, names from pictures, and what comes back from the codec."""
    splits = ("val_artist", "val_concept")
    return (
        *(Drawn(split=one, n=count, sampling=GUIDED) for one in splits),
        *(Choice(name="multiple_choice", family="emoji", split=one, n=2 * count) for one in splits),
        *(Reconstruction(split=one, n=2 * count) for one in splits),
    )
