"""Pictures of other aspect ratios: what a source yields, each picture on a wider or a taller canvas."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from PIL import Image, ImageColor
from pydantic import Field

from sensorium.data.builtin_names import draw
from sensorium.data.source import Source, SourceConfig
from sensorium.sequence import Media, Sample

Aspect = tuple[int, int]
"""height : width"""


@dataclass(frozen=True, slots=True)
class Framed:
    """A picture on a plain canvas of another aspect ratio (Media).

    aspect  height : width of the canvas, which is as small as the picture allows
    place   0 to 1: where on the canvas, from its upper left end to its lower right one
    """

    media: Media
    aspect: Aspect
    place: float
    background: str = "white"

    def key(self) -> str:
        """sha256 of the picture's key and how it is framed."""
        framed = f"{self.media.key()} {self.shape()} {self.place} {ImageColor.getrgb(self.background)}"
        return hashlib.sha256(framed.encode()).hexdigest()

    def shape(self) -> tuple[int, ...]:
        height, width = self.media.shape()
        down, across = self.aspect
        if height * across >= width * down:
            return height, -(-height * across // down)
        return -(-width * down // across), width

    def load(self) -> Image.Image:
        picture = self.media.load()
        height, width = self.shape()
        canvas = Image.new("RGB", (width, height), self.background)
        left, top = round((width - picture.width) * self.place), round((height - picture.height) * self.place)
        canvas.paste(picture, (left, top))
        return canvas


def framed(sample: Sample, aspects: tuple[Aspect, ...], seed: int = 0) -> Sample:
    """The sample with each of its pictures in one of the aspect ratios, as its id and the seed decide."""
    rng = draw("framed", sample.id, seed)
    segments = tuple(
        replace(part, data=Framed(part.data, rng.choice(aspects), rng.random())) if part.kind == "image" else part
        for part in sample.segments
    )
    return replace(sample, segments=segments)


class Reframed(SourceConfig):
    """Another source, its pictures in these aspect ratios (height : width)."""

    source: SourceConfig
    aspects: tuple[Aspect, ...] = Field(min_length=1)
    seed: int = 0

    def build(self) -> _Reframed:
        return _Reframed(self)


class _Reframed:
    def __init__(self, config: Reframed) -> None:
        self.config = config
        self.inner: Source = config.source.build()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        return framed(self.inner[index], self.config.aspects, self.config.seed)
