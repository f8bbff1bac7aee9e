"""Rotary position embedding (Su et al. 2021), half-split convention."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class Scaling(Value):
    """How frequencies were lowered so that a model reads longer texts than it was first trained on.

    kind      linear: all by the factor (Chen et al. 2023, arXiv 2306.15595). llama3: those whose wave is longer than
              `original / low` by the factor, those shorter than `original / high` not at all, and what lies between in
              proportion (Llama Team 2024, arXiv 2407.21783, released configuration). yarn: the same ends, and what lies
              between in proportion to its number in the order of frequencies; queries and keys grow a little, so that
              attention stays as sharp (Peng et al. 2023, arXiv 2309.00071, 3.2 to 3.4)
    low, high  turns of a wave within `original` tokens: below the first it is lowered, above the second kept
    original  the longest text, in tokens, before
    whole     yarn: the ends are rounded outwards to a whole number in the order of frequencies (released code)
    length    yarn: what rotated queries and keys are multiplied by; None: 0.1 ln(factor) + 1
    """

    kind: Literal["linear", "llama3", "yarn"] = "linear"
    factor: float = Field(gt=0)
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    whole: bool = True
    length: float | None = None

    @property
    def grown(self) -> float:
        """What rotated queries and keys are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.length is not None:
            return self.length
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def __call__(self, frequency: Tensor, theta: float) -> Tensor:
        """frequency (R / 2), radians a token, falling from 1 towards 1 / theta -> the lowered ones."""
        if self.kind == "linear":
            return frequency / self.factor
        if self.kind == "yarn":
            kept = self._kept(len(frequency), theta).to(frequency.device)
            return (1 - kept) * frequency / self.factor + kept * frequency
        turns = self.original * frequency / (2 * math.pi)  # of a wave within the original length
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency

    def _kept(self, count: int, theta: float) -> Tensor:
        """(count) how much of each frequency yarn keeps."""
        first, last = (
            count * math.log(self.original / (2 * math.pi * turns)) / math.log(theta) for turns in (self.high, self.low)
        )
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        last = last + 0.001 if first == last else last
        number = torch.arange(count, dtype=torch.float32)
        return 1 - ((number - first) / (last - first)).clamp(0, 1)


class Rope(Part):
    """Tables for rotating queries and keys.

    sections  None: column 0 of the positions turns every frequency. (a, b, c): the first a frequency pairs follow time,
              the next b rows, the last c columns (M-RoPE, Qwen2-VL section 2.1); a + b + c = head width / 2.
    own       each section has frequencies of its own, from 1 to nearly 1 / theta, rather than its part of all of them
              (2-D RoPE: Heo et al. 2024, arXiv 2403.13298; DINOv3, 2508.10104)
    scaling   how frequencies were lowered for longer texts
    share     of a head's width that is turned, its beginning; the rest stays (GPT-NeoX, Persimmon)
    """

    class Config(Value):
        theta: float = 10_000.0
        sections: tuple[int, int, int] | None = None
        own: bool = False
        scaling: Scaling | None = None
        share: float = Field(default=1.0, gt=0, le=1)

    def __init__(self, config: Config, head_width: int) -> None:
        super().__init__()
        head_width = round(head_width * config.share)
        if head_width % 2:
            raise ValueError(f"rotary embedding needs an even head width, got {head_width}")
        self.config = config
        self.head_width = head_width
        if config.sections is not None and sum(config.sections) != head_width // 2:
            raise ValueError(f"rope sections {config.sections} must sum to head width / 2 = {head_width // 2}")

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """position (T, 3) -> cos, sin (T, width that is turned) float32."""
        half = self.head_width // 2
        exponent = torch.arange(half, device=position.device, dtype=torch.float32) / half
        if self.config.own and self.config.sections is not None:
            parts = [torch.arange(size, device=position.device, dtype=torch.float32) / max(size, 1)
                     for size in self.config.sections]  # fmt: skip
            exponent = torch.cat(parts)
        frequency = 1.0 / self.config.theta**exponent
        if self.config.scaling is not None:
            frequency = self.config.scaling(frequency, self.config.theta)
        if self.config.sections is None:
            angle = position[:, :1].float() * frequency
        else:
            turned = [axis for axis, count in enumerate(self.config.sections) for _ in range(count)]
            axis = torch.tensor(turned, device=position.device)
            angle = position.float()[:, axis] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        grown = 1.0 if self.config.scaling is None else self.config.scaling.grown
        return (angle.cos(), angle.sin()) if grown == 1 else (angle.cos() * grown, angle.sin() * grown)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, heads, head width) -> the same, its first R numbers rotated.

    cos, sin (T, R) in x's dtype; sin carries the sign
    """
    if cos.shape[-1] < x.shape[-1]:
        turned = rotate(x[..., : cos.shape[-1]], cos, sin)
        return torch.cat((turned, x[..., cos.shape[-1] :]), dim=-1)
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.roll(x, half, dims=-1) * sin[:, None]


def signed(sin: Tensor) -> Tensor:
    """Negate the first half of sin, so that `rotate` is two products and a roll."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
