"""NExT-GPT: a language model in the middle, which says by signal tokens what a frozen denoiser is to make."""

from __future__ import annotations

from typing import Any

from sensorium.codecs.pixels import Pixels
from sensorium.codecs.tokens import Signals
from sensorium.connectors.mlp import MLP
from sensorium.connectors.resampler import Resampler
from sensorium.data.interleaved import Interleaved
from sensorium.data.mixture import Mixture, Part
from sensorium.data.questions import Captions, EmojiQuestions
from sensorium.diffusion.guider import Guider
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import Euler
from sensorium.diffusion.schedule import Diffusion, Flow
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import clip_vit_h14, stack, vit
from sensorium.evaluate.answering import Answering, Replied
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.task import EvaluationTask
from sensorium.hub.catalog import EFFICIENTNET_LITE0, SMOLLM2_135M_INSTRUCT
from sensorium.infer.painting import Painting
from sensorium.mask import AttentionRule
from sensorium.models.denoiser import Denoiser
from sensorium.models.fused import Fused
from sensorium.models.generator import Generator
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import dit, llama
from sensorium.nn.cross import Cross
from sensorium.nn.lora import LoRA
from sensorium.nn.norm import Norm
from sensorium.objectives.diffusion import Denoising
from sensorium.objectives.generation import ConditionDistance, GeneratedDenoising
from sensorium.objectives.language import NextToken
from sensorium.recipes.common import BUILT_IN, FEW, NAMED, TOKENIZER, VICUNA, language_for, llama_7b, vision_for
from sensorium.recipes.dit import stable_vae
from sensorium.recipes.unified import judge
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size, Stage

FAMILY = "any to any"
TEMPLATE = VICUNA.replace(media={"image": ("<Img>", "</Img>")})
WORDS = 259
"""Ids of the byte tokenizer."""
LORA = {f"backbone.blocks.*.attention.{name}": LoRA(rank=32, alpha=32.0, dropout=0.1) for name in ("q", "k", "v", "o")}
LORA_SMALL = {name: LoRA(rank=16, alpha=32.0) for name in LORA}
DENOISER = ("enter.*", "time.*", "prompt.*", "backbone.*", "leave.*")
OUTPUT = "generators.image.connector.*"
PAINTING = Painting(sampler=Euler(steps=20), guider=Guider(scale=3.0))


