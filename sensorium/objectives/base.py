"""What every objective is, so that packing, accumulation and ranks change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sensorium.config import Config
from sensorium.sequence import Sequence as Packed


@dataclass(slots=True)
class Loss:
    """sum over weighted targets, and their total weight: `Objective.count` of the same sequence.

    report  detached numbers for the log: name -> (sum, count)
    """

    sum: Tensor
    count: Tensor
    report: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(slots=True)
class Share:
    """What one micro-batch brings to a loss over all examples of a step.

    rows   name -> (N, ...), a row an example; those of all micro-batches and ranks are joined
    terms  name -> (), the same in every micro-batch: learned scales and the like
    """

    rows: dict[str, Tensor]
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    @classmethod
    def join(cls, shares: Sequence[Share]) -> Share:
        """The rows of all, in order; the terms of the first."""
        rows = {name: torch.cat([share.rows[name] for share in shares]) for name in shares[0].rows}
        return cls(rows, shares[0].terms)


class Objective(Config):
    """(outputs of the wiring, sequence) -> Loss.

    A step's loss is the sum over objectives of weight * sum / count, where sum and count run over all micro-batches of
    the step and all ranks. So counts are asked before anything is computed, from the data alone.

    name    in the log
    weight  of this objective beside the others of its stage
    """

    name: str
    weight: float = 1.0

    def count(self, sequence: Packed) -> float:
        """Total weight of the targets in a sequence."""
        raise NotImplementedError(f"{self.tag()} does not say how many targets it has")

    def __call__(self, outputs: Any, sequence: Packed) -> Loss:
        raise NotImplementedError(f"{self.tag()} measures nothing")


class StepObjective(Objective):
    """An objective in which every example of a step is compared with every other, over micro-batches and ranks.

    It says what a micro-batch brings (`share`) and what comes of all together (`over`). Training then runs each
    micro-batch twice, so that memory does not grow with the number of examples (train/caching.py).
    """

    def share(self, outputs: Any, sequence: Packed) -> Share:
        raise NotImplementedError(f"{self.tag()} does not say what it compares")

    def over(self, own: Share, every: Share, offset: int) -> Loss:
        """The loss of this rank's examples among all: `own` is the rows of `every` from `offset` on."""
        raise NotImplementedError(f"{self.tag()} measures nothing")

    def __call__(self, outputs: Any, sequence: Packed) -> Loss:
        share = self.share(outputs, sequence)
        return self.over(share, share, 0)
