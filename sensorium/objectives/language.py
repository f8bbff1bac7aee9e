"""Next-token prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sensorium.models.wiring import Outputs
from sensorium.objectives.base import Loss, Objective
from sensorium.sequence import Sequence

CHUNK = 4096
"""Rows of logits at a time. More are made in pieces, and made again in the backward pass, so that memory is bounded by
CHUNK x vocab whatever the number of targets (what gradient checkpointing does to blocks: Chen et al. 2016)."""


class NextToken(Objective):
    """Cross-entropy of every token with weight > 0, given what comes before it in its document and branch.

    The head runs only at those tokens. Sum and count are returned apart (Loss), weighted by `Sequence.weight`.

    z  weight of log(Z)^2, Z being the sum of exp(logits): it keeps logits from drifting (Chameleon, arXiv 2405.09818,
       section 2.3: 1e-5)
    """

    name: str = "next_token"
    z: float = Field(default=0.0, ge=0)

    def count(self, sequence: Sequence) -> float:
        return float(wanted(sequence)[2].sum())

    def __call__(self, outputs: Outputs, sequence: Sequence) -> Loss:
        index, targets, weights = wanted(sequence)
        if index.numel() == 0:  # nothing to learn here, but every parameter stays in the graph
            zero = outputs.hidden.sum() * 0.0 + outputs.logits(index).sum()
            return Loss(zero.float(), weights.sum())

        def piece(start: int) -> Tensor:
            part = slice(start, start + CHUNK)
            logits = outputs.logits(index[part]).float()
            loss = F.cross_entropy(logits, targets[part], reduction="none")
            if self.z:
                loss = loss + self.z * logits.logsumexp(-1).square()
            return (loss * weights[part]).sum()

        if index.numel() <= CHUNK:
            return Loss(piece(0), weights.sum())
        total = outputs.hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, index.numel(), CHUNK):
            total = total + checkpoint(piece, start, use_reentrant=False)  # type: ignore[operator]
        return Loss(total, weights.sum())


def wanted(sequence: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """(N) places whose hidden state predicts a weighted token, (N) that token, (N) its weight."""
    before = sequence.predecessor()
    places = ((sequence.weight > 0) & (before >= 0)).nonzero(as_tuple=True)[0]
    return before[places], sequence.ids[places], sequence.weight[places]


def log_likelihood(outputs: Outputs, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """Per (document, branch): sum of weighted log-probabilities, and their weight. Both (documents, branches + 1)."""
    index, targets, weights = wanted(sequence)
    rows = zip(index.split(CHUNK), targets.split(CHUNK))
    losses = [F.cross_entropy(outputs.logits(part).float(), wants, reduction="none") for part, wants in rows]
    chosen = -torch.cat(losses) * weights
    places = ((sequence.weight > 0) & (sequence.predecessor() >= 0)).nonzero(as_tuple=True)[0]
    branches = int(sequence.branch.max()) + 1
    cell = sequence.doc[places].long() * branches + sequence.branch[places].long()
    size = sequence.documents * branches
    sums = torch.zeros(size, dtype=torch.float64, device=cell.device).index_add_(0, cell, chosen.double())
    counts = torch.zeros(size, dtype=torch.float64, device=cell.device).index_add_(0, cell, weights.double())
    return sums.view(-1, branches), counts.view(-1, branches)
