"""What every objective is, so that packing, accumulation and ranks change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sensorium.config import Config
from sensorium.sequence import Sequence


@dataclass(slots=True)
class Loss:
    """sum over weighted targets, and their total weight: `Objective.count` of the same sequence.

    report  detached numbers for the log: name -> (sum, count)
    """

    sum: Tensor
    count: Tensor
    report: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Config):
    """(outputs of the wiring, sequence) -> Loss.

    A step's loss is the sum over objectives of weight * sum / count, where sum and count run over all micro-batches of
    the step and all ranks. So counts are asked before anything is computed, from the data alone.

    name    in the log
    weight  of this objective beside the others of its stage
    """

    name: str
    weight: float = 1.0

    def count(self, sequence: Sequence) -> float:
        """Total weight of the targets in a sequence."""
        raise NotImplementedError(f"{self.tag()} does not say how many targets it has")

    def __call__(self, outputs: Any, sequence: Sequence) -> Loss:
        raise NotImplementedError(f"{self.tag()} measures nothing")
