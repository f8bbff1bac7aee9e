"""Pictures and clips from a denoiser: from noise, from a noised picture (SDEdit), or around what is kept (inpainting).

    paint(engine, [canvas("a red apple", 32, 32)], Painting(guider=Guider(scale=4)))

The loop is the sampler's (diffusion/sampler.py), with a guided prediction at each of its times. The rest is where it
starts, and what is put back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from sensorium.codecs.base import unit
from sensorium.config import Config
from sensorium.diffusion.guider import Guider
from sensorium.diffusion.sampler import Euler, Sampler, Trail
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.models.denoiser import Denoiser
from sensorium.models.latents import Latents, from_tokens, to_tokens
from sensorium.models.prompt import Prompt
from sensorium.sequence import MediaError, Sample, Segment, Sequence

Frames = list[Image.Image]
"""RGB; one of a picture."""


class Painting(Config):
    """How pictures are made.

    strength  1: from noise alone; below, the sample's picture is noised so far and changed from there (SDEdit: Meng et
              al. 2021, arXiv 2108.01073); 0 leaves it as it is
    seed      picture i of a call draws its noise from a generator of its own, seeded by seed + i
    """

    sampler: Sampler = Euler(steps=30)
    guider: Guider = Guider()
    strength: float = Field(default=1.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture that is not there yet (Media): (height, width), or of a clip (frames, height, width)."""

    size: tuple[int, ...]

    def key(self) -> str:
        return hashlib.sha256(f"canvas {self.size}".encode()).hexdigest()

    def shape(self) -> tuple[int, ...]:
        return self.size

    def load(self) -> Image.Image:
        raise MediaError("a canvas has no pixels before something is painted: its size alone can be asked")


def canvas(text: str, *size: int) -> Sample:
    """What to paint, and how large: (height, width) or (frames, height, width)."""
    return Sample((Segment("image" if len(size) == 2 else "video", Canvas(size)), Segment("text", text)))


PLAIN = Painting()


