"""A recipe that trains in milliseconds: 4-feature pictures, a 16-wide language model, and data with bad rows.

Also a program: `python tiny_training.py RUN` trains `two_stages()` into RUN, the process that the kill test kills.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sensorium.connectors.mlp import MLP
from sensorium.data.source import RowError, SourceConfig
from sensorium.encoders.vit import vit
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.nn.lora import LoRA
from sensorium.sequence import MediaError, Sample, Segment
from sensorium.train.recipe import Recipe, Stage

WORDS = ("red", "a green one", "blue", "dark and round", "no", "seven small stars")


@dataclass(frozen=True, slots=True)
class Noise:
    """16 x 16 pixels that depend on the seed; a broken one raises when it is decoded."""

    seed: int
    broken: bool = False

    def key(self) -> str:
        return hashlib.sha256(f"noise {self.seed} {self.broken}".encode()).hexdigest()

    def shape(self) -> tuple[int, int]:
        return 16, 16

    def load(self) -> Image.Image:
        if self.broken:
            raise MediaError(f"noise-{self.seed}.png is damaged")
        pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(self.seed))
        return Image.fromarray(pixels.to(torch.uint8).numpy())


class Pictures(SourceConfig):
    """Pictures with words. Rows in `unreadable` raise RowError, in `broken` MediaError, in `endless` are too long."""

    count: int = 24
    unreadable: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    endless: tuple[int, ...] = ()

    def build(self) -> Any:
        return PictureRows(self)


class PictureRows:
    def __init__(self, config: Pictures) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.config.unreadable:
            raise RowError(f"rows.jsonl, line {index + 1} is not JSON")
        words = "far too long " * 200 if index in self.config.endless else WORDS[index % len(WORDS)]
        segments = (
            Segment("image", Noise(index, index in self.config.broken), "user"),
            Segment("text", "What is it?", "user"),
            Segment("text", words, "assistant"),
        )
        return Sample(segments, id=str(index))


def tiny_model(**changes: Any) -> Fused.Config:
    backbone = llama(vocab=259, width=16, depth=2, heads=2, hidden=32, tied=True)
    eye = vit(width=16, depth=1, heads=2, patch=8, size=16)
    parts = {"encoders": {"image": eye}, "connectors": {"image": MLP.Config(depth=1)}, "backbone": backbone}
    return Fused.Config(**{**parts, **changes})


def tiny_stage(name: str = "one", **changes: Any) -> Stage:
    fields = {"train": ("connectors.*",), "lr": 1e-2, "data": Pictures(), "steps": 4, "tokens": 256, "items": 3}
    return Stage(**{"name": name, "precision": "fp32", **fields, **changes})


def tiny_recipe(*stages: Stage, **changes: Any) -> Recipe:
    fields = {"name": "tiny", "title": "Tiny", "paper": "none", "family": "test", "size": "tiny", "model": tiny_model()}
    return Recipe(**{**fields, "stages": stages or (tiny_stage(),), **changes})


def two_stages(steps: int = 8, precision: str = "fp32") -> Recipe:
    """Connector, then connector and adapters with dropout, two micro-batches a step, some rows bad."""
    data = Pictures(count=30, unreadable=(3,), broken=(7, 8), endless=(11,))
    common = {"data": data, "steps": steps, "accumulate": 2, "precision": precision}
    second = {
        "train": ("connectors.*", "*.lora_*"),
        "adapters": {"backbone.blocks.*.attention.q": LoRA(rank=2, dropout=0.1)},
    }
    return tiny_recipe(tiny_stage("align", **common), tiny_stage("instruct", **common, **second))


def main(folder: str) -> None:
    from sensorium.train.trainer import open_run, train

    torch.set_num_threads(1)
    train(open_run(two_stages(steps=60), Path(folder)), quiet=True, save_steps=3)


if __name__ == "__main__":
    main(sys.argv[1])
