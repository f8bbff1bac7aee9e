"""Pictures and clips as codes: convolutions, a vector quantiser, convolutions back.

VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) with VQGAN's convolutions (Esser et al. 2021, arXiv 2012.09841).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.codecs.base import Codec, Coded
from sensorium.codecs.conv import Convolutional
from sensorium.config import Config as Value
from sensorium.nn.part import Part, Together


class Quantizer(Part):
    """Every vector becomes the nearest of `codes` learned ones; its gradient passes straight through (section 3.1).

    learning    ema: a code is the moving mean of the vectors it stood for (appendix A.1). gradient: codes are
                parameters, drawn to their vectors by a loss of their own, `codebook` (equation 3)
    decay       of those means, and of the count of a code's uses
    revive      a code that stands for less than this share of what it would if all were used equally begins anew at a
                vector of the step (Zeghidour et al. 2021, arXiv 2107.03312, section III.C), drawn in proportion to its
                squared distance from its own code (as k-means++ draws): what is common and told well needs no second
                code; 0: never

    begin       whether all codes begin at vectors of the first step; False: they stay where they are, as those of a
                checkpoint. Without any of this nothing is counted
    unit        whether the vectors of codes have length 1 where they are read (LlamaGen's tokenizer, arXiv 2406.06525,
                section 2.1; Janus)

    Keep it in float32: moving means need the digits.
    """

    class Config(Value):
        codes: int = Field(default=1024, ge=2)
        width: int = Field(default=16, ge=1)
        learning: Literal["ema", "gradient"] = "ema"
        decay: float = Field(default=0.99, gt=0, lt=1)
        revive: float = Field(default=0.03, ge=0, lt=1)
        begin: bool = True
        unit: bool = False

        @property
        def counts(self) -> bool:
            """Whether the uses of codes are counted."""
            return self.learning == "ema" or self.revive > 0 or self.begin

    uses: Tensor
    sums: Tensor
    begun: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        book = torch.randn(config.codes, config.width)
        if config.learning == "gradient":
            self.book = nn.Parameter(book / config.codes)
        else:
            self.register_buffer("book", book)
        if config.counts:
            self.register_buffer("uses", torch.ones(config.codes))
            self.register_buffer("sums", book.clone())
            self.register_buffer("begun", torch.tensor(not config.begin))
        self._step: list[tuple[Tensor, Tensor]] = []

    def codes(self, vectors: Tensor) -> Tensor:
        """vectors (M, width) -> (M) index of the nearest code."""
        far = vectors.float().square().sum(1, keepdim=True) + self.book.float().square().sum(1)
        return torch.addmm(far, vectors.float(), self.book.float().T, alpha=-2).argmin(1)

    def vectors(self, codes: Tensor) -> Tensor:
        """codes (...) -> (..., width)."""
        chosen = F.embedding(codes, self.book)
        return F.normalize(chosen, dim=-1) if self.config.unit else chosen

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """vectors (M, width) -> quantised (M, width), codes (M), losses by name (M).

        While it learns, what the step needs to know of the vectors is kept until `after_step`.
        """
        codes = self.codes(vectors.detach())
        chosen = self.vectors(codes)
        losses = {"commitment": (vectors - chosen.detach()).square().mean(1)}
        if self.config.learning == "gradient":
            losses["codebook"] = (chosen - vectors.detach()).square().mean(1)
        if self.training:
            self._step.append((vectors.detach().float(), codes))
        return vectors + (chosen - vectors).detach(), codes, losses

    @torch.no_grad()
    def after_step(self, ranks: Together) -> dict[str, float]:
        """Move the codes by all micro-batches of a step; returns the health of the codebook.

        usage       share of the codes that the step used
        perplexity  exp of the entropy of how often each was used: as many codes, used equally, would say as much
        revived     codes that began anew
        """
        if not self._step:
            return {}
        vectors, codes = (torch.cat(parts) for parts in zip(*self._step))
        self._step = []
        size, decay = self.config.codes, self.config.decay
        counts = ranks.sum(torch.bincount(codes, minlength=size).float())
        share = counts / counts.sum()
        found = {
            "usage": float((counts > 0).float().mean()),
            "perplexity": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        }
        if not self.config.counts:
            return found
        self.uses.lerp_(counts * (size / counts.sum()), 1 - decay)
        if self.config.learning == "ema" and bool(self.begun):
            sums = ranks.sum(torch.zeros_like(self.sums).index_add_(0, codes, vectors)) * (size / counts.sum())
            self.sums.lerp_(sums.to(self.sums), 1 - decay)
            self.book.copy_(self.sums / self.uses.clamp(min=1e-5)[:, None])
        dead = (self.uses < self.config.revive) | ~self.begun
        revived = self._revive(dead.nonzero()[:, 0], vectors, codes, ranks) if bool(dead.any()) else 0
        found["revived"] = float(revived if bool(self.begun) else 0)
        self.begun.fill_(True)
        return found

    def _revive(self, dead: Tensor, vectors: Tensor, codes: Tensor, ranks: Together) -> int:
        """The codes `dead` take the place of vectors drawn from the step; returns how many they are."""
        # each rank offers vectors for the codes that are its own by turns, so that all hold the same book
        far = (vectors - self.vectors(codes).float()).square().sum(1)
        if not bool(self.begun) or not bool(far.sum() > 0):
            far = torch.ones_like(far)
        drawn = vectors[torch.multinomial(far, len(dead), replacement=True)]
        mine = torch.arange(len(dead), device=vectors.device) % ranks.world == ranks.rank
        drawn = ranks.sum(drawn * mine[:, None])
        self.book[dead] = drawn.to(self.book)
        self.uses[dead], self.sums[dead] = 1.0, drawn.to(self.sums)
        return len(dead)


class Quantized(Codec):
    """A codec whose vectors a quantiser says as codes. A subclass gives `quantizer`, `_vectors` and `_pixels`."""

    quantizer: Quantizer

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> codes (N, f, rows, cols, 1)."""
        vectors = self._vectors(pixels)
        return self.quantizer.codes(vectors.flatten(0, -2)).view(*vectors.shape[:-1], 1)

    def decode(self, values: Tensor, frames: int = 1) -> Tensor:
        return self._pixels(self.quantizer.vectors(values[..., 0].long()), frames)

    def forward(self, pixels: Tensor) -> Coded:
        vectors = self._vectors(pixels)
        chosen, _, losses = self.quantizer(vectors.flatten(0, -2))
        back = self._pixels(chosen.view_as(vectors), pixels.shape[2])
        return Coded(back, {name: values.view(len(pixels), -1).mean(1) for name, values in losses.items()})

    def _vectors(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, f, rows, cols, the quantiser's width)."""
        raise NotImplementedError(f"{type(self).__name__} makes no vectors")

    def _pixels(self, vectors: Tensor, frames: int) -> Tensor:
        """vectors (N, f, rows, cols, width) -> (N, 3, frames, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} makes no pixels")


class VQ(Quantized, Convolutional):
    """Pixels -> convolutions -> quantiser -> convolutions -> pixels."""

    class Config(Convolutional.Config):
        """conv, quantizer: the two parts. wide: channels between them, the quantiser's own vectors being narrower.
        decoder: whether codes become pictures again."""

        quantizer: Quantizer.Config = Quantizer.Config()
        wide: int = Field(default=256, ge=1)
        decoder: bool = True

        @property
        def width(self) -> int:
            return 1

        @property
        def codes(self) -> int:
            return self.quantizer.codes

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.wide, config.wide if config.decoder else None)
        narrow = config.quantizer.width
        self.enter, self.leave = nn.Linear(config.wide, narrow), nn.Linear(narrow, config.wide)
        self.quantizer: Quantizer = config.quantizer.build()

    def reference(self) -> Tensor:
        return self.enter.weight

    def _vectors(self, pixels: Tensor) -> Tensor:
        """(N, f, rows, cols, the quantiser's width)."""
        return self.enter(self.latents(pixels))

    def _pixels(self, vectors: Tensor, frames: int) -> Tensor:
        return self.pixels(self.leave(vectors), frames)
