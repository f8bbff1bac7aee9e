"""The five claims. Each function is one: what is trained, and what the claim says of the scores."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.claims.claim import Claim, Effect, Scores
from benchmarks.claims.models import BATCH, QUESTIONS, RATES, language, small_llava
from benchmarks.claims.skill import TextSkill
from sensorium.compare.alike import Data
from sensorium.connectors.base import Connector
from sensorium.connectors.pool import AveragePool
from sensorium.connectors.qformer import QFormer
from sensorium.connectors.resampler import Resampler
from sensorium.data.glosses import Glosses, PicturedGlosses, install
from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, SceneQuestions
from sensorium.data.source import SourceConfig
from sensorium.hub import fetch_package
from sensorium.recipes.flamingo import with_reading
from sensorium.train.recipe import Recipe

SAMPLES = 800 * BATCH


def connector() -> Claim:
    """a: three kinds x 16 or 4 tokens x 256 or 128 px, as MM1's figure 4 crosses them."""
    designs = {
        f"{kind}, {tokens} tokens, {side} px": small_llava("mm1", side=side, connector=_connector(kind, tokens, side))
        for kind in KINDS
        for tokens in (16, 4)
        for side in (256, 128)
    }

    def effects(scores: Scores) -> list[Effect]:
        def mean(*words: str) -> np.ndarray:
            return scores.mean(*(name for name in designs if all(word in name for word in words)))

        kinds = np.stack([mean(kind) for kind in KINDS])
        spread = kinds.max(0) - kinds.min(0)
        tokens, pixels = mean("16 tokens") - mean(" 4 tokens"), mean("256 px") - mean("128 px")
        return [
            Effect("16 tokens over 4, less the spread of kinds", tokens - spread),
            Effect("256 px over 128, less the spread of kinds", pixels - spread),
            Effect("16 tokens over 4", tokens, decides=False),
            Effect("256 px over 128", pixels, decides=False),
            Effect("spread of kinds (best less worst)", spread, decides=False),
        ]

    return Claim(
        letter="a", designs=_named(designs), effects=effects, samples=SAMPLES,
        says="The kind of connector matters less than the number of visual tokens and the resolution.",
        source="MM1, arXiv 2403.09611, section 3.2",
        protocol="Average pooling, resampler and Q-Former, each making 16 or 4 tokens of a picture of 256 or 128 px: "
        "twelve designs, compared by the means over what is crossed. The spread of kinds is the best kind less the "
        "worst, which chance alone makes greater than zero, so the test leans against the claim.",
    )  # fmt: skip


KINDS = ("pooling", "resampler", "Q-Former")


