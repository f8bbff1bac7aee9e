"""Swin Transformer: attention in windows, shifted in every second block (Liu et al. 2021, arXiv 2103.14030)."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.encoders.base import Encoder
from sensorium.encoders.head import Head
from sensorium.encoders.transform import Size
from sensorium.encoders.vit import patches
from sensorium.mask import Layout
from sensorium.nn.attention import Attention
from sensorium.nn.ffn import Activation, FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part
from sensorium.nn.relative import CellBias


class SwinBlock(Part):
    """x + attention within windows, then x + feed-forward, each behind its norm (section 3.1).

    window  side of a window in cells
    shift   by how many cells windows are moved down and across; what the move brings together from two edges of the
            view does not attend to each other (section 3.2)
    """

    class Config(Value):
        attention: Attention.Config
        ffn: FeedForward.Config
        norm: Norm.Config
        window: int = Field(ge=1)
        shift: int = Field(default=0, ge=0)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.window, self.shift = config.window, config.shift
        self.norm1 = config.norm.build(width)
        self.attention: Attention = config.attention.build(width)
        cells = CellBias.Config(rows=config.window, cols=config.window)
        self.relative: CellBias = cells.build(config.attention.heads)
        self.norm2 = config.norm.build(width)
        self.ffn = config.ffn.build(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (V, rows, cols, D) -> the same shape."""
        x = x + self._attend(self.norm1(x))
        return x + self.ffn(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        """Windows that reach beyond the view are filled with zeros, which are attended to (released code)."""
        (views, rows, cols, width), side = x.shape, self.window
        x = F.pad(x, (0, 0, 0, -cols % side, 0, -rows % side))
        down, across = x.shape[1] // side, x.shape[2] // side
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = _cut(x, side).reshape(-1, width)
        x = self.attention(x, self._layout(views, down, across, x))
        x = x.view(views, down, across, side, side, width).transpose(2, 3).reshape(views, down * side, -1, width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :rows, :cols]

    def _layout(self, views: int, down: int, across: int, x: Tensor) -> Layout:
        """Full attention inside each of views * down * across windows, with the bias of its cells."""
        side = self.window**2
        rows = torch.arange(len(x), device=x.device).view(-1, side)
        mask = None
        if self.shift:
            region = _regions(down * self.window, self.window, self.shift)[:, None] * 3
            region = (region + _regions(across * self.window, self.window, self.shift))[None, :, :, None]
            region = _cut(region, self.window).reshape(-1, side)
            mask = (region[:, :, None] == region[:, None, :]).to(x.device).repeat(views, 1, 1)[:, None]
        bias = self.relative(rows, rows, mask, False).to(x.dtype)
        position = torch.zeros(len(x), 3, dtype=torch.long, device=x.device)
        return Layout(rows, None, None, False, position, lengths=[side] * len(rows), bias=bias)


def _cut(x: Tensor, side: int) -> Tensor:
    """x: (V, rows, cols, D) -> (V, rows / side, cols / side, side, side, D): windows, row-major."""
    return x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def _regions(extent: int, window: int, shift: int) -> Tensor:
    """(extent): which part of the view a place along one side belongs to, after the move."""
    at = torch.arange(extent)
    return (at >= extent - window).long() + (at >= extent - shift).long()


class Merging(nn.Module):
    """Two by two cells become one, twice as wide (section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm.Config(kind="layer").build(4 * width)
        self.linear = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (V, rows, cols, D) -> (V, rows / 2, cols / 2, 2 D), a last odd row or column filled with zeros."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, col::2] for col in range(2) for row in range(2)]
        return self.linear(self.norm(torch.cat(corners, dim=-1)))


class Swin(Encoder):
    """Patches -> stages of blocks, a merging between two of them -> features of the last stage."""

    class Config(Encoder.Config):
        """dim: width of the first stage. stages: (blocks, attention heads) of each.

        ratio      width of the feed-forward for the stage's own
        positions  learned ones are added to patches, besides the bias of cells in windows
        mask_token  there is a token that stands for patches which training hides (SimMIM). Nothing reads it here
        heads      what is read off the features of a view besides: see `readout`
        """

        dim: int = Field(default=96, ge=1)
        stages: tuple[tuple[int, int], ...] = ((2, 3), (2, 6), (6, 12), (2, 24))
        patch: int = Field(default=4, ge=1)
        window: int = Field(default=7, ge=1)
        ratio: float = Field(default=4.0, gt=0)
        bias: bool = True
        activation: Activation = "gelu"
        eps: float = 1e-5
        positions: bool = False
        mask_token: bool = False
        heads: dict[str, Head.Config] = {}

        @model_validator(mode="after")
        def _fits(self) -> Self:
            for stage, (_, heads) in enumerate(self.stages):
                sides, width = self.cells_of(stage), self.dim * 2**stage
                if min(sides) < self.window:
                    raise ValueError(f"stage {stage} has {sides} cells, less than a window of {self.window}: choose "
                                     "larger views, or a smaller window")  # fmt: skip
                if width % heads:
                    raise ValueError(f"stage {stage} is {width} wide, which {heads} heads do not share evenly")
            if self.positions and any(side % self.patch for side in self.transform.view):
                raise ValueError(f"a view of {self.transform.view} has patches of {self.patch} that are not whole, and "
                                 "positions are for whole ones")  # fmt: skip
            if any(head.reads != "mean" for head in self.heads.values()):
                raise ValueError("there is no class token: heads read the mean of cells")
            return self

        def cells_of(self, stage: int) -> Size:
            """(rows, columns) of a stage; patches and merged cells that are not whole count."""
            side = self.patch * 2**stage
            height, width = self.transform.view
            return -(-height // side), -(-width // side)

        @property
        def width(self) -> int:
            return self.dim * 2 ** (len(self.stages) - 1)

        @property
        def cells(self) -> tuple[int, int]:
            return self.cells_of(len(self.stages) - 1)

        @property
        def oblong(self) -> bool:
            return True

        def block(self, stage: int, index: int) -> SwinBlock.Config:
            """Where a window covers one side of the view nothing is shifted (released code)."""
            shifted = index % 2 and min(self.cells_of(stage)) > self.window
            width, heads = self.dim * 2**stage, self.stages[stage][1]
            ffn = FeedForward.Config(hidden=int(self.ratio * width), activation=self.activation, gated=False, bias=True)
            return SwinBlock.Config(
                attention=Attention.Config(heads=heads, bias=self.bias, out_bias=True), ffn=ffn,
                norm=Norm.Config(kind="layer", eps=self.eps), window=self.window,
                shift=self.window // 2 if shifted else 0,
            )  # fmt: skip

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        count = len(config.stages)
        self.patch = nn.Linear(3 * config.patch**2, config.dim)
        self.patch_norm = Norm.Config(kind="layer").build(config.dim)
        rows, cols = config.cells_of(0)
        self.place = nn.Parameter(torch.randn(rows * cols, config.dim) * 0.02) if config.positions else None
        self.mask_token = nn.Parameter(torch.zeros(config.dim)) if config.mask_token else None
        self.stages = nn.ModuleList(
            nn.ModuleList(config.block(stage, index).build(config.dim * 2**stage) for index in range(blocks))
            for stage, (blocks, _) in enumerate(config.stages)
        )
        self.merge = nn.ModuleList(Merging(config.dim * 2**stage) for stage in range(count - 1))
        self.norm = Norm.Config(kind="layer", eps=config.eps).build(config.width)
        self.heads = nn.ModuleDict({name: head.build(config.width) for name, head in config.heads.items()})

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> (V, rows * cols, D) of the last stage."""
        side, (rows, cols) = self.config.patch, self.config.cells_of(0)
        views = F.pad(views, (0, -views.shape[3] % side, 0, -views.shape[2] % side))
        x = self.patch_norm(self.patch(patches(views, side)))
        if self.place is not None:
            x = x + self.place.to(x.dtype)
        x = x.unflatten(1, (rows, cols))
        for stage, blocks in enumerate(self.stages):
            x = self.merge[stage - 1](x) if stage else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return self._touch_unused(self.norm(x).flatten(1, 2))

    def readout(self, name: str, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> what the head of this name reads off each, (V, its width)."""
        return self.heads[name](self.encode(views), 0)

    def _touch_unused(self, x: Tensor) -> Tensor:
        """x unchanged; parameters that features do not depend on get a zero gradient while they learn."""
        alone = [] if self.mask_token is None else [self.mask_token]
        learning = [p for p in (*alone, *self.heads.parameters()) if p.requires_grad]
        if not learning or not torch.is_grad_enabled():
            return x
        return x + 0.0 * torch.stack([p.sum() for p in learning]).sum().to(x.dtype)
