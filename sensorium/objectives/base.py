"""What every objective returns, so that packing, accumulation and ranks change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sensorium.sequence import Sequence


@dataclass(slots=True)
class Loss:
    """sum over weighted targets, and their total weight. The trainer divides once, by the global count.

    report  detached numbers for the log: name -> (sum, count)
    """

    sum: Tensor
    count: Tensor
    report: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(Protocol):
    def __call__(self, outputs: Any, sequence: Sequence) -> Loss: ...
