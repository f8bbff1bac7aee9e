"""A tiny fused model with strong random weights, pictures and a renderer; and decoding without a cache."""

import hashlib

import torch
from PIL import Image
from torch import nn

from sensorium.connectors.mlp import MLP
from sensorium.encoders.base import Encoder
from sensorium.encoders.transform import ImageTransform
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.render import Renderer, Template
from sensorium.sequence import Item, Segment
from sensorium.tokenizer import Tokenizer


class TinyEye(Encoder):
    """Four patches of an 8 x 8 view, each through one linear layer."""

    class Config(Encoder.Config):
        transform: ImageTransform = ImageTransform(size=8)

        @property
        def width(self) -> int:
            return 8

        @property
        def cells(self) -> tuple[int, int]:
            return (2, 2)

    def __init__(self, config) -> None:
        super().__init__(config)
        self.linear = nn.Linear(48, 8)

    def encode(self, views):
        patches = views.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.linear(patches)


class Picture:
    """8 x 8 pixels of noise that depend on the seed."""

    def __init__(self, seed: int) -> None:
        pixels = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        self.image = Image.fromarray(pixels.numpy())

    def key(self) -> str:
        return hashlib.sha256(self.image.tobytes()).hexdigest()

    def shape(self) -> tuple[int, int]:
        return (8, 8)

    def load(self) -> Image.Image:
        return self.image


def config(**changes):
    backbone = llama(vocab=259, width=32, depth=2, heads=4, kv_heads=2, hidden=64)
    eye = {"image": TinyEye.Config()}
    parts = {"encoders": eye, "connectors": {"image": MLP.Config(depth=1)}, "backbone": backbone}
    return Fused.Config(**{**parts, **changes})


def make(**changes):
    return strong(config(**changes))


def strong(config):
    """Weights large enough that nothing is nearly alike."""
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.25)
    return model.eval()


def renderer_of(model):
    def load(kind, media):
        return Item(model.encoders[kind].preprocess(media.load()), media.shape(), media.key())

    return Renderer(Tokenizer.bytes(), Template(), model.config.plan, load)


def ask(text, *pictures, role="user"):
    return (*(Segment("image", Picture(seed), role=role) for seed in pictures), Segment("text", text, role=role))


@torch.no_grad()
def plain_greedy(system, sample, count):
    """One full forward pass for every token."""
    sequence = system.renderer.render(sample, generate=True)
    chosen = []
    while len(chosen) < count:
        best = int(system.model(sequence).logits(torch.tensor([len(sequence) - 1])).argmax())
        if best in system.engine.stops:
            break
        chosen.append(best)
        for name, value in (("ids", best), ("modality", 0), ("doc", 0), ("branch", 0), ("weight", 0)):
            old = getattr(sequence, name)
            setattr(sequence, name, torch.cat((old, torch.tensor([value], dtype=old.dtype))))
        sequence.position = torch.cat((sequence.position, sequence.position[-1:] + 1))
    return system.renderer.tokenizer.decode(chosen)
