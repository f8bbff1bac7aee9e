"""DiT: a Transformer denoises patches of latents, under a condition that modulates its norms."""

from __future__ import annotations

from typing import Any

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.pixels import Pixels
from sensorium.codecs.vae import VAE
from sensorium.data.mixture import Mixture, Part
from sensorium.data.moving import MovingCaptions
from sensorium.data.questions import Captions
from sensorium.diffusion.guider import Guider
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import Euler
from sensorium.diffusion.schedule import Diffusion, Flow
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import stack
from sensorium.evaluate.painting import Gallery, Painted
from sensorium.evaluate.task import EvaluationTask
from sensorium.hub.catalog import SMOLLM2_135M_INSTRUCT
from sensorium.infer.painting import Painting
from sensorium.mask import AttentionRule
from sensorium.models.denoiser import Denoiser
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.backbone import dit as blocks
from sensorium.nn.cross import Cross
from sensorium.nn.norm import Norm
from sensorium.objectives.diffusion import Denoising
from sensorium.recipes.common import BUILT_IN, language_for
from sensorium.recipes.unified import judge
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size, Stage

FAMILY = "diffusion"
SMALLER = (
    "tiny, small: captions in place of labels, read by a text stack (tiny: from scratch, over bytes; small: the first "
    "six blocks of SmolLM2 and its last norm, frozen); their mean modulates the norms, and every second block reads "
    "their states by cross-attention",
    "tiny, small: patches of 4 x 4 pixels, no autoencoder; rectified flow in place of DDPM; clips of 8 frames among "
    "the pictures, as patches in time and space (Sora)",
    BUILT_IN,
)
SIDE = 32
"""Height and width of the pictures in pixels."""
CLIP = (8, 24, 24)
"""Frames, height and width of the clips among the pictures."""


def stable_vae() -> VAE.Config:
    """Stable Diffusion's autoencoder: 8 x 8 pixels become one latent of 4 numbers (arXiv 2112.10752; 83.7 M)."""
    conv = Convolutions(channels=128, multipliers=(1, 2, 4, 4), halving="end")
    return VAE.Config(transform=ImageTransform(size=256), conv=conv, scale=0.18215)


def dit_xl_2() -> Denoiser.Config:
    """DiT-XL/2 for 256 x 256 pixels (arXiv 2212.09748, table 1): 28 blocks of 1152, 16 heads, patches of 2 x 2."""
    backbone = blocks(width=1152, depth=28, heads=16)
    labels = Backbone.Config(
        vocab=1000, width=1152, depth=0, block=backbone.block.replace(modulation=None), final_norm=False
    )
    return Denoiser.Config(
        codecs={"image": stable_vae()}, backbone=backbone, text=labels, schedule=Diffusion(), patch=(1, 2, 2),
        sections=(0, 576, 576), project=False,
    )  # fmt: skip


