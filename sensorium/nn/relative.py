"""The distance of two tokens, added to their attention score: learned (T5; BEiT, Swin: in a view) or linear (ALiBi)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.part import Part


class RelativeBias(Part):
    """One learned number for each bucket of distances and head, shared by all blocks (T5, arXiv 1910.10683, 2.1).

    buckets   half of them hold one distance each, the others ever wider ranges of it
    distance  from here on all are in the last bucket
    both      what follows has buckets of its own, half of all; in a causal stack nothing follows
    """

    class Config(Value):
        buckets: int = Field(default=32, ge=4)
        distance: int = Field(default=128, ge=2)
        both: bool = True

    def __init__(self, config: Config, heads: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.buckets, heads)

    def bucket(self, offset: Tensor) -> Tensor:
        """offset of the key from the query, in tokens -> bucket, both of any shape."""
        count, config = self.config.buckets, self.config
        first = torch.zeros_like(offset)
        if config.both:
            count //= 2
            first = (offset > 0).long() * count
            away = offset.abs()
        else:
            away = (-offset).clamp(min=0)
        single = count // 2
        growth = torch.log(away.clamp(min=1).float() / single) / math.log(config.distance / single)
        wide = (single + (growth * (count - single)).long()).clamp(max=count - 1)
        return first + torch.where(away < single, away, wide)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """queries (B, L) and keys (B, S): positions -> (B, heads, L, S) to add to the scores.

        mask    (B or 1, 1, L or 1, S) bool, True where attention is allowed; elsewhere the result is -inf
        causal  the same for a plain causal mask, L = S
        """
        bias = self.table(self.bucket(keys[:, None, :] - queries[:, :, None])).permute(0, 3, 1, 2)
        return _masked(bias, mask, causal)


class LinearBias(Part):
    """ALiBi: scores fall with the distance, by a slope of the head's own (Press et al. 2021, arXiv 2108.12409, 3).

    Nothing is learned. Of n heads, n a power of 2, head i (from 1) has the slope 2^(-8 i / n); of other numbers
    of heads the first have those of the next lower power p, the rest every second of those of 2 p (released code).
    """

    class Config(Value):
        pass

    def __init__(self, config: Config, heads: int) -> None:
        super().__init__()
        self.config = config
        lower = 2 ** math.floor(math.log2(heads))
        further = [2 ** (-4 * place / lower) for place in range(1, 2 * (heads - lower), 2)]
        self.slopes = [*(2 ** (-8 * place / lower) for place in range(1, lower + 1)), *further]

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """As RelativeBias."""
        slopes = torch.tensor(self.slopes, device=keys.device)[None, :, None, None]
        return _masked(-slopes * (keys[:, None, :] - queries[:, :, None]).abs()[:, None], mask, causal)


class CellBias(Part):
    """One learned number for each offset between two cells of a view, and head.

    Swin (Liu et al. 2021, arXiv 2103.14030, section 3.2); with a class token BEiT (Bao et al. 2021, 2106.08254,
    released code).

    The table is row-major: that of offset (down, across), query minus key, is (down + rows - 1) (2 cols - 1) + across +
    cols - 1. Behind it, where tokens stand before the cells: how these attend to cells, cells to them, they to
    each other.

    rows, cols  of a view
    before      tokens before the cells (a class token)
    """

    class Config(Value):
        rows: int = Field(ge=1)
        cols: int = Field(ge=1)
        before: int = Field(default=0, ge=0)

    def __init__(self, config: Config, heads: int) -> None:
        super().__init__()
        self.config = config
        count = (2 * config.rows - 1) * (2 * config.cols - 1)
        self.table = nn.Parameter(torch.randn(count + (3 if config.before else 0), heads) * 0.02)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """As RelativeBias, for views that are whole: (1, heads, L, L). What the positions are does not matter.

        Raises ValueError for a view of another size.
        """
        index = _offsets(self.config.rows, self.config.cols, self.config.before).to(self.table.device)
        length = len(index)
        if queries.shape[1] != length or keys.shape[1] != length:
            raise ValueError(f"{queries.shape[1]} tokens of a view attend to {keys.shape[1]}, and the bias of cells is "
                             f"for {length}")  # fmt: skip
        return _masked(self.table[index].permute(2, 0, 1)[None], mask, causal)


@lru_cache(maxsize=64)
def _offsets(rows: int, cols: int, before: int) -> Tensor:
    """(tokens, tokens) of a view: the row of a CellBias's table. Shared by all callers: not to be written to."""
    count = (2 * rows - 1) * (2 * cols - 1)
    with torch.inference_mode(False):  # the cached tensor may later take part in training
        down, across = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
        offsets = [axis[:, None] - axis[None, :] for axis in (down, across)]
        cells = (offsets[0] + rows - 1) * (2 * cols - 1) + offsets[1] + cols - 1
        index = torch.full((before + rows * cols,) * 2, count + 2)
        index[:before, before:], index[before:, :before], index[before:, before:] = count, count + 1, cells
    return index


def biased(layout: Layout, relative: nn.Module, dtype: torch.dtype) -> Layout:
    """The layout with a bias of its tokens to each other, besides any that it has."""
    queries = layout.pad(layout.position[:, 0])
    bias = relative(queries, queries, layout.mask, layout.causal).to(dtype)
    return replace(layout, bias=bias if layout.bias is None else layout.bias + bias)


def _masked(bias: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """bias (B, heads, L, S), -inf where attention is not allowed."""
    if causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return bias if mask is None else bias.masked_fill(~mask, float("-inf"))
