"""How surprised a model is: perplexity of answers, and of the tokens of each modality."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score
from sensorium.evaluate.result import Table
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods
from sensorium.models.wiring import Outputs
from sensorium.objectives.language import CHUNK, wanted
from sensorium.sequence import KINDS
from sensorium.sequence import Sequence as Packed


class Perplexity(Metric):
    """exp of the mean negative log-likelihood per token of the first of `item.answers`, over the tokens of all items.

    The table has it for each `item.info["modality"]`, where items have one, and otherwise for each `item.part`.
    Statistics: nats, tokens. Parsed: {"nats": ..., "tokens": ...}.
    """

    needs = "likelihoods"
    names = (Score("perplexity", percent=False, better="lower"),)

    def options(self, item: TaskItem) -> Sequence[str]:
        return item.answers[:1]

    def parse(self, said: str | Likelihoods, item: TaskItem) -> dict[str, float] | None:
        if isinstance(said, str):
            raise TypeError("perplexity reads the likelihood of the right answer, given words")
        if not said.sums or not math.isfinite(said.sums[0]) or not said.counts[0] > 0:
            return None
        return {"nats": -said.sums[0], "tokens": said.counts[0]}

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        """An item without a likelihood has no tokens: it is counted as unreadable, and in no mean."""
        rows = [(0.0, 0.0) if one is None else (one["nats"], one["tokens"]) for one in parsed]
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.exp(sums[..., :1] / sums[..., 1:])

    def tables(self, items: Sequence[TaskItem], rows: Floats) -> list[Table]:
        kinds: dict[str, Floats] = defaultdict(lambda: np.zeros(2))
        for item, row in zip(items, rows):
            kinds[str(item.info.get("modality", item.part))] += row
        if len(kinds) < 2:
            return []
        cells = ((kind, f"{int(sums[1]):,}", f"{self.scores(sums)[0]:.3f}") for kind, sums in kinds.items() if sums[1])
        return [Table("Perplexity by modality", ("modality", "tokens", "perplexity"), tuple(cells))]


@torch.inference_mode()
def nats_by_modality(outputs: Outputs, sequence: Packed) -> dict[str, tuple[float, float]]:
    """{kind: (nats, tokens)} of the weighted tokens of a sequence, by the modality of the token that is predicted.

    Sums of several sequences add up; `perplexities` makes perplexities of them. Of K streams, all count.
    """
    index, targets, weights = wanted(sequence)
    rows = zip(index.split(CHUNK), targets.split(CHUNK))
    losses = [F.cross_entropy(outputs.logits(part).float(), wants, reduction="none") for part, wants in rows]
    if not losses:
        return {}
    weighted = sequence.weight > 0 if sequence.weight.ndim == 1 else (sequence.weight > 0).any(1)
    kinds = sequence.modality[(weighted & (sequence.predecessor() >= 0)).nonzero(as_tuple=True)[0]].long()
    nats = (torch.cat(losses) * weights).double().reshape(len(kinds), -1).sum(1)
    counts = weights.double().reshape(len(kinds), -1).sum(1)
    found = {}
    for kind in kinds.unique().tolist():
        here = kinds == kind
        found[KINDS[kind]] = (float(nats[here].sum()), float(counts[here].sum()))
    return found


def perplexities(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """{kind: (nats, tokens)} -> {kind: perplexity}, of kinds that have tokens."""
    return {kind: math.exp(nats / tokens) for kind, (nats, tokens) in sums.items() if tokens}
