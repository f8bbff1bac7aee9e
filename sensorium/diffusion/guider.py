"""How predictions with and without the condition are joined."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sensorium.config import Config


class Guider(Config):
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): away from what the model says of nothing.

    scale     1: the conditional prediction alone, and no second pass is made; 0: the unconditional one
    interval  guided only at times whose share of the schedule lies here (Kynkaanniemi et al. 2024, arXiv 2404.07724)
    """

    scale: float = Field(default=3.0, ge=0)
    interval: tuple[float, float] = (0.0, 1.0)

    def guides(self, share: float) -> bool:
        """Whether the unconditional prediction is wanted at a time, given as a share of the schedule, 1 all noise."""
        return self.scale != 1.0 and self.interval[0] <= share <= self.interval[1]

    def join(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Both (N, ...) -> (N, ...)."""
        return unconditional + self.scale * (conditional - unconditional)
