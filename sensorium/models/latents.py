"""Latent spans of packed documents as patches in space and time: any length, size and aspect ratio, side by side.

A picture is a clip of one frame, so one code serves both (Sora's space-time patches; NaViT: Dehghani et al. 2023,
arXiv 2307.06304, for packing pictures of any size).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from sensorium.errors import UserError
from sensorium.nn.part import Grid
from sensorium.sequence import Sequence, Span

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
    lengths = torch.tensor([span.length for span in spans], dtype=torch.long)
    number = torch.arange(len(spans)).repeat_interleave(lengths).to(device)
    starts = torch.tensor([span.start for span in spans], dtype=torch.long, device=device)
    return Latents(spans, own, cut, index, number, sequence.doc[starts].long())
