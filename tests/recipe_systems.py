"""Every recipe that generates as a tiny system with strong random weights; and its answers without a cache."""

import hashlib
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import nn

from sensorium.infer.drawing import Drawing
from sensorium.infer.engine import Engine
from sensorium.models.wiring import Wiring
from sensorium.recipes.catalog import find, names
from sensorium.render import Renderer
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.train.build import build_model, item_loader, tokenizer_of

SPEAKING = tuple(name for name in names() if find(name, "tiny").model.speaks)


class Noise:
    """A picture of 64 x 64 pixels of noise that depend on the seed."""

    def __init__(self, seed: int) -> None:
        pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        self.image = Image.fromarray(pixels.numpy())

    def key(self) -> str:
        return hashlib.sha256(self.image.tobytes()).hexdigest()

    def shape(self) -> tuple[int, int]:
        return (64, 64)

    def load(self) -> Image.Image:
        return self.image


@dataclass(frozen=True)
class System:
    model: Wiring
    renderer: Renderer

    def engine(self, **options) -> Engine:
        return Engine(self.model, self.renderer, **options)


def system_of(name: str) -> System:
    """Recipes that are one model at this size share it."""
    recipe = find(name, "tiny")
    key = recipe.model.to_json() + recipe.template.to_json()
    if key not in _made:
        model = build_model(recipe)
        torch.manual_seed(1)
        for part, parameter in model.named_parameters():
            # a gate that begins shut is opened: what stands behind it must be told apart
            if not part.startswith(("codecs.", "generators.")) and (parameter.dim() > 1 or not parameter.any()):
                nn.init.normal_(parameter, std=0.15)
        renderer = Renderer(tokenizer_of(recipe), recipe.template, model.config.plan, item_loader(model))
        _made[key] = System(model.eval(), renderer)
    return _made[key]


_made: dict[str, System] = {}


def ask(text: str, *pictures: int, role: str = "user") -> tuple[Segment, ...]:
    return (*(Segment("image", Noise(seed), role=role) for seed in pictures), Segment("text", text, role=role))


@cache
def expected(system: System, segments: tuple[Segment, ...], count: int) -> list[int]:
    """The greedy answer, one full forward pass for every token."""
    return plain_ids(system, Sample(segments), count)


@torch.no_grad()
def plain_ids(system: System, sample: Sample, count: int) -> list[int]:
    model, renderer = system.model, system.renderer
    sequence = renderer.render(sample, generate=True)
    words = Drawing({kind: (one, model.config.said(kind)) for kind, one in model.config.formats.items()})
    if model.config.formats:  # codes of pictures are ids of the prompt
        [sequence] = system.engine().prepare([sequence])
    stops, chosen = system.engine().stops, []
    while len(chosen) < count:
        logits = words.allow(model(sequence).logits(torch.tensor([len(sequence) - 1]))[0])
        best = int(logits.argmax())
        if best in stops:
            break
        chosen.append(best)
        sequence = longer(sequence, best)
    return chosen


def longer(sequence: Sequence, id: int) -> Sequence:
    """One document with a word more."""
    for name, value in (("ids", id), ("modality", 0), ("doc", 0), ("branch", 0), ("weight", 0)):
        old = getattr(sequence, name)
        setattr(sequence, name, torch.cat((old, torch.tensor([value], dtype=old.dtype))))
    sequence.position = torch.cat((sequence.position, sequence.position[-1:] + 1))
    return sequence
