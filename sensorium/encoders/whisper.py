"""Whisper's encoder (Radford et al. 2022, arXiv 2212.04356, section 2.2): a log-mel spectrogram, two convolutions, a
Transformer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.encoders.base import Encoder
from sensorium.encoders.vit import view_layout
from sensorium.errors import UserError
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Grid
from sensorium.sequence import Waveform

LINEAR_MEL, LINEAR_HZ, STEP = 15.0, 1000.0, math.log(6.4) / 27
"""Slaney's mel scale: linear up to 1000 Hz, which are 15 mel, then 27 mel for a factor of 6.4."""


class LogMel(Value):
    """A sound becomes a spectrogram of as many seconds, silence behind it, cut where it is longer.

    rate     samples a second that are expected
    mels     frequency bands, from 0 Hz to `highest`, each weighing as much (Slaney's filters)
    window   samples of a Fourier transform, Hann-weighted
    hop      samples from one to the next
    seconds  of a spectrogram

    Powers become log10, at least 8 below the largest, shifted and scaled to about -1 to 1 (released code).
    """

    rate: int = Field(default=16_000, ge=1)
    mels: int = Field(default=80, ge=1)
    window: int = Field(default=400, ge=2)
    hop: int = Field(default=160, ge=1)
    seconds: int = Field(default=30, ge=1)
    highest: float = 8000.0

    @property
    def frames(self) -> int:
        """Columns of a spectrogram."""
        return self.seconds * self.rate // self.hop

    def __call__(self, sound: Waveform) -> Tensor:
        """-> (mels, frames) float32. Raises UserError for a sound of another rate."""
        if sound.rate != self.rate:
            raise UserError(f"a sound of {sound.rate} samples a second was given, {self.rate} are expected: resample "
                            "it (SoundFile does)")  # fmt: skip
        samples = torch.as_tensor(sound.samples, dtype=torch.float32)
        whole = self.seconds * self.rate
        samples = F.pad(samples[:whole], (0, max(0, whole - len(samples))))
        window = torch.hann_window(self.window)
        found = torch.stft(samples, self.window, self.hop, window=window, return_complex=True)[:, : self.frames]
        power = mel_filters(self.mels, 1 + self.window // 2, self.rate, self.highest) @ found.abs().square()
        logs = power.clamp(min=1e-10).log10()
        return (torch.maximum(logs, logs.max() - 8) + 4) / 4


@lru_cache(maxsize=8)
def mel_filters(mels: int, bins: int, rate: int, highest: float) -> Tensor:
    """(mels, bins) float32 triangles between neighbouring points of the mel scale, each of area 1 in Hz."""
    top = LINEAR_HZ * math.exp(STEP * (_mel(highest) - LINEAR_MEL)) if _mel(highest) > LINEAR_MEL else highest
    points = torch.linspace(0, _mel(top), mels + 2, dtype=torch.float64)
    hertz = torch.where(points < LINEAR_MEL, points * LINEAR_HZ / LINEAR_MEL,
                        LINEAR_HZ * torch.exp(STEP * (points - LINEAR_MEL)))  # fmt: skip
    at = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rising = (at - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - at) / (hertz[2:] - hertz[1:-1])[:, None]
    return (torch.minimum(rising, falling).clamp(min=0) * (2 / (hertz[2:] - hertz[:-2]))[:, None]).float()


def _mel(hertz: float) -> float:
    return hertz * LINEAR_MEL / LINEAR_HZ if hertz < LINEAR_HZ else LINEAR_MEL + math.log(hertz / LINEAR_HZ) / STEP


class WhisperEncoder(Encoder):
    """Spectrogram -> two convolutions over time, the second halving it -> positions -> blocks.

    Every sound becomes as many features, one row of a grid: whatever is shorter ends in silence.
    """

    class Config(Encoder.Config):
        """backbone  the stack, without vocabulary; positions of it are a table that comes with the weights"""

        sound: LogMel = LogMel()
        backbone: Backbone.Config

        @model_validator(mode="after")
        def _halves(self) -> Self:
            if self.sound.frames % 2 or self.backbone.vocab:
                raise ValueError(f"{self.sound.frames} frames are halved, and the stack has no vocabulary: "
                                 f"{self.backbone.vocab} given")  # fmt: skip
            return self

        @property
        def width(self) -> int:
            return self.backbone.width

        @property
        def cells(self) -> tuple[int, int]:
            return 1, self.sound.frames // 2

        def grid(self, shape: tuple[int, ...]) -> Grid:
            """shape: (samples)"""
            return Grid(*self.cells)

        def view(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
            return self.sound.mels, self.sound.frames

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.width
        self.enter = nn.Conv1d(config.sound.mels, width, 3, padding=1)
        self.halve = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.place = nn.Parameter(sinusoids(config.cells[1], width), requires_grad=False)
        self.backbone: Backbone = config.backbone.build()

    def preprocess(self, image: Any) -> Tensor:
        """A Waveform -> (1, mels, frames)."""
        return self.config.sound(image)[None]

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, mels, frames) -> (V, frames / 2, D)."""
        x = F.gelu(self.halve(F.gelu(self.enter(views)))).transpose(1, 2) + self.place.to(views.dtype)
        count, length = x.shape[:2]
        return self.backbone(x.flatten(0, 1), view_layout(count, length, x.device)).view(count, length, -1)


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sin in the first half, cos in the second; wavelengths from 2 pi to 20,000 pi (released code)."""
    frequency = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