@torch.inference_mode()
def paint(
    engine: Engine,
    samples: Many[Sample],
    painting: Painting = PLAIN,
    keep: Many[Image.Image | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Frames]:
    """The picture or clip of each sample, in order, whatever is painted together.

    samples   each with one picture or clip: a Canvas, or with strength below 1 or `keep` what is to be changed
    keep      for each sample a picture of what stays (white) and what is painted anew (black), or None: all of it
    progress  called with the number of samples that are done
    Raises UserError for a model that paints nothing, or a sample without exactly one picture or clip.
    """
    model = engine.model
    if not isinstance(model, Denoiser):
        raise UserError(f"a {model.config.tag()} paints nothing: a denoiser does (recipe `dit`)")
    kept: list[Image.Image | None] = [None] * len(samples) if keep is None else list(keep)
    if len(kept) != len(samples):
        raise ValueError(f"{len(samples)} samples, and what is kept of {len(kept)}: give one or None for each")
    found: list[Frames] = []
    pending: list[Sequence] = []

    def flush() -> None:
        first = len(found)
        packed = Sequence.pack(engine.prepare(pending) if changes else pending).to(model.reference().device)
        masks = kept[first : first + len(pending)] if changes else None
        found.extend(_paint(model, packed, model.read(packed), painting, masks, painting.seed + first))
        pending.clear()
        if progress is not None:
            progress(len(found))

    changes = painting.strength < 1 or any(mask is not None for mask in kept)
    for sample in samples:
        sequence = engine.renderer.render(sample, items=changes)
        if len(sequence.spans) != 1 or sequence.spans[0].mode != "latent":
            raise UserError(f"a sample to paint has one picture or clip, {sample.id or 'this one'} has "
                            f"{len(sequence.spans)}: see infer.painting.canvas")  # fmt: skip
        if pending and sum(map(len, pending)) + len(sequence) > engine.tokens:
            flush()
        pending.append(sequence)
    if pending:
        flush()
    return found


@torch.inference_mode()
def paint_prompts(
    model: Denoiser, packed: Sequence, prompt: Prompt, painting: Painting = PLAIN, seed: int | None = None
) -> list[Frames]:
    """What prompts ask for that did not come from words: one item of each document, in one pass.

    packed  documents with a latent span each, whose items have a size alone
    seed    of the first; None: the painting's
    Raises UserError for a strength below 1: there is no picture to begin with.
    """
    if painting.strength < 1:
        raise UserError(f"a strength of {painting.strength} changes a picture, and none is given here: give 1")
    return _paint(model, packed, prompt, painting, None, painting.seed if seed is None else seed)


def _paint(
    model: Denoiser, packed: Sequence, prompt: Prompt, painting: Painting, keep: list[Image.Image | None] | None,
    seed: int,
) -> list[Frames]:  # fmt: skip
    """Paint what fits into one pass; seed is that of the first. keep: None where nothing is there to be changed."""
    changes, keep = keep is not None, keep or []
    device = model.reference().device
    latents = model.locate(packed)
    draws = [torch.Generator().manual_seed(seed + number) for number in range(packed.documents)]

    def fresh() -> Tensor:
        sizes = zip(latents.lengths, draws)
        drawn = [torch.randn(length, model.config.channels, generator=one) for length, one in sizes]
        return torch.cat(drawn).to(device)

    noise = fresh()
    clean = model.clean(packed, latents) if changes else torch.zeros_like(noise)
    stays = _kept(model, latents, keep).to(device) if any(mask is not None for mask in keep) else None
    trail = painting.sampler.trail(model.config.schedule)
    start = len(trail) - min(len(trail), int(painting.strength * len(trail) + 1e-9))

    def known(index: int) -> Tensor:
        return trail.alpha[index] * clean + trail.sigma[index] * noise

    def put_back(x: Tensor, index: int) -> Tensor:
        return x if stays is None else torch.where(stays, known(index), x)

    asked = _Asked(model, packed, latents, prompt, painting.guider, trail)
    x = painting.sampler.run(trail, known(start) if start else noise, asked, fresh, start, put_back)
    return _decoded(model, latents, x)


class _Asked:
    """What the model says of the clean latent and the noise at a state, guided."""

    def __init__(
        self, model: Denoiser, packed: Sequence, latents: Latents, prompt: Prompt, guider: Guider, trail: Trail
    ) -> None:
        self.model, self.guider, self.latents, self.prompt, self.trail = model, guider, latents, prompt, trail
        self.both: tuple[Latents, Prompt] | None = None
        if guider.scale != 1:
            nothing = model.read(packed, torch.ones(packed.documents, dtype=torch.bool, device=packed.ids.device))
            self.both = model.locate(Sequence.pack([packed, packed])), Prompt.join([prompt, nothing])

    def __call__(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        schedule, spans = self.model.config.schedule, len(self.latents.spans)
        time, terms = self.trail.times[index], (self.trail.alpha[index], self.trail.sigma[index])
        if self.both is not None and self.guider.guides(time / schedule.steps):
            output = self.model.predict(torch.cat([x, x]), x.new_full((2 * spans,), time), *self.both)
            output = self.guider.join(*output.chunk(2))
        else:
            output = self.model.predict(x, x.new_full((spans,), time), self.latents, self.prompt)
        return self.model.config.predictor.estimates(output, x, *map(x.new_tensor, terms))


def _kept(model: Denoiser, latents: Latents, keep: list[Image.Image | None]) -> Tensor:
    """(T, P) bool. A latent position stays where all of its pixels do."""
    parts = []
    for span, grid, mask in zip(latents.spans, latents.grids, keep):
        codec = model.codec(span.kind)
        positions = torch.zeros(grid.rows * grid.cols)
        if mask is not None:
            pixels = unit(codec.preprocess(mask.convert("RGB")).transpose(0, 1), codec.config.transform)
            white = (pixels.amin((0, 1)) > 0.999).float()[None, None]
            positions = -F.max_pool2d(-white, codec.config.spatial).flatten()
            if len(positions) != grid.rows * grid.cols:
                raise UserError(f"what is kept is {mask.height} x {mask.width} pixels, another shape than the picture: "
                                "give both one aspect ratio")  # fmt: skip
        values = positions.repeat(grid.frames)[:, None].expand(-1, codec.config.width)
        parts.append(to_tokens(values.contiguous(), grid, model.config.patch) > 0.5)
    return torch.cat(parts)


def _decoded(model: Denoiser, latents: Latents, x: Tensor) -> list[Frames]:
    found = []
    for span, grid, tokens in zip(latents.spans, latents.grids, x.split(latents.lengths)):
        codec = model.codec(span.kind)
        values = from_tokens(tokens, grid, model.config.patch).to(codec.reference())
        found.append(codec.pictures(values, grid, grid.frames * codec.config.temporal if grid.frames > 1 else 1))
    return found
