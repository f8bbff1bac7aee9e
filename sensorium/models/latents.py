"""Latent spans of packed documents as patches in space and time: any length, size and aspect ratio, side by side.

A picture is a clip of one frame, so one code serves both (Sora's space-time patches; NaViT: Dehghani et al. 2023,
arXiv 2307.06304, for packing pictures of any size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from sensorium.codecs.base import Codec
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.schedule import Schedule
from sensorium.encoders.positions import sincos3d
from sensorium.errors import UserError
from sensorium.nn.part import Grid
from sensorium.sequence import Item, Sequence, Span


@dataclass(slots=True)
class Noised:
    """Noised tokens of latent spans: T tokens of S spans, in the order of the spans.

    x       (T, P) float32, the tokens as they are now
    time    (S) of the schedule
    target  (T, P) what a prediction should be; None in sampling
    """

    x: Tensor
    time: Tensor
    target: Tensor | None = None


@dataclass(slots=True)
class Denoised:
    """What a model said of T noised tokens of S latent spans.

    output, target  (T, P) float32: the prediction, and what it should have been (None in sampling)
    time            (S) of the schedule
    number          (T) the span of each token
    """

    output: Tensor
    target: Tensor | None
    time: Tensor
    number: Tensor


Patch = tuple[int, int, int]
"""Frames, rows and columns of positions that become one token."""


@dataclass(frozen=True, slots=True)
class Latents:
    """Where the S latent spans of a sequence stand, T tokens in all, in their order.

    spans     as they are in the sequence
    grids     positions of each, as its codec makes them
    patches   tokens of each: frames, rows, columns
    index     (T) the place of each token in the sequence
    number    (T) its span
    document  (S) the document of each span
    """

    spans: list[Span]
    grids: list[Grid]
    patches: list[Grid]
    index: Tensor
    number: Tensor
    document: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> list[int]:
        return [grid.tokens for grid in self.patches]

    @property
    def position(self) -> Tensor:
        """(T, 3) long: time, row and column of each token in its span."""
        parts = [torch.zeros(0, 3, dtype=torch.long, device=self.index.device)]
        for grid in self.patches:
            ranges = (torch.arange(extent, device=self.index.device) for extent in (grid.frames, grid.rows, grid.cols))
            parts.append(torch.cartesian_prod(*ranges))
        return torch.cat(parts)


def patched(grid: Grid, patch: Patch) -> Grid:
    """Tokens of a grid of positions. Frames that do not fill the last patch are repeated; rows and columns must fill.

    Raises UserError when they do not.
    """
    if grid.rows % patch[1] or grid.cols % patch[2]:
        raise UserError(f"{grid.rows} x {grid.cols} positions cannot be cut into patches of {patch[1]} x {patch[2]}: "
                        "choose a size for the codec's transform whose sides are multiples")  # fmt: skip
    frames = -(-grid.frames // patch[0])
    return replace(grid, frames=frames, rows=grid.rows // patch[1], cols=grid.cols // patch[2])


def to_tokens(values: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """values (B * positions of `grid`, W), B items of one grid -> (B * tokens, patch positions * W)."""
    width, cut = values.shape[1], patched(grid, patch)
    x = values.view(-1, grid.frames, grid.rows, grid.cols, width)
    short = cut.frames * patch[0] - grid.frames
    if short:
        x = torch.cat([x, x[:, -1:].expand(-1, short, -1, -1, -1)], dim=1)
    x = x.view(-1, cut.frames, patch[0], cut.rows, patch[1], cut.cols, patch[2], width)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, patch[0] * patch[1] * patch[2] * width)


def from_tokens(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """The inverse of `to_tokens`; frames that were repeated are dropped."""
    cut = patched(grid, patch)
    x = tokens.view(-1, cut.frames, cut.rows, cut.cols, *patch, tokens.shape[1] // (patch[0] * patch[1] * patch[2]))
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, cut.frames * patch[0], grid.rows, grid.cols, x.shape[-1])
    return x[:, : grid.frames].reshape(-1, x.shape[-1])


def tokens_of(codec: Codec, items: list[Item], patch: Patch) -> list[Tensor]:
    """(N, P) float32 of each item: the latent of a frozen codec as it is, cut into tokens."""
    features = codec.prepare_inference()(items)
    found, first = [], 0
    for grid, count in runs(features.grids):
        values = features.values[first : first + count * grid.tokens].float()
        found += to_tokens(values, grid, patch).chunk(count)
        first += len(values)
    return found


def noised(
    clean: Tensor, spans: list[Span], number: Tensor, schedule: Schedule, predictor: Predictor,
    noise: Tensor | None = None, time: Tensor | None = None,
) -> Noised:  # fmt: skip
    """Clean tokens of spans as training sees them: at random times, or those that the spans themselves say.

    clean   (T, P) float32, number (T) the span of each
    noise   (T, P), time (S): drawn from torch's generator unless they are given
    """
    time = schedule.draw(len(spans), clean.device) if time is None else time
    own = [span.time for span in spans]
    if any(said is not None for said in own):
        told = time.new_tensor([math.nan if said is None else said for said in own])
        time = torch.where(told.isnan(), time, told)
    noise = torch.randn_like(clean) if noise is None else noise
    alpha, sigma = (term[number][:, None] for term in schedule.terms(time))
    return Noised(alpha * clean + sigma * noise, time, predictor.target(clean, noise, alpha, sigma))


def positions(
    patches: list[Grid], sections: tuple[int, int, int], columns_first: bool = False, stretch: int = 0
) -> Tensor:
    """(T, sum of sections) sin-cos positions of the tokens of spans: time, row, column, or time, column, row.

    stretch  see `sincos3d`
    """
    parts = [sincos3d(grid.frames, grid.rows, grid.cols, sections, stretch=stretch) for grid in patches]
    made = torch.cat([torch.zeros(0, sum(sections)), *parts])
    if not columns_first:
        return made
    time, row, column = made.split(sections, dim=1)
    return torch.cat([time, column, row], dim=1)


def runs(grids: list[Grid]) -> list[tuple[Grid, int]]:
    """Neighbours of one grid together: (grid, how many)."""
    found = []
    for _, members in groupby(grids, key=lambda grid: (grid.frames, grid.rows, grid.cols)):
        alike = list(members)
        found.append((alike[0], len(alike)))
    return found


def locate(sequence: Sequence, grids: dict[str, list[Grid]], patch: Patch) -> Latents:
    """The latent spans of a sequence. grids: by kind, of each of its items.

    Raises ValueError with both numbers when a span was planned with another number of tokens.
    """
    spans = [span for span in sequence.spans if span.mode == "latent"]
    own = [grids[span.kind][span.item] for span in spans]
    cut = [patched(grid, patch) for grid in own]
    for span, grid in zip(spans, cut):
        if span.length != grid.tokens:
            raise ValueError(f"a {span.kind} span was planned with {span.length} tokens, its latent has {grid.tokens}: "
                             "the sequence was rendered for another model")  # fmt: skip
    device = sequence.ids.device
    places = [torch.arange(span.start, span.start + span.length) for span in spans]
    index = torch.cat([torch.zeros(0, dtype=torch.long), *places]).to(device)
    number = numbers(spans).to(device)
    starts = torch.tensor([span.start for span in spans], dtype=torch.long, device=device)
    return Latents(spans, own, cut, index, number, sequence.doc[starts].long())


def numbers(spans: list[Span]) -> Tensor:
    """(T) of the tokens of spans, one after another, the number of the span."""
    lengths = torch.tensor([span.length for span in spans], dtype=torch.long)
    return torch.arange(len(spans)).repeat_interleave(lengths)
