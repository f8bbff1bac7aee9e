"""DiT: a Transformer denoises patches of latents, under a condition that modulates its norms."""

from __future__ import annotations

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.pixels import Pixels
from sensorium.codecs.vae import VAE
from sensorium.data.questions import Captions
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.schedule import Flow
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import stack
from sensorium.mask import AttentionRule
from sensorium.models.denoiser import Denoiser
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import dit as blocks
from sensorium.nn.cross import Cross
from sensorium.nn.norm import Norm
from sensorium.objectives.diffusion import Denoising
from sensorium.train.recipe import Recipe, Size, Stage

FAMILY = "diffusion"


def stable_vae(size: int = 256) -> VAE.Config:
    """Stable Diffusion's autoencoder (Rombach et al. 2021, arXiv 2112.10752): 83.7 M parameters, 8 x 8 pixels become
    one latent of 4 channels."""
    return VAE.Config(
        transform=ImageTransform(size=size), conv=Convolutions(channels=128, multipliers=(1, 2, 4, 4)), scale=0.18215
    )


def dit(size: Size = "small") -> Recipe:
    """x"""
    text = stack(128, 2, 4).replace(vocab=259, positions=128)
    width, depth = 192, 6
    cross = Cross.Config(attention=Attention.Config(heads=4), memory=128, norm=Norm.Config(kind="layer"), gated=True)
    model = Denoiser.Config(
        codecs={"image": Pixels.Config(transform=ImageTransform(size=32, resize="keep", multiple=4))},
        share={"video": "image"},
        backbone=blocks(width=width, depth=depth, heads=6, cross=cross, cross_every=2),
        text=text,
        rule=AttentionRule("full"),
        schedule=Flow(),
        predictor=Predictor(kind="flow"),
        patch=(1, 4, 4),
        sections=(64, 64, 64),
        drop=0.1,
    )
    stage = Stage(
        name="denoise",
        train=("*",),
        lr=1e-3,
        data=Captions(),
        steps=600,
        tokens=6144,
        items=64,
        objectives=(Denoising(),),
        ema=0.995,
        weight_decay=0.0,
        betas=(0.9, 0.99),
        warmup=0.05,
        published="x",
    )
    return Recipe(name="dit", title="DiT", paper="", family=FAMILY, size=size, model=model, stages=(stage,))
