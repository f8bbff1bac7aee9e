"""A ViT for pictures of any aspect ratio: NaFlex (SigLIP 2, Tschannen et al. 2025, 2502.14786, section 2.4.2)."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.encoders.patch import Patches
from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Grid
from sensorium.sequence import Sequence


class FlexViT(Patches):
    """Patches -> linear -> positions of a grid of the picture's own -> blocks. Pictures are packed, none is padded."""

    class Config(Patches.Config):
        """backbone  the stack, without vocabulary
        trained   side of the square grid that positions are learned for; a picture's are resized from it (bilinear,
                  antialiased)
        """

        backbone: Backbone.Config
        trained: int = Field(default=16, ge=1)

        @model_validator(mode="after")
        def _reads_patches(self) -> Self:
            if self.backbone.vocab:
                raise ValueError(f"a ViT reads patches: its backbone has no vocabulary, {self.backbone.vocab} given")
            return self

        @property
        def width(self) -> int:
            return self.backbone.width

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.trained, width = config.trained, config.backbone.width
        self.linear = nn.Linear(3 * config.patch**2, width)
        self.place = nn.Parameter(torch.randn(config.trained**2, width) * 0.02)
        self.backbone: Backbone = config.backbone.build()

    def tokens(self, rows: Tensor, grids: list[Grid]) -> Tensor:
        blank = not grids  # one patch, of which nothing is returned, connects every parameter
        if blank:
            rows, grids = rows.new_zeros(1, rows.shape[1]), [Grid(1, 1)]
        place = torch.cat([self._positions(grid).to(rows.dtype) for grid in grids])
        x = self.backbone(self.linear(rows) + place, _apart([grid.tokens for grid in grids], rows.device))
        return x[:0] if blank else x

    def _positions(self, grid: Grid) -> Tensor:
        """(tokens, D) float32 of a picture's grid, of each frame the same."""
        table = self.place.float().view(1, self.trained, self.trained, -1).permute(0, 3, 1, 2)
        if (grid.rows, grid.cols) != tuple(table.shape[2:]):
            table = F.interpolate(
                table, (grid.rows, grid.cols), mode="bilinear", align_corners=False, antialias=True
            )  # fmt: skip
        return table.flatten(2)[0].T.repeat(grid.frames, 1)


def _apart(lengths: list[int], device: torch.device) -> Layout:
    """Full attention inside each picture."""
    doc = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    zeros = torch.zeros_like(doc)
    blank = Sequence(zeros, zeros.to(torch.uint8), zeros[:, None].expand(-1, 3), doc, zeros, zeros.float())
    return compile_layout(blank, AttentionRule(kind="full"))
