"""What a generator is told, and what it makes of it (NExT-GPT, arXiv 2309.05519, section 4; its equations 1 and 2)."""

from __future__ import annotations

from torch import Tensor

from sensorium.models.generator import Generated
from sensorium.models.wiring import Outputs
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence, made


class _OfGenerator(Objective):
    """Every item that the model is to make counts the same.

    kind  of the generator
    """

    kind: str = "image"

    def count(self, sequence: Sequence) -> float:
        return float(len(sequence.items.get(made(self.kind), ())))

    def __call__(self, outputs: Outputs, sequence: Sequence) -> Loss:
        each = self.each(outputs.generated[self.kind]())
        return Loss(each.sum(), each.new_tensor(float(len(each))))

    def each(self, generated: Generated) -> Tensor:
        """(N) the loss of each item."""
        raise NotImplementedError(f"{self.tag()} measures nothing")


class ConditionDistance(_OfGenerator):
    """Squared distance of the output connector's result to the denoiser's own embeddings of the caption."""

    name: str = "condition"

    def each(self, generated: Generated) -> Tensor:
        return generated.distances()


class GeneratedDenoising(_OfGenerator):
    """The denoising loss under the output connector's result; the denoiser itself may be frozen."""

    name: str = "generated_denoising"

    def each(self, generated: Generated) -> Tensor:
        return generated.errors()
