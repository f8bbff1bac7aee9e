"""Clips of the built-in emoji on the move, with captions that say what moves and where to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageColor
from pydantic import Field

from sensorium.data.builtin_names import draw, named_pictures
from sensorium.data.emoji import Split, concept, decode, picture_digest
from sensorium.data.source import SourceConfig
from sensorium.sequence import Sample, Segment

Direction = Literal["left", "right", "up", "down"]
STEPS: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, slots=True)
class MovingPicture:
    """A drawing that crosses a square in equal steps, from one side to the other (Media).

    side   pixels on a side of a frame; share: how much of it the drawing takes
    """

    concept: str
    artist: str
    direction: Direction
    frames: int = 8
    side: int = 64
    share: float = 0.5
    background: str = "white"

    def key(self) -> str:
        """sha256 of the drawing's bytes and all of the fields."""
        colour = ImageColor.getrgb(self.background)[:3]
        said = f"{self.direction} {self.frames} {self.side} {self.share} {colour}"
        return hashlib.sha256(picture_digest(self.concept, self.artist) + said.encode()).hexdigest()

    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.side, self.side

    def load(self) -> list[Image.Image]:
        """The frames in order, mode RGB."""
        cut = decode(self.concept, self.artist).crop(concept(self.concept).boxes[self.artist])
        large = self.side * self.share / max(cut.size)
        sprite = cut.resize((max(1, round(cut.width * large)), max(1, round(cut.height * large))))
        across, down = STEPS[self.direction]
        room = (self.side - sprite.width, self.side - sprite.height)
        found = []
        for frame in range(self.frames):
            way = frame / max(self.frames - 1, 1) - 0.5  # from -1/2 to 1/2
            place = tuple(round(space * (0.5 + step * way)) for space, step in zip(room, (across, down)))
            image = Image.new("RGB", (self.side, self.side), self.background)
            image.paste(sprite, (place[0], place[1]), sprite)
            found.append(image)
        return found


class MovingCaptions(SourceConfig):
    """Every picture of a split as a clip, in a direction of its own, with words for both. Plain samples.

    wording  with {name} and {direction}
    rounds   how often every picture comes, each time in another direction
    """

    split: Split = "train"
    frames: int = Field(default=8, ge=1)
    side: int = Field(default=64, ge=8)
    wording: str = "{name} moving {direction}"
    rounds: int = Field(default=1, ge=1, le=4)
    holdout_dev: bool = False
    flags: bool = False
    seed: int = 0

    def build(self) -> _MovingCaptions:
        return _MovingCaptions(self)


class _MovingCaptions:
    def __init__(self, config: MovingCaptions) -> None:
        self.config = config
        self.captions, self.rows = named_pictures(config.split, "en", config.holdout_dev, config.flags)

    def __len__(self) -> int:
        return len(self.rows) * self.config.rounds

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        if not 0 <= index < len(self):
            raise IndexError(index)
        (member, artist), turn = self.rows[index % len(self.rows)], index // len(self.rows)
        id = f"moving/{config.split}/{artist}/{member.key}/{turn}"
        ways = draw(f"moving/{artist}/{member.key}", config.seed).sample(list(STEPS), len(STEPS))
        clip = MovingPicture(member.key, artist, ways[turn], config.frames, config.side)
        words = config.wording.format(name=self.captions[member.key], direction=ways[turn])
        info = {"key": member.key, "artist": artist, "split": config.split, "direction": ways[turn]}
        return Sample((Segment("video", clip), Segment("text", words)), id=id, source="moving", info=info)
