"""Fixed positions of tokens in one dimension: sines and cosines (Vaswani et al. 2017, section 3.5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class Sinusoid(Part):
    """position (T) -> (T, D): sines of all frequencies, then their cosines; zeros at negative positions.

    Frequencies fall from 1 to 1 / theta, the last included, as tensor2tensor and fairseq have it.

    first  the number that position 0 counts as: fairseq leaves out those up to the padding token's id (Kosmos-2)
    """

    class Config(Value):
        first: int = Field(default=0, ge=0)
        theta: float = 10_000.0

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if width < 4:
            raise ValueError(f"sines and cosines need a width of at least 4, got {width}")
        self.config, self.width = config, width

    def forward(self, position: Tensor) -> Tensor:
        """float32, for any dtype of the model."""
        half = self.width // 2
        number = torch.arange(half, device=position.device, dtype=torch.float32)
        frequency = torch.exp(number * -(math.log(self.config.theta) / (half - 1)))
        angle = (position + self.config.first).float()[:, None] * frequency
        table = torch.cat([angle.sin(), angle.cos()], dim=1) * (position >= 0)[:, None]
        return F.pad(table, (0, self.width - 2 * half))
