"""Losses over all examples of a step, in the memory of one micro-batch (gradient caching: Gao et al. 2021, 2101.06983).

1. Every micro-batch runs without gradients; what it brings to the loss (`Share`, a few vectors an example) is kept.
2. The loss over all shares gives the gradient of each of them.
3. Every micro-batch runs again, with gradients and the same random numbers; the gradient of its share goes on into the
   weights. The sum over micro-batches is the gradient of one big batch.

Over ranks, the rows of all are gathered; each rank computes the loss of its own rows against all columns, and what
that says of the other ranks' columns is summed up where they live. Nothing here runs within a forward.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any, Protocol

import torch
from torch import Tensor

from sensorium.models.wiring import Wiring
from sensorium.objectives.base import Loss, Objective, Share, StepObjective
from sensorium.sequence import Sequence
from sensorium.train.parallel import ALONE


class Ranks(Protocol):
    """The processes that share a step."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """(N, ...) of this rank, N may differ -> those of all ranks in their order, without gradients."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape."""
        ...


class Cached:
    """The first two passes over a step's micro-batches, made at once; the third is asked for one by one.

    losses  by the number of a StepObjective among the objectives
    """

    def __init__(
        self,
        model: Wiring,
        sequences: list[Sequence],
        objectives: Many[Objective],
        factors: Many[float],
        ranks: Ranks = ALONE,
    ) -> None:
        """factors: what the sum of each objective is multiplied with."""
        self.model, self.sequences = model, sequences
        self.objectives = {n: one for n, one in enumerate(objectives) if isinstance(one, StepObjective)}
        self._random: list[tuple[Tensor, list[Tensor]]] = []
        shares = self._first_pass()
        self.losses: dict[int, Loss] = {}
        self._gradients: dict[int, Share] = {}
        self._places: dict[int, list[int]] = {}
        for number, objective in self.objectives.items():
            own = shares[number]
            self._places[number] = [len(share) for share in own]
            loss, gradient = gradients(objective, Share.join(own), factors[number], ranks)
            self.losses[number], self._gradients[number] = loss, gradient

    @torch.no_grad()
    def _first_pass(self) -> dict[int, list[Share]]:
        shares: dict[int, list[Share]] = {number: [] for number in self.objectives}
        for sequence in self.sequences:
            self._random.append(_random_state())
            outputs = self.model(sequence)
            for number, objective in self.objectives.items():
                shares[number].append(objective.share(outputs, sequence))
        return shares

    def outputs(self, index: int) -> Any:
        """The outputs of micro-batch `index` with gradients, from the random numbers of the first pass."""
        _set_random_state(self._random[index])
        return self.model(self.sequences[index])

    def surrogate(self, number: int, index: int, outputs: Any) -> Tensor:
        """A scalar whose gradient in micro-batch `index` is that of the loss of objective `number` over the step."""
        share, gradient = self.objectives[number].share(outputs, self.sequences[index]), self._gradients[number]
        lengths = self._places[number]
        start = sum(lengths[:index])
        total = torch.zeros((), device=next(iter(share.rows.values())).device)
        for name, slope in gradient.rows.items():
            total = total + (share.rows[name] * slope[start : start + lengths[index]]).sum()
        for name, slope in gradient.terms.items():  # one value that all micro-batches share: counted in the first
            total = total + share.terms[name] * (slope if index == 0 else 0.0)
        return total


def gradients(objective: StepObjective, own: Share, factor: float, ranks: Ranks = ALONE) -> tuple[Loss, Share]:
    """The loss of this rank's rows, and the gradient of factor x its sum over all ranks in the rows of this rank.

    Of terms it is this rank's part alone: gradients of weights are summed over ranks later, and so are theirs.
    """
    own = Share(_leaves(own.rows), _leaves(own.terms))
    every, offset = own, 0
    if ranks.world > 1:
        parts = {name: ranks.gather_rows(rows.detach()) for name, rows in own.rows.items()}
        every = Share(_leaves({name: torch.cat(rows) for name, rows in parts.items()}), own.terms)
        offset = sum(len(rows) for rows in next(iter(parts.values()))[: ranks.rank])
    with torch.enable_grad():
        loss = objective.over(own, every, offset)
        (loss.sum * factor).backward()
    rows = {name: _grad(tensor) for name, tensor in own.rows.items() if tensor.requires_grad}
    if ranks.world > 1:
        for name, slope in rows.items():
            slope += ranks.sum(_grad(every.rows[name]))[offset : offset + len(own)]
    return loss, Share(rows, {name: _grad(term) for name, term in own.terms.items()})


def _leaves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().clone().requires_grad_(one.is_floating_point()) for name, one in tensors.items()}


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