def denoiser_for(size: Size) -> Denoiser.Config:
    """What makes the pictures: about Stable Diffusion 1.5, or a small one that the mean of a text modulates."""
    if size != "paper":
        width, text = (192, stack(128, 2, 4).replace(vocab=WORDS, positions=128))
        if size == "small":
            width, text = 256, language_for(size, llama_7b()).replace(depth=6)
        return Denoiser.Config(
            codecs={"image": Pixels.Config(transform=ImageTransform(size=32))},
            backbone=dit(width=width, depth=6, heads=width // 32), text=text,
            rule=AttentionRule("full" if size == "tiny" else "causal"), schedule=Flow(density="logistic"),
            predictor=Predictor(kind="flow"), patch=(1, 4, 4), sections=(0, width // 2, width // 2),
        )  # fmt: skip
    text = stack(768, 12, 12, activation="quick_gelu").replace(vocab=49_408, positions=77)
    cross = Cross.Config(attention=Attention.Config(heads=16), memory=768, norm=Norm.Config(kind="layer"))
    codec = stable_vae()
    return Denoiser.Config(
        codecs={"image": codec.replace(transform=codec.transform.replace(size=512))},
        backbone=dit(width=1152, depth=30, heads=16, cross=cross), text=text, rule=AttentionRule("causal"),
        schedule=Diffusion(), patch=(1, 2, 2), sections=(0, 576, 576), pool="last", length=77,
    )  # fmt: skip


def model_for(size: Size) -> Fused.Config:
    """Encoder, input projection, language model; output connector and denoiser."""
    layers: tuple[int, ...] = ()
    connector, side = MLP.Config(depth=1), 32
    if size == "paper":
        vision, language, side = clip_vit_h14(224, drop_last=0), llama_7b(32_004), 512
        output = Resampler.Config(latents=77, width=512, depth=9, heads=8, head_width=64)
    elif size == "small":  # states of the middle say more of a name than the last
        vision = vision_for(size, clip_vit_h14(224)).replace(positions="none")
        connector = FEW
        language = language_for(size, llama_7b())
        language, layers = language.replace(vocab=language.vocab + 4), (10, 20)
        output = Resampler.Config(latents=4, width=256, depth=2, heads=8, head_width=32)
    else:
        vision = vit(width=128, depth=4, heads=4, patch=8, size=32)
        language = llama(vocab=WORDS + 4, width=192, depth=4, heads=6, hidden=512, tied=True)
        output = Resampler.Config(latents=4, width=128, depth=2, heads=4, head_width=32)
    generator = Generator.Config(
        connector=output, denoiser=denoiser_for(size), signals=Signals(first=language.vocab - 4), layers=layers,
        size=(side, side),
    )  # fmt: skip
    return Fused.Config(
        encoders={"image": vision}, connectors={"image": connector}, backbone=language, generators={"image": generator}
    )


def stages_for(size: Size, model: Fused.Config) -> tuple[Stage, ...]:
    """The denoiser by itself; then the published three."""
    told = (NextToken(), ConditionDistance(), GeneratedDenoising())
    every: tuple[dict[str, Any], ...] = (
        {"name": "denoise", "wiring": model.generators["image"].denoiser, "objectives": (Denoising(),),
         "train": DENOISER, "published": "Stable Diffusion 1.5, taken ready-made: LAION, 595K steps at 512 px"},
        {"name": "encode", "train": ("connectors.*",), "objectives": (NextToken(),),
         "published": "encoding-side alignment: captions of CC3M (and of clips and sounds); input projection alone"},
        {"name": "decode", "train": (OUTPUT,), "objectives": told,
         "published": "decoding-side alignment: captions of CC3M; output projection alone, signals after the caption"},
        {"name": "instruct", "train": ("connectors.*", OUTPUT, "backbone.*"), "objectives": told,
         "published": "instructions with any modality on either side (MosIT 5K and others); LoRA and both projections"},
    )  # fmt: skip
    if size == "tiny":
        return tuple(
            Stage(**{**one, **TINY[one["name"]], "train": (*one["train"], *ALSO[one["name"]])}) for one in every
        )
    adapters = LORA if size == "paper" else LORA_SMALL
    more: dict[str, dict[str, Any]] = {name: {"adapters": adapters} for name in ("encode", "decode", "instruct")}
    more["instruct"]["train"] = ("connectors.*", OUTPUT, "backbone.*.lora_*")
    if size == "small":
        return tuple(Stage(**{**one, **more.get(one["name"], {}), **SMALL[one["name"]]}) for one in every)
    rates, common = {"denoise": 1e-4, "instruct": 5e-4}, {"epochs": 1, "tokens": 2048, "checkpointing": True}
    return tuple(
        Stage(**{**common, "lr": rates.get(one["name"], 4e-4), **one, **more.get(one["name"], {})}) for one in every
    )


REQUESTS = Interleaved(orders=("draw",), plain=False, without=0.0, said="{name}", rounds=2)
QUESTIONS = EmojiQuestions(families=("caption", "choice_name"), questions_per_picture=2)
NAMES = EmojiQuestions(families=("caption",), questions_per_picture=1, rounds=2)
DRAWN = Interleaved(orders=("draw",), without=0.0)
MIXED = Mixture(parts=(Part(name="requests", source=REQUESTS), Part(name="questions", source=QUESTIONS)))
DENOISE = {"data": Captions(), "lr": 1e-3, "steps": 2000, "tokens": 8192, "items": 64, "betas": (0.9, 0.99),
           "warmup": 0.05, "ema": 0.998}  # fmt: skip
COMMON = {"tokens": 4096, "weight_decay": 0.05, "betas": (0.9, 0.98)}
TINY: dict[str, dict[str, Any]] = {
    "denoise": DENOISE,
    "encode": {"data": QUESTIONS.replace(rounds=2), "lr": 2e-3, "steps": 800, **COMMON},
    "decode": {"data": DRAWN, "lr": 1e-3, "steps": 500, **COMMON, "items": 64},
    "instruct": {"data": MIXED, "lr": 1e-3, "steps": 700, **COMMON, "items": 64},
}
ALSO = {
    "denoise": ("text.*",),
    "encode": ("encoders.*", "backbone.*"),
    "decode": ("backbone.*",),
    "instruct": ("encoders.*",),
}
"""What trains along at tiny size, where nothing is pretrained."""
SMALL: dict[str, dict[str, Any]] = {
    "denoise": {**DENOISE, "steps": 1500},
    "encode": {"data": NAMES, "lr": 5e-5, "steps": 40, "tokens": 1024, "start": NAMED},
    "decode": {"data": DRAWN, "lr": 1e-3, "steps": 250, "tokens": 512},
    "instruct": {"data": MIXED, "lr": {"connectors.*": 5e-5, "*": 5e-4}, "steps": 250, "tokens": 1024},
}


def evaluations_for(count: int) -> tuple[EvaluationTask, ...]:
    """Whether it answers in kind, what its pictures show, and what it sees in pictures."""
    splits = ("val_artist", "val_concept")
    return (
        *(Answering(split=one, n=count // 2, painting=PAINTING) for one in splits),
        *(Replied(split=one, n=count, painting=PAINTING) for one in splits),
        *(Choice(name="multiple_choice", family="emoji", split=one, n=2 * count) for one in splits),
    )


def next_gpt(size: Size = "tiny") -> Recipe:
    """NExT-GPT: Any-to-Any Multimodal LLM (Wu et al. 2023, arXiv 2309.05519).

    New in it: the language model decides which modality it answers in. After words that come with a picture it says
    signal tokens; an output projection makes of the states at them what the text encoder of a text-to-picture model
    would have made of the caption, and that model, frozen, makes the picture. About 1 % of all is trained: both
    projections, and LoRA. Losses: next token; distance to the denoiser's own condition; denoising.
    """
    model = model_for(size)
    figures = (
        Figure(name="signals.image", published=4, tolerance=0.0, source="arXiv 2309.05519, section 5.2"),
        Figure(name="condition.image", published=77, tolerance=0.0, source="Stable Diffusion 1.5: CLIP's 77 x 768"),
        Figure(name="parameters.generators.image.connector", published=31e6, tolerance=0.02, source="table 1"),
        Figure(name="parameters.backbone", published=6.74e9, source="Vicuna-7B, released checkpoint"),
        Figure(name="parameters.backbone.lora", published=33e6, tolerance=0.02, source="table 1: LoRA 33 M"),
        Figure(name="matching.generators.image.denoiser.codecs.*", published=83_653_863, tolerance=0.001,
               source="released autoencoder of Stable Diffusion"),
        Figure(name="matching.generators.image.denoiser.text.*", published=123.06e6, tolerance=0.01,
               source="CLIP ViT-L/14's text encoder"),
        Figure(name="matching.generators.image.denoiser.backbone.*", published=860e6, tolerance=0.02,
               source="Stable Diffusion 1.5: parameters of its U-Net, here of a Transformer"),
        Figure(name="parameters.encoders.image", published=632e6, source="ViT-H/14, ImageBind's eyes (2305.05665)"),
        Figure(name="lr.encode", published=4e-4, tolerance=0.0, source="released dsconfig/stage_1.json"),
        Figure(name="lr.instruct", published=5e-4, tolerance=0.0, source="released dsconfig/stage_3.json"),
    )  # fmt: skip
    fields: dict[str, Any] = {} if size == "paper" else {"evaluations": evaluations_for(100), "judge": judge()}
    if size == "small":
        text = dict.fromkeys(("backbone", "generators.image.denoiser.text"), SMOLLM2_135M_INSTRUCT)
        fields |= {"tokenizer": SMOLLM2_135M_INSTRUCT, "init": {**text, "encoders.image": EFFICIENTNET_LITE0}}
    return Recipe(
        name="next-gpt", title="NExT-GPT", paper="arXiv 2309.05519", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=stages_for(size, model),
        figures=figures if size == "paper" else (), deviations=DEVIATIONS, **fields,
    )  # fmt: skip


DEVIATIONS = (
    "pictures alone; sounds and clips would be further encoders and generators (8 and 24 signals)",
    "paper: ImageBind's ViT-H/14 gives its features, the published encoder one embedding of 1024 for each picture",
    "paper: a Transformer of the same number of parameters and the same condition stands for Stable Diffusion's U-Net",
    "paper: the output connector is a resampler of nine layers, the published one a Transformer of 4 + 4",
    "paper: captions come to the denoiser in the language model's ids; its own tokenizer comes with its weights",
    "tiny, small: the denoiser is trained in a first stage; its condition is the mean of what the connector makes, "
    "compared with the mean state of the caption",
    "tiny: all from scratch, so that the denoiser's text stack, the encoder and the language model train along",
    "small: EfficientNet-Lite0 and SmolLM2-135M, whose first six blocks also are the denoiser's text stack; the input "
    "projection starts from a closed-form fit to word embeddings (train/warm.py); signals have rows of the vocabulary "
    "that are drawn like the others and stay as they are; the output projection also reads states of the middle",
    BUILT_IN,
    TOKENIZER,
)
