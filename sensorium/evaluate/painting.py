"""What a denoiser paints: from names, over real pictures, around what is kept, and in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from sensorium.data.emoji import Concept, EmojiPicture, pictures
from sensorium.data.moving import STEPS
from sensorium.diffusion.guider import Guider
from sensorium.evaluate.drawing import Judged
from sensorium.evaluate.reconstruction import picture_grid
from sensorium.evaluate.result import Picture, Table, TaskResult
from sensorium.evaluate.task import EvaluationTask, Progress, Subject, drawn
from sensorium.infer.painting import Painting, canvas, paint
from sensorium.sequence import Sample, Segment


class Painted(Judged):
    """Pictures that a denoiser makes of names, judged as all made pictures are.

    painting  sampler, guidance and seed
    size      (height, width) of a picture in pixels
    """

    wording: str = "{name}"
    painting: Painting = Painting()
    size: tuple[int, int] = (32, 32)

    def draw(self, subject: Subject, asked: list[str], progress: Callable[[int], None] | None) -> list[Image.Image]:
        samples = [canvas(words, *self.size) for words in asked]
        return [frames[0] for frames in paint(subject.engine, samples, self.painting, progress=progress)]


class Gallery(EvaluationTask):
    """What one denoiser does as samplers over it do, to be looked at: n names of the split each.

    Grids: guidance scales side by side; pictures changed towards another name at several strengths (SDEdit); pictures
    whose left half is kept (inpainting); clips. The table says how far a picture goes from the one it began with, the
    root mean square over its values from 0 to 1, by strength, and how far that is from another real picture.

    scales, strengths  what is compared
    clip       (frames, height, width); None: the model was shown no clips
    moving     how a clip is asked for
    """

    name: str = "gallery"
    n: int = 8
    painting: Painting = Painting()
    size: tuple[int, int] = (32, 32)
    scales: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    strengths: tuple[float, ...] = (0.3, 0.5, 0.7)
    clip: tuple[int, int, int] | None = None
    moving: str = "{name} moving {direction}"
    holdout_dev: bool = False
    seed: int = Field(default=0, ge=0)

    def chosen(self) -> list[tuple[Concept, EmojiPicture]]:
        """n concepts of the split, and a real picture of each."""
        artists = {member.key: (member, artist) for member, artist in pictures(self.split, self.holdout_dev)}
        some = drawn(list(artists.values()), self.n)
        return [(member, EmojiPicture(member.key, artist)) for member, artist in some]

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        items = self.chosen()
        names = [member.captions["en"] for member, _ in items]
        others = names[1:] + names[:1]
        height, width = self.size
        real = [picture.load().resize((width, height)) for _, picture in items]
        total, done = len(self.scales) + len(self.strengths) + 1 + (self.clip is not None), 0

        def made(samples: list[Sample], keep: Any = None, **changes: Any) -> list[list[Image.Image]]:
            nonlocal done
            frames = paint(subject.engine, samples, self.painting.replace(**changes), keep)
            done += 1
            if progress is not None:
                progress(done, total)
            return frames

        asked = [canvas(name, *self.size) for name in names]
        by_scale = [[one[0] for one in made(asked, guider=Guider(scale=scale))] for scale in self.scales]
        edits = [_over(picture, name) for (_, picture), name in zip(items, others)]
        by_strength = [[one[0] for one in made(edits, strength=strength)] for strength in self.strengths]
        half = Image.new("L", (width, height), 0)
        half.paste(255, (0, 0, width // 2, height))
        kept = [one[0] for one in made([_over(picture, name) for (_, picture), name in zip(items, names)],
                                       [half.resize(one.load().size) for _, one in items])]  # fmt: skip
        said, towards = ", ".join(names), ", ".join(others)
        grids: list[tuple[str, Picture]] = [
            (f"{self.split}: {said}; guidance {_list(self.scales)} from above", picture_grid(by_scale)),
            (f"{self.split}: real pictures, changed towards {towards}; strength {_list(self.strengths)} from above "
             "(SDEdit)", picture_grid([real, *by_strength])),
            (f"{self.split}: real pictures, and the same with the left half kept (inpainting)",
             picture_grid([real, kept])),
        ]  # fmt: skip
        if self.clip is not None:
            ways = [list(STEPS)[index % len(STEPS)] for index in range(min(4, len(names)))]
            words = [self.moving.format(name=name, direction=way) for name, way in zip(names, ways)]
            clips = made([canvas(one, *self.clip) for one in words])
            grids.append((f"{self.split}: clips of {', '.join(words)}; time runs to the right", picture_grid(clips)))
        return TaskResult([], tables=[self._table(real, by_strength)], pictures=grids)

    def _table(self, real: Sequence[Image.Image], by_strength: list[list[Image.Image]]) -> Table:
        rows = [(f"strength {strength:g}", _apart(real, made)) for strength, made in zip(self.strengths, by_strength)]
        rows.append(("another real picture", _apart(real, [*real[1:], real[0]])))
        cells = tuple((title, f"{value:.3f}") for title, value in rows)
        return Table(f"How far SDEdit goes from a picture of {self.split}", ("picture", "distance"), cells)


def _over(picture: EmojiPicture, words: str) -> Sample:
    return Sample((Segment("image", picture), Segment("text", words)))


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _apart(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """Root mean square difference of values from 0 to 1, the mean over pairs of pictures."""
    pairs = [(np.asarray(a, np.float32), np.asarray(b.resize(a.size), np.float32)) for a, b in zip(one, other)]
    return float(np.mean([np.sqrt(np.mean(((a - b) / 255) ** 2)) for a, b in pairs]))
