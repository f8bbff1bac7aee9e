"""Latents in the stream of a language model: how noised ones enter it, and how it says what was added to them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.schedule import Flow, Schedule
from sensorium.models.latents import Latents, Patch, positions
from sensorium.models.prompt import TimeEmbedding
from sensorium.nn.part import Part


class LatentHead(Part):
    """A linear layer into the stream, with the time of the schedule, and one out of it.

    BAGEL (arXiv 2505.14683, section 3.2), pi0 (arXiv 2410.24164, section 4 and appendix B).
    """

    class Config(Value):
        """schedule, predictor  of the noise
        patch     frames, rows and columns of latent positions that become one token
        sections  channels of a sin-cos position that is added, or None, as in models/denoiser.py
        mix       add: the embedded time is added to the token (BAGEL); mlp: both go through two layers (pi0)
        clean     where it is learned, an item's latent stands there twice: noised, seen by itself alone, then as it is
                  (BAGEL); False: noised only, and what follows sees that (pi0)
        route     which weights its tokens take
        says      whether such items are said; False: they are only read, so nothing is noised and nothing predicted
        """

        schedule: Schedule = Flow()
        predictor: Predictor = Predictor(kind="flow")
        patch: Patch = (1, 1, 1)
        sections: tuple[int, int, int] | None = None
        mix: Literal["add", "mlp"] = "add"
        clean: bool = False
        route: int | None = None
        says: bool = True

    def __init__(self, config: Config, channels: int, width: int, stream: int) -> None:
        """channels: numbers of one position. width: of the tokens' route, the first columns of the stream's."""
        super().__init__()
        if config.sections is not None and sum(config.sections) != width:
            raise ValueError(f"sections {config.sections} must sum to the width {width} of the tokens' route")
        self.config, self.width, self.stream = config, width, stream
        self.numbers = math.prod(config.patch) * channels
        self.enter = nn.Linear(self.numbers, width)
        self.time = TimeEmbedding(width) if config.says else None
        self.mix = nn.Linear(2 * width, width) if config.says and config.mix == "mlp" else None
        self.last = nn.Linear(width, width) if self.mix is not None else None
        self.leave = nn.Linear(width, self.numbers) if config.says else None

    def forward(self, values: Tensor, time: Tensor, latents: Latents) -> Tensor:
        """values (N, P) of S spans, time (S) -> tokens (N, D) of the stream."""
        tokens = self.enter(values.to(self.enter.weight.dtype))
        if self.config.sections is not None:
            tokens = tokens + positions(latents.patches, self.config.sections).to(tokens)
        if self.time is not None:
            told = self.time(time).index_select(0, latents.number)
            if self.mix is None or self.last is None:
                tokens = tokens + told
            else:
                tokens = self.last(F.silu(self.mix(torch.cat([tokens, told], dim=1))))
        return F.pad(tokens, (0, self.stream - self.width))

    def predict(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, P) float32."""
        if self.leave is None:
            raise ValueError("these items are only read: a head with `says` predicts")
        return self.leave(hidden[:, : self.width]).float()
