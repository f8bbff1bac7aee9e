"""How much of a latent is left at a time: x = alpha * clean + sigma * noise.

A schedule's times run from almost clean to all noise. Whatever follows (predictors, samplers, guidance) is written in
alpha and sigma alone, so it is the same for diffusion and for flow matching.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sensorium.config import Config

Spacing = Literal["linspace", "leading", "trailing"]
"""Which times a sampler visits (Lin et al. 2023, arXiv 2305.08891, table 2)."""


class Schedule(Config):
    """Base. A subclass says `terms`, `draw`, `times`, and which of its times is `clean`.

    steps  times are numbers from 0 to this: what a model is told of the time, whatever the schedule
    """

    steps: int = Field(default=1000, ge=2)

    @property
    def clean(self) -> float:
        """The time at which nothing of the noise is left."""
        raise NotImplementedError(f"{self.tag()} does not say when a latent is clean")

    def terms(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """time (N) float32 -> alpha (N), sigma (N) float32."""
        raise NotImplementedError(f"{self.tag()} says nothing of noise")

    def draw(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """(N) float32 times to train at, from torch's own generator of the device."""
        raise NotImplementedError(f"{self.tag()} draws no times")

    def times(self, count: int, spacing: Spacing = "trailing") -> list[float]:
        """`count` times to visit in sampling, the noisiest first; the one after the last is `clean`."""
        raise NotImplementedError(f"{self.tag()} visits no times")

    def noised(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """clean (N, ...), noise (N, ...), time (N) -> (N, ...)."""
        alpha, sigma = (term.view(-1, *[1] * (clean.ndim - 1)) for term in self.terms(time))
        return alpha * clean + sigma * noise


class Diffusion(Schedule):
    """A variance-preserving diffusion of `steps` discrete times (DDPM: Ho et al. 2020, arXiv 2006.11239).

    betas   linear: from `first` to `last` (DDPM section 4); scaled: their roots are linear (latent diffusion, Rombach
            et al. 2021, arXiv 2112.10752); cosine: what is left of the picture follows a squared cosine (Nichol and
            Dhariwal 2021, arXiv 2102.09672, section 3.2)
    first, last  variances of the first and the last step, of linear and scaled
    offset  added to times spaced "leading" (1 in Stable Diffusion)
    """

    betas: Literal["linear", "scaled", "cosine"] = "linear"
    first: float = Field(default=1e-4, gt=0, lt=1)
    last: float = Field(default=0.02, gt=0, lt=1)
    offset: int = Field(default=0, ge=0)

    @property
    def clean(self) -> float:
        return -1.0

    def terms(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Between two steps the ratio sigma / alpha is interpolated (Karras et al. 2022, arXiv 2206.00364)."""
        left = _left(self.betas, self.steps, self.first, self.last).to(time.device)
        low = time.floor().long().clamp(-1, self.steps - 1)
        exact = left[low + 1]
        part = (time - low).clamp(0, 1)
        if not bool((part > 0).any()):
            return exact.sqrt(), (1 - exact).sqrt()
        ratio = ((1 - left) / left).sqrt()
        between = ratio[low + 1] * (1 - part) + ratio[(low + 2).clamp(max=self.steps)] * part
        alpha = 1 / (1 + between.square()).sqrt()
        return alpha, between * alpha

    def draw(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.randint(self.steps, (count,), device=device).float()

    def times(self, count: int, spacing: Spacing = "trailing") -> list[float]:
        _check_count(count, self.steps)
        match spacing:
            case "linspace":
                found = torch.linspace(0, self.steps - 1, count, dtype=torch.float64).flip(0)
            case "leading":
                found = (torch.arange(count) * (self.steps // count)).flip(0).double() + self.offset
            case "trailing":
                found = (self.steps - torch.arange(count).double() * (self.steps / count)).round() - 1
        return found.tolist()


class Flow(Schedule):
    """A straight line from the picture to the noise (rectified flow: Liu et al. 2022, arXiv 2209.03003; flow matching:
    Lipman et al. 2022, arXiv 2210.02747): alpha = 1 - s, sigma = s, the time is s * steps.

    density  how s is drawn in training: uniform, or a logistic of a normal number, which favours the middle (Esser et
             al. 2024, arXiv 2403.03206, section 3.1)
    shift    above 1 more of the times are noisy ones, as larger pictures want it: s -> shift s / (1 + (shift - 1) s)
             (there, section 5.3.2); in training and in sampling
    """

    density: Literal["uniform", "logistic"] = "uniform"
    shift: float = Field(default=1.0, gt=0)

    @property
    def clean(self) -> float:
        return 0.0

    def terms(self, time: Tensor) -> tuple[Tensor, Tensor]:
        share = time / self.steps
        return 1 - share, share

    def draw(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        uniform = self.density == "uniform"
        share = torch.rand(count, device=device) if uniform else torch.randn(count, device=device).sigmoid()
        return self._shifted(share) * self.steps

    def times(self, count: int, spacing: Spacing = "trailing") -> list[float]:
        _check_count(count, self.steps)
        least = self._shifted(torch.tensor(1 / self.steps, dtype=torch.float64))
        match spacing:
            case "linspace":  # down to the smallest share there is
                share = torch.linspace(1.0, float(least), count, dtype=torch.float64)
            case "leading":
                share = torch.arange(count, 0, -1).double() / count - (1 / count - float(least))
            case "trailing":
                share = torch.arange(count, 0, -1).double() / count
        return (self._shifted(share) * self.steps).tolist()

    def _shifted(self, share: Tensor) -> Tensor:
        return self.shift * share / (1 + (self.shift - 1) * share)


def _check_count(count: int, steps: int) -> None:
    if not 1 <= count <= steps:
        raise ValueError(f"a sampler takes 1 to {steps} steps of this schedule, {count} were asked for")


@lru_cache(maxsize=32)
def _left(betas: str, steps: int, first: float, last: float) -> Tensor:
    """(steps + 1) float32: share of the variance that is the picture's, 1 before the first step. Do not write to it."""
    match betas:
        case "linear":
            beta = torch.linspace(first, last, steps, dtype=torch.float64)
        case "scaled":
            beta = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()
        case _:
            share = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
            beta = torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(share)]).double()
    with torch.inference_mode(False):
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)]).float()
