"""A tiny model that says pictures: 8 x 8 pixels of noise as 2 x 2 codes among bytes, in milliseconds."""

from __future__ import annotations

import hashlib

import torch
from PIL import Image
from torch import nn

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.encoders.transform import ImageTransform
from sensorium.infer.engine import Engine
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader

CODES, WORDS = 16, 259


class Noise:
    """A picture of height x width noise that depends on the seed."""

    def __init__(self, seed: int, height: int = 8, width: int = 8) -> None:
        pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
        self.image = Image.fromarray(pixels.to(torch.uint8).numpy())

    def key(self) -> str:
        return hashlib.sha256(self.image.tobytes()).hexdigest()

    def shape(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def load(self) -> Image.Image:
        return self.image


def codec() -> VQ.Config:
    conv = Convolutions(channels=4, multipliers=(1, 2), blocks=1, groups=2, attention=False, patch=2)
    transform = ImageTransform(size=8, resize="keep", multiple=4)
    return VQ.Config(transform=transform, conv=conv, quantizer=Quantizer.Config(codes=CODES, width=4), wide=8)


def token_config(rows: bool = True, weight: float = 1.0) -> Fused.Config:
    backbone = llama(vocab=WORDS + CODES + 3, width=32, depth=2, heads=4, kv_heads=2, hidden=64)
    tokens = CodeTokens.after(WORDS, CODES, rows=rows, weight=weight)
    return Fused.Config(codecs={"image": codec()}, tokens={"image": tokens}, backbone=backbone)


def token_model(**changes) -> Fused:
    """With strong random weights, so that what a token sees changes what it says."""
    torch.manual_seed(0)
    model: Fused = token_config(**changes).build()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("codecs"):
            nn.init.normal_(parameter, std=0.25)
    return model.eval()


def renderer_of(model: Fused) -> Renderer:
    return Renderer(Tokenizer.bytes(), Template(), model.config.plan, item_loader(model))


def engine_of(model: Fused, **options) -> Engine:
    return Engine(model, renderer_of(model), **options)


def document(*parts, train=None) -> Sample:
    """Plain text (str) and pictures (Noise) in order."""
    return Sample(tuple(Segment("text" if isinstance(part, str) else "image", part, train=train) for part in parts))
