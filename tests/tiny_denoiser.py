"""A denoiser of a few thousand parameters, and documents for it."""

import torch
from torch import nn

from sensorium.codecs.pixels import Pixels
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.schedule import Flow
from sensorium.encoders.transform import ImageTransform
from sensorium.mask import AttentionRule
from sensorium.models.denoiser import Denoiser
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import bert, dit
from sensorium.nn.cross import Cross
from sensorium.nn.norm import Norm
from sensorium.sequence import KINDS, Item, Sequence, Span

WIDTH, TEXT = 32, 16


def config(**changes):
    text = bert(vocab=40, width=TEXT, depth=1, heads=2, hidden=32, positions=32)
    cross = Cross.Config(attention=Attention.Config(heads=2), memory=TEXT, norm=Norm.Config(kind="layer"))
    parts = {
        "codecs": {"image": Pixels.Config(transform=ImageTransform(size=16, resize="keep", multiple=4))},
        "share": {"video": "image"},
        "backbone": dit(width=WIDTH, depth=2, heads=2, cross=cross),
        "text": text, "rule": AttentionRule("full"),
        "schedule": Flow(), "predictor": Predictor(kind="flow"), "patch": (1, 4, 4), "sections": (8, 12, 12),
    }  # fmt: skip
    return Denoiser.Config(**{**parts, **changes})


def awake(model, seed=0):
    """Random weights everywhere: zero layers would hide what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def document(shape, words, seed=0, model=None):
    """A picture (height, width) or clip (frames, height, width), and so many words."""
    model = model or config()
    kind = "image" if len(shape) == 2 else "video"
    draws = torch.Generator().manual_seed(seed)
    frames = 1 if kind == "image" else shape[0]
    data = torch.randn(frames, 3, *shape[-2:], generator=draws)
    tokens = model.plan(kind, shape).tokens
    length = 1 + tokens + words
    modality = torch.zeros(length, dtype=torch.uint8)
    modality[1 : 1 + tokens] = KINDS.index(kind)
    return Sequence(
        ids=torch.randint(0, 40, (length,), generator=draws), modality=modality,
        position=torch.arange(length)[:, None].expand(-1, 3).contiguous(),
        doc=torch.zeros(length, dtype=torch.long), branch=torch.zeros(length, dtype=torch.long),
        weight=torch.zeros(length), spans=[Span(kind, 1, tokens, 0, mode="latent")],
        items={kind: [Item(data, shape, f"{shape} {seed}")]},
    )  # fmt: skip
