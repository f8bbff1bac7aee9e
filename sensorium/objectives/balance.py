"""Experts of a mixture are used alike."""

from __future__ import annotations

import torch

from sensorium.errors import UserError
from sensorium.models.wiring import Outputs
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence


class Balance(Objective):
    """The mean over blocks of how unevenly their experts are used, `Routing.balance` (Switch Transformer, Fedus et al.
    2021, arXiv 2101.03961, equation 4: weight 0.01; Mixtral's published configs: 0.001 to 0.02).

    It is that of each micro-batch, which weighs as its tokens. Raises UserError where no block has experts.
    """

    name: str = "balance"
    weight: float = 0.01

    def count(self, sequence: Sequence) -> float:
        return float(len(sequence))

    def __call__(self, outputs: Outputs, sequence: Sequence) -> Loss:
        if not outputs.routings:
            raise UserError("the objective 'balance' needs a backbone whose feed-forward is a mixture of experts, in "
                            "training: take the objective out of the stage")  # fmt: skip
        count = outputs.hidden.new_tensor(self.count(sequence), dtype=torch.float32)
        return Loss(torch.stack([one.balance() for one in outputs.routings]).mean() * count, count)