def _connector(kind: str, tokens: int, side: int) -> Connector.Config:
    cells, across = side // 32, round(tokens**0.5)
    if kind == "pooling":
        return AveragePool.Config(factor=cells // across)
    if kind == "resampler":
        return Resampler.Config(latents=tokens, width=192, depth=2, heads=6, head_width=32)
    return QFormer.Config(queries=tokens, norm=True, vocab=0, text_ffn=False, width=192, depth=2, heads=6, hidden=768)


def fusion() -> Claim:
    """b: features become tokens, or enter inside the language model."""
    plain = language()
    designs = {
        "tokens: MLP": small_llava("llava"),
        "tokens: Q-Former": small_llava("blip-2", connector=_connector("Q-Former", 16, 128)),
        "features: cross-attention": small_llava(
            "flamingo", connector=_connector("resampler", 16, 128), memory=("image",),
            backbone=with_reading(plain, every=1, heads=3, head_width=32),
        ),
        "features: visual expert": small_llava(
            "cogvlm", routes={"image": 1}, together=("image",),
            backbone=plain.replace(block=plain.block.replace(routes=2)),
        ),
    }  # fmt: skip

    def effects(scores: Scores) -> list[Effect]:
        tokens, features = (
            scores.mean(*(name for name in designs if name.startswith(kind))) for kind in ("tokens", "features")
        )
        best = [np.max([scores[n] for n in designs if n.startswith(kind)], axis=0) for kind in ("tokens", "features")]
        return [
            Effect("token-level over feature-level", tokens - features),
            Effect("the best of each", best[0] - best[1], decides=False),
        ]

    return Claim(
        letter="b", designs=_named(designs), effects=effects, samples=SAMPLES,
        says="Token-level fusion is better than feature-level fusion on visual questions.",
        source="Zeng et al., What Matters in Training a GPT4-Style Language Model, arXiv 2307.02469; survey 2306.13549",
        protocol="Token-level: an MLP (LLaVA), a Q-Former (BLIP-2). Feature-level: gated cross-attention in every "
        "block behind a resampler (Flamingo), a visual expert in every block (CogVLM). 16 features or tokens each, the "
        "same language model, everything but the encoder trained, the same samples and learning rate. (Measured once "
        "before the rule that a design must have learned something: it then counted as reproduced.)",
    )  # fmt: skip


def mixtures() -> Claim:
    """c: a language model that can write, then tuned on pictures with different words around them."""
    pairs, pictured, text = Captions(), PicturedGlosses(), Glosses()
    tuned: dict[str, SourceConfig] = {
        "before tuning": pairs, "pairs": pairs, "interleaved": pictured, "pairs and text": _half(pairs, text),
    }  # fmt: skip
    designs = {name: _tuned({"*": 0.0} if name == "before tuning" else RATES) for name in tuned}
    own = {name: Data(text, source, name) for name, source in tuned.items()}

    def effects(scores: Scores) -> list[Effect]:
        pairs, before = scores["pairs"], scores["before tuning"]
        return [
            Effect("lost with pairs, not with interleaved documents", pairs - scores["interleaved"]),
            Effect("lost with pairs, not with text beside", pairs - scores["pairs and text"]),
            Effect("lost with pairs", pairs - before, decides=False),
            Effect("lost with interleaved documents", scores["interleaved"] - before, decides=False),
            Effect("lost with text beside", scores["pairs and text"] - before, decides=False),
        ]

    return Claim(
        letter="c", designs=_named(designs), effects=effects, samples=240 * BATCH, own=own, points=False,
        needs=partial(install, fetch_package),
        tasks=(TextSkill(name="definitions", split="val", n=480), TextSkill(name="plain English", split="all", n=0)),
        says="Interleaved documents, and text alone in tuning, protect the language model's own skill.",
        source="VILA, arXiv 2312.07533, sections 3.2 and 3.3",
        protocol="A language model learns to write from definitions of words (the same for all, to the last bit), then "
        "connector and language model are tuned on pictures with names, on documents of two pictures each behind the "
        "definition of what it shows, or on pairs and definitions half and half; 120 steps of 16 pictures each, and "
        "text comes in addition. Before tuning: the same with a learning rate of zero. Its skill is its loss, nats per "
        "byte, on definitions it never saw and on sentences of another kind.",
    )  # fmt: skip


def _tuned(rates: dict[str, float]) -> Recipe:
    recipe = small_llava("vila", backbone=language(192, 4))  # one that can hold some English
    stage = recipe.stages[0].replace(start=None)
    return recipe.replace(
        stages=(stage.replace(name="language", train=("backbone.*",)), stage.replace(name="tune", lr=rates))
    )


def _half(one: SourceConfig, other: SourceConfig) -> Mixture:
    return Mixture(parts=(Part(name="one", source=one), Part(name="other", source=other)))


def unfreezing() -> Claim:
    """d: captions that say everything or one thing, read with an encoder that learns or does not."""
    brief = SceneQuestions(count=1500, families=("what",), questions_per_picture=1)
    fine = SceneQuestions(count=1500, families=("describe",), questions_per_picture=1)
    sources = {"brief": brief, "fine": fine}
    designs = {f"{words}, {state}": _aligned(state) for words in sources for state in ("frozen", "unfrozen")}
    own = {name: Data(sources[name.partition(",")[0]], QUESTIONS, name) for name in designs}

    def effects(scores: Scores) -> list[Effect]:
        gain = {words: scores[f"{words}, unfrozen"] - scores[f"{words}, frozen"] for words in sources}
        return [
            Effect("unfrozen over frozen, fine captions", gain["fine"]),
            Effect("unfrozen over frozen, brief captions", gain["brief"], decides=False),
            Effect("more with fine captions than with brief ones", gain["fine"] - gain["brief"], decides=False),
        ]

    return Claim(
        letter="d", designs=_named(designs), effects=effects, samples=1200 * BATCH, own=own,
        says="Unfreezing the encoder helps with fine captions.",
        source="ShareGPT4V, arXiv 2311.12793, section 5.3",
        protocol="Scenes with captions, brief (one thing) or fine (everything and where it is): stage 1 trains all but "
        "the encoder on them, stage 2 goes on so, or trains the encoder too; stage 3 is the questions, with the "
        "encoder as it then is, frozen. A third of the samples each.",
    )  # fmt: skip


def _aligned(state: str) -> Recipe:
    recipe = small_llava("sharegpt4v")
    [stage] = recipe.stages
    encoder = ("encoders.*",) if state == "unfrozen" else ()
    going = stage.replace(start=None)
    return recipe.replace(
        stages=(stage.replace(name="connect"), going.replace(name="align", train=(*encoder, *stage.train)), going)
    )


def sizes() -> Claim:
    """e: one picture path, three language models."""
    shapes = {"0.3 M": (96, 2), "1.8 M": (192, 4), "7.4 M": (320, 6)}
    designs = {
        f"language model of {name}": _as_large(width, depth, shapes["0.3 M"][0])
        for name, (width, depth) in shapes.items()
    }
    small, middle, large = designs

    def effects(scores: Scores) -> list[Effect]:
        return [
            Effect("the largest over the smallest", scores[large] - scores[small]),
            Effect("the middle one over the smallest", scores[middle] - scores[small], decides=False),
            Effect("the largest over the middle one", scores[large] - scores[middle], decides=False),
        ]

    return Claim(
        letter="e", designs=_named(designs), effects=effects, samples=SAMPLES,
        says="A larger language model helps.", source="LLaVA-1.5, arXiv 2310.03744, section 4; MM1, section 5",
        protocol="Three Llamas, of 96 x 2, 192 x 4 and 320 x 6 (width x blocks), everything else the same. The source "
        "compares pretrained language models, which differ in what they know as well; these all start random. The "
        "learning rate of the language model was chosen for the smallest and falls with the width, as Tensor Programs "
        "V (arXiv 2203.03466) has it for Adam.",
    )  # fmt: skip


def _as_large(width: int, depth: int, base: int) -> Recipe:
    recipe = small_llava("sizes", backbone=language(width, depth))
    [stage] = recipe.stages
    rates = {"*gate": RATES["*gate"], "backbone.*": RATES["*"] * base / width, **RATES}
    return recipe.replace(stages=(stage.replace(lr=rates),))


def _named(designs: dict[str, Recipe]) -> list[tuple[str, Recipe]]:
    return list(designs.items())


CLAIMS = {"a": connector, "b": fusion, "c": mixtures, "d": unfreezing, "e": sizes}
