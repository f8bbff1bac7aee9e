"""From noise to a picture: which times are visited, and what is done at each.

A sampler is a value and holds nothing between steps: what a step needs of earlier ones is in the `Trail`. States are
of a variance-preserving or flow kind, x = alpha * clean + sigma * noise, at every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from sensorium.config import Config
from sensorium.diffusion.schedule import Schedule, Spacing


@dataclass(slots=True)
class Trail:
    """The times of one run, `clean` at the end, their alpha and sigma, and what has been estimated so far."""

    times: list[float]
    alpha: list[float]
    sigma: list[float]
    clean: list[Tensor] = field(default_factory=list)
    """Estimates of the clean latent at the times visited, of those the sampler looks back to."""

    def __len__(self) -> int:
        return len(self.times) - 1

    def ratio(self, index: int) -> float:
        """log(alpha / sigma) at a time: minus infinity in pure noise, infinity where it is clean."""
        alpha, sigma = self.alpha[index], self.sigma[index]
        return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)


class Sampler(Config):
    """Base. A subclass says `step`.

    steps    how often the denoiser is asked
    spacing  which times those are
    """

    steps: int = Field(default=50, ge=1)
    spacing: Spacing = "trailing"

    @property
    def random(self) -> bool:
        """Whether a step adds noise."""
        return False

    def trail(self, schedule: Schedule) -> Trail:
        """Where the sampler goes."""
        times = [*self.times(schedule), schedule.clean]
        alpha, sigma = schedule.terms(torch.tensor(times))
        return Trail(times, alpha.double().tolist(), sigma.double().tolist())

    def times(self, schedule: Schedule) -> list[float]:
        return schedule.times(self.steps, self.spacing)

    def step(self, trail: Trail, index: int, x: Tensor, clean: Tensor, noise: Tensor, fresh: Tensor | None) -> Tensor:
        """The state at the next time.

        x             (N, ...) at time number `index`
        clean, noise  what the denoiser's output there says of them
        fresh         new noise like x, where the sampler is random
        """
        raise NotImplementedError(f"{self.tag()} takes no steps")

    def run(
        self, trail: Trail, x: Tensor, asked: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        fresh: Callable[[], Tensor], start: int = 0, kept: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The clean end of a trail, from the state x (N, ...) at time number `start`: the one loop of all sampling.

        asked  (state, time number) -> what the denoiser there says of the clean latent and of the noise
        fresh  new noise like x, drawn where the sampler is random
        kept   (state, time number) -> the state, with what is put back after each step; None: nothing is
        """
        for index in range(start, len(trail)):
            clean, noise = asked(x, index)
            more = fresh() if self.random and index + 1 < len(trail) else None
            x = self.step(trail, index, x, clean, noise, more)
            x = x if kept is None else kept(x, index + 1)
        return x


class DDIM(Sampler):
    """Song et al. 2020 (arXiv 2010.02502), equation 12.

    eta  0: deterministic; 1: as random as DDPM
    """

    eta: float = Field(default=0.0, ge=0, le=1)

    @property
    def random(self) -> bool:
        return self.eta > 0

    def step(self, trail: Trail, index: int, x: Tensor, clean: Tensor, noise: Tensor, fresh: Tensor | None) -> Tensor:
        after, sigma = trail.alpha[index + 1], trail.sigma[index + 1]
        std = self.eta * _ancestral(trail, index)
        x = after * clean + math.sqrt(max(0.0, sigma**2 - std**2)) * noise
        return x if fresh is None or std == 0 else x + std * fresh


class DDPM(Sampler):
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2; over fewer steps: Nichol and Dhariwal 2021,
    arXiv 2102.09672, section 4).

    large  the variance of a step is beta, the upper of its two bounds, not that of the posterior (section 3.2)
    clip   the picture is held within -clip and clip; None: not at all
    """

    large: bool = False
    clip: float | None = Field(default=None, gt=0)

    @property
    def random(self) -> bool:
        return True

    def step(self, trail: Trail, index: int, x: Tensor, clean: Tensor, noise: Tensor, fresh: Tensor | None) -> Tensor:
        alpha, sigma = trail.alpha[index], trail.sigma[index]
        after, rest = trail.alpha[index + 1], trail.sigma[index + 1]
        if self.clip is not None:
            clean = clean.clamp(-self.clip, self.clip)
        std = _ancestral(trail, index)
        # the mean of the posterior (DDPM equation 7), written with what x and the picture leave for the noise
        x = after * clean + math.sqrt(max(0.0, rest**2 - std**2)) / sigma * (x - alpha * clean)
        if self.large and rest > 0:
            std = math.sqrt(1 - (alpha / after) ** 2)
        return x if fresh is None or rest == 0 else x + std * fresh


class Euler(Sampler):
    """One step along the tangent of the probability-flow equation in the ratio sigma / alpha (Karras et al. 2022,
    arXiv 2206.00364, algorithm 1 without churn); of rectified flow, x + (s' - s) * velocity.
    """

    def step(self, trail: Trail, index: int, x: Tensor, clean: Tensor, noise: Tensor, fresh: Tensor | None) -> Tensor:
        return trail.alpha[index + 1] * clean + trail.sigma[index + 1] * noise


class DPMSolver(Sampler):
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one evaluation a step."""

    steps: int = Field(default=20, ge=1)
    spacing: Spacing = "linspace"

    def times(self, schedule: Schedule) -> list[float]:
        """Evenly spaced times are nodes, of which the last one is the clean end; in a discrete schedule whole ones."""
        if self.spacing != "linspace":
            return super().times(schedule)
        nodes = schedule.times(self.steps + 1, "linspace")[:-1]
        return [float(round(time)) for time in nodes] if schedule.clean < 0 else nodes

    def step(self, trail: Trail, index: int, x: Tensor, clean: Tensor, noise: Tensor, fresh: Tensor | None) -> Tensor:
        after, sigma, rest = trail.alpha[index + 1], trail.sigma[index], trail.sigma[index + 1]
        stride = trail.ratio(index + 1) - trail.ratio(index)
        best = clean
        if trail.clean and rest > 0:  # the last step is of first order: nothing lies beyond the clean end
            past = (trail.ratio(index) - trail.ratio(index - 1)) / stride
            best = clean + (clean - trail.clean[-1]) * (0.5 / past)
        trail.clean[:] = [clean]
        return (rest / sigma) * x - after * math.expm1(-stride) * best


def _ancestral(trail: Trail, index: int) -> float:
    """Standard deviation of the posterior at the next time: that of DDPM, where the schedule preserves variance."""
    if trail.alpha[index] == 0:
        return trail.sigma[index + 1]
    before, after = (trail.sigma[place] / trail.alpha[place] for place in (index, index + 1))
    return trail.alpha[index + 1] * after * math.sqrt(max(0.0, 1 - (after / before) ** 2))