def model_for(size: Size) -> Denoiser.Config:
    """The denoiser at a size."""
    if size == "paper":
        return dit_xl_2()
    if size == "tiny":
        width, depth, heads, text = 192, 6, 6, stack(128, 2, 4).replace(vocab=259, positions=128)
    else:
        smollm = language_for("small", blocks(width=8, depth=1, heads=1))
        width, depth, heads, text = 256, 6, 8, smollm.replace(depth=6)
    cross = Cross.Config(
        attention=Attention.Config(heads=heads), memory=text.width, norm=Norm.Config(kind="layer"), gated=True
    )
    transform = ImageTransform(size=SIDE, resize="keep", multiple=4)
    return Denoiser.Config(
        codecs={"image": Pixels.Config(transform=transform)}, share={"video": "image"},
        backbone=blocks(width=width, depth=depth, heads=heads, cross=cross, cross_every=2),
        text=text, rule=AttentionRule("full" if size == "tiny" else "causal"), schedule=Flow(density="logistic"),
        predictor=Predictor(kind="flow"), patch=(1, 4, 4), sections=(width // 4, 3 * width // 8, 3 * width // 8),
    )  # fmt: skip


def evaluations_for(size: Size) -> tuple[EvaluationTask, ...]:
    """Pictures from names, judged; and what guidance, SDEdit, inpainting and clips look like."""
    painting = Painting(sampler=Euler(steps=30), guider=Guider(scale=3.0))
    splits = ("val_artist", "val_concept")
    return (
        *(Painted(split=one, n=100, painting=painting, size=(SIDE, SIDE)) for one in splits),
        *(Gallery(split=one, n=8, painting=painting, size=(SIDE, SIDE), clip=CLIP) for one in splits),
    )


def dit(size: Size = "tiny") -> Recipe:
    """DiT: Scalable Diffusion Models with Transformers (Peebles and Xie 2022, arXiv 2212.09748).

    New in it: no U-Net. Patches of a picture's latent are tokens of a plain Transformer; the time and the class scale
    and shift what its norms give and gate what its sublayers add, all starting at zero, so that every block starts as
    the identity (adaLN-zero). Quality follows compute: more blocks, more width, smaller patches.
    """
    model = model_for(size)
    published = "ImageNet at 256 px, 7 M steps of 256, AdamW lr 1e-4 constant, EMA 0.9999, labels dropped 10 %"
    common: dict[str, Any] = {"name": "denoise", "objectives": (Denoising(),), "published": published}
    if size == "paper":
        stage = Stage(
            **common, train=("text.*", "enter.*", "time.*", "prompt.*", "backbone.*", "leave.*"), lr=1e-4, epochs=1400,
            tokens=8192, accumulate=8, schedule="constant", warmup=0.0, betas=(0.9, 0.999), clip=None, ema=0.9999,
        )  # fmt: skip
    else:
        parts = ("enter.*", "time.*", "prompt.*", "backbone.*", "leave.*")
        clips = MovingCaptions(frames=CLIP[0], side=CLIP[1], rounds=4)
        data = Mixture(parts=(Part(name="pictures", source=Captions(), weight=9), Part(name="clips", source=clips)))
        stage = Stage(
            **common, train=("text.*", *parts) if size == "tiny" else parts, lr=1e-3, data=data, items=64,
            tokens=8192, steps=2500 if size == "tiny" else 2000, warmup=0.05,
            betas=(0.9, 0.99), ema=0.998,
        )  # fmt: skip
    figures = (
        Figure(name="parameters.without_codecs", published=675e6, source="arXiv 2212.09748, table 4: DiT-XL/2"),
        Figure(name="denoiser.depth", published=28, tolerance=0.0, source="arXiv 2212.09748, table 1"),
        Figure(name="denoiser.width", published=1152, tolerance=0.0, source="arXiv 2212.09748, table 1"),
        Figure(name="denoiser.heads", published=16, tolerance=0.0, source="arXiv 2212.09748, table 1"),
        Figure(name="denoiser.patch", published=2, tolerance=0.0, source="arXiv 2212.09748, table 1"),
        Figure(name="tokens.image", published=256, tolerance=0.0, source="derived: (32 / 2)^2"),
        Figure(name="features.image", published=1024, tolerance=0.0, source="arXiv 2212.09748, section 4: 32 x 32 x 4"),
        Figure(name="cell.image", published=8, tolerance=0.0, source="arXiv 2212.09748, section 4"),
        Figure(name="parameters.codecs.image", published=83_653_863, tolerance=0.001, source="released sd-vae-ft"),
        Figure(name="schedule.steps", published=1000, tolerance=0.0, source="arXiv 2212.09748, section 4"),
        Figure(name="vocab", published=1000, tolerance=0.0, source="ImageNet's classes"),
        Figure(name="lr.denoise", published=1e-4, tolerance=0.0, source="arXiv 2212.09748, section 4"),
    )
    fields: dict[str, Any] = {} if size == "paper" else {"evaluations": evaluations_for(size), "judge": judge()}
    if size == "small":
        fields |= {"tokenizer": SMOLLM2_135M_INSTRUCT, "init": {"text": SMOLLM2_135M_INSTRUCT}}
    return Recipe(
        name="dit", title="DiT-XL/2", paper="arXiv 2212.09748", family=FAMILY, size=size, model=model, stages=(stage,),
        template=Template(begin="", plain="") if size == "paper" else Template(),
        figures=figures if size == "paper" else (),
        deviations=(
            *SMALLER,
            "the variance is that of the posterior and not learned (published: learned, with its own term of the loss)",
            "a time is embedded without rounding; labels of a batch are dropped by document",
            "weights are the moving average's when a stage ends",
        ),
        **fields,
    )  # fmt: skip
