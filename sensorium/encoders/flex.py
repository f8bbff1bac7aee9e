"""A ViT for pictures of any aspect ratio: NaFlex (SigLIP 2, Tschannen et al. 2025, 2502.14786, section 2.4.2), and the
eyes of Qwen2-VL (Wang et al. 2024, 2409.12191, section 2.1), which know places by rotation and read frames in pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.encoders.patch import Patches
from sensorium.encoders.vit import patches
from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Grid
from sensorium.sequence import Item, Sequence


class FlexViT(Patches):
    """Patches -> linear -> positions of a grid of the picture's own -> blocks. Pictures are packed, none is padded, and
    attention stays inside a frame. The backbone's rope, where it has one, turns by rows and columns."""

    class Config(Patches.Config):
        """backbone  the stack, without vocabulary
        trained   side of the square grid that positions are learned for; a picture's are resized from it (bilinear,
                  antialiased). None: none are learned
        patch_bias  whether the linear layer over patches has a bias
        temporal  frames that a patch spans; a picture's only frame, or a clip's last, is repeated to fill one
        """

        backbone: Backbone.Config
        trained: int | None = Field(default=16, ge=1)
        patch_bias: bool = True
        temporal: int = Field(default=1, ge=1)

        @model_validator(mode="after")
        def _reads_patches(self) -> Self:
            if self.backbone.vocab:
                raise ValueError(f"a ViT reads patches: its backbone has no vocabulary, {self.backbone.vocab} given")
            return self

        @property
        def width(self) -> int:
            return self.backbone.width

        @model_validator(mode="after")
        def _clips_fit(self) -> Self:
            clips = self.clips
            if clips is not None and (clips.resize not in ("keep", "area") or clips.multiple % self.patch):
                raise ValueError(f"frames of clips keep their aspect ratio (clips.resize 'keep' or 'area') and become "
                                 f"multiples of the patch, {self.patch} pixels: clips is {clips}")  # fmt: skip
            return self

        def grid(self, shape: tuple[int, ...]) -> Grid:
            grid = super().grid(shape)
            return replace(grid, frames=-(-grid.frames // self.temporal))

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.backbone.width
        self.linear = nn.Linear(3 * config.temporal * config.patch**2, width, bias=config.patch_bias)
        self.place: nn.Parameter | None = None
        if config.trained is not None:
            self.place = nn.Parameter(torch.randn(config.trained**2, width) * 0.02)
        self.backbone: Backbone = config.backbone.build()

    def rows(self, views: Tensor) -> Tensor:
        """views: (frames, 3, H, W) -> (tokens, 3 * temporal * patch * patch): colour, frame, row, column."""
        cut, span = patches(views, self.side), self.config.temporal
        apart = cut.view(len(cut) // span, span, cut.shape[1], 3, self.side**2)
        return apart.permute(0, 2, 3, 1, 4).flatten(2).flatten(0, 1)

    def _views(self, item: Item, grid: Grid) -> Tensor:
        views = super()._views(item, replace(grid, frames=item.shape[0] if len(item.shape) == 3 else 1))
        missing = -len(views) % self.config.temporal
        return torch.cat([views, views[-1:].expand(missing, -1, -1, -1)]) if missing else views

    def tokens(self, rows: Tensor, grids: list[Grid]) -> Tensor:
        blank = not grids  # one patch, of which nothing is returned, connects every parameter
        if blank:
            rows, grids = rows.new_zeros(1, rows.shape[1]), [Grid(1, 1)]
        x = self.linear(rows)
        if self.place is not None:
            x = x + torch.cat([self._positions(grid).to(x.dtype) for grid in grids])
        x = self.backbone(x, apart(grids, rows.device))
        return x[:0] if blank else x

    def _positions(self, grid: Grid) -> Tensor:
        """(tokens, D) float32 of a picture's grid, of each frame the same."""
        assert self.place is not None
        side = math.isqrt(len(self.place))
        table = self.place.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        if (grid.rows, grid.cols) != (side, side):
            table = F.interpolate(
                table, (grid.rows, grid.cols), mode="bilinear", align_corners=False, antialias=True
            )  # fmt: skip
        return table.flatten(2)[0].T.repeat(grid.frames, 1)


def apart(grids: list[Grid], device: torch.device) -> Layout:
    """Full attention inside each frame of each picture; positions are (0, row, column).

    It is compiled where the sizes are known, and moved as a whole.
    """
    cells = torch.tensor([grid.rows * grid.cols for grid in grids for _ in range(grid.frames)])
    doc = torch.arange(len(cells)).repeat_interleave(cells)
    places = [torch.cartesian_prod(*map(torch.arange, (1, grid.rows, grid.cols))) for grid in grids]
    position = torch.cat([place.repeat(grid.frames, 1) for place, grid in zip(places, grids)])
    zeros = torch.zeros_like(doc)
    blank = Sequence(zeros, zeros.to(torch.uint8), position, doc, zeros, zeros.float())
    return compile_layout(blank, AttentionRule(kind="full")).to(device)
