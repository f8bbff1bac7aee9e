"""What comes back of an item that went through a codec."""

from __future__ import annotations

from typing import Any

import torch

from sensorium.models.wiring import CodecOutputs
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence


class Reconstruct(Objective):
    """Error of the pixels, with what the codec itself adds (commitment, divergence); every item counts once.

    kind      of the items
    squared, absolute  weights of the mean squared and the mean absolute error of an item's values
    weights   of the codec's own losses by name (`Coded.losses`); 1 where none is given
    """

    name: str = "reconstruction"
    kind: str = "image"
    squared: float = 1.0
    absolute: float = 0.0
    weights: dict[str, float] = {}

    def count(self, sequence: Sequence) -> float:
        return float(len(sequence.items.get(self.kind, ())))

    def __call__(self, outputs: Any, sequence: Sequence) -> Loss:
        if not isinstance(outputs, CodecOutputs) or self.kind not in outputs.batches:
            raise ValueError(f"nothing here reconstructs {self.kind}s: give the stage a wiring of codecs alone, "
                             f"Wiring.Config(codecs={{{self.kind!r}: ...}})")  # fmt: skip
        total = torch.zeros((), dtype=torch.float32, device=sequence.ids.device)
        report: dict[str, Any] = {}
        for pixels, coded in outputs.batches[self.kind]:
            off = (coded.pixels.float() - pixels.float()).flatten(1)
            squared, absolute = off.square().mean(1), off.abs().mean(1)
            losses = {"squared": squared, "absolute": absolute, **coded.losses}
            weights = {"squared": self.squared, "absolute": self.absolute, **self.weights}
            unknown = sorted(set(self.weights) - set(coded.losses))
            if unknown:
                raise ValueError(f"weights of {unknown}, the codec's losses are {sorted(coded.losses)}")
            for name, values in losses.items():
                weight = weights.get(name, 1.0)
                if weight:
                    total = total + weight * values.float().sum()
            number = torch.tensor(float(len(pixels)), device=total.device)
            found = {name: (values.detach().float().sum(), number) for name, values in losses.items()}
            for name, (value, many) in {**found, **coded.report}.items():
                before = report.get(name, (0.0, 0.0))
                report[name] = (before[0] + value, before[1] + many)
        return Loss(total, torch.tensor(self.count(sequence)), report)
