"""Pictures and their texts close to each other, far from all others: CLIP, SigLIP and UniCL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sensorium.models.dual import DualOutputs, pairs_of
from sensorium.objectives.base import Loss, Share, StepObjective
from sensorium.sequence import Sequence

CELLS = 1 << 22
"""Similarities at a time. More are made in pieces, and made again in the backward pass, so that memory is bounded
whatever the number of pairs: never more than CELLS of the pairs x pairs table."""


class Contrastive(StepObjective):
    """Every pair of a step against all others.

    kind    softmax: which text is this picture's, and which picture this text's; half the sum of both cross-entropies
            (InfoNCE; CLIP, arXiv 2103.00020, figure 3). sigmoid: of each picture and text, whether they are a pair
            (SigLIP, arXiv 2303.15343, algorithm 1)
    labels  pairs of one label are all positives of each other, their share spread evenly (UniCL, arXiv 2204.03610,
            section 3.2). The label of a pair is its text: equal tokens, equal label
    """

    name: str = "contrastive"
    kind: Literal["softmax", "sigmoid"] = "softmax"
    labels: bool = False

    def count(self, sequence: Sequence) -> float:
        return float(len(pairs_of(sequence)[0]))

    def share(self, outputs: DualOutputs, sequence: Sequence) -> Share:
        """Of each pair: image (P, Q, E), text (P, E), label (P)."""
        images, texts = outputs.pairs.unbind(1)
        rows = {
            "image": outputs.image.index_select(0, images),
            "text": outputs.text.index_select(0, texts),
            "label": fingerprints(sequence)[outputs.texts[texts]],
        }
        terms = {"scale": outputs.scale}
        return Share(rows, terms if outputs.bias is None else {**terms, "bias": outputs.bias})

    def over(self, own: Share, every: Share, offset: int) -> Loss:
        """Own pairs (P) against all (N): never more than own rows of the table, in pieces of at most CELLS cells."""
        pairs, everyone = len(own), len(every)
        count = own.rows["image"].new_tensor(float(pairs))
        if not pairs:  # nothing to compare, but every parameter stays in the graph
            parts = [*own.rows.values(), *every.rows.values(), *own.terms.values()]
            zero = torch.stack([part.sum() * 0.0 for part in parts if part.is_floating_point()]).sum()
            return Loss(zero, count, {"in_batch_accuracy": (zero.detach(), count)})
        step = max(1, CELLS // (everyone * own.rows["image"].shape[1]))
        total, right = own.rows["image"].new_zeros(()), own.rows["image"].new_zeros(())

        def piece(start: int) -> Tensor:
            part = slice(start, start + step)
            place = torch.arange(offset + start, offset + min(start + step, pairs), device=count.device)
            return self._rows(own, every, part, place)

        again: Callable[..., Tensor] = checkpoint if step < pairs else _once  # type: ignore[assignment]
        for start in range(0, pairs, step):
            sums = again(piece, start, use_reentrant=False)
            total, right = total + sums[0], right + sums[1].detach()
        scale = own.terms["scale"].detach()
        return Loss(total, count, {"in_batch_accuracy": (right, count), "scale": (scale, torch.ones_like(scale))})

    def _rows(self, own: Share, every: Share, part: slice, place: Tensor) -> Tensor:
        """Loss of some own pairs, and how many pictures are closest to a text of theirs: (2).

        place (R) where those pairs stand among all.
        """
        logits = self._logits(own, similarity(own.rows["image"][part], every.rows["text"]))
        same = own.rows["label"][part, None] == every.rows["label"][None]
        positive = same if self.labels else F.one_hot(place, len(every)).bool()
        right = same.gather(1, logits.argmax(1, keepdim=True)).sum()
        if self.kind == "sigmoid":
            return torch.stack([-F.logsigmoid(torch.where(positive, logits, -logits)).sum(), right.to(logits.dtype)])
        target = positive.to(logits.dtype) / positive.sum(1, keepdim=True)
        back = self._logits(own, similarity(every.rows["image"], own.rows["text"][part]).T)
        loss = 0.5 * (F.cross_entropy(logits, target, reduction="sum") + F.cross_entropy(back, target, reduction="sum"))
        return torch.stack([loss, right.to(loss.dtype)])

    @staticmethod
    def _logits(own: Share, similar: Tensor) -> Tensor:
        logits = own.terms["scale"] * similar
        return logits + own.terms["bias"] if "bias" in own.terms else logits


def _once(function: Callable[[int], Tensor], start: int, use_reentrant: bool) -> Tensor:
    return function(start)


def similarity(image: Tensor, text: Tensor) -> Tensor:
    """image (I, Q, E), text (N, E), unit vectors -> (I, N): the largest cosine over Q (BLIP-2 section 3.1)."""
    return (image.flatten(0, 1) @ text.T).view(image.shape[0], image.shape[1], -1).amax(1)


def fingerprints(sequence: Sequence) -> Tensor:
    """(documents) a number for each document's tokens: equal tokens, equal number; others differ (chance 2^-64).

    A sum over tokens of SplitMix64's mixer of token and place; 64-bit integers wrap around on every device.
    """
    ids, doc = sequence.ids.long(), sequence.doc.long()
    starts = torch.cumsum(torch.bincount(doc, minlength=sequence.documents), 0)
    starts = starts - torch.bincount(doc, minlength=sequence.documents)
    place = torch.arange(len(ids), device=ids.device) - starts[doc]
    mixed = (ids + 1) * -7046029254386353131 + (place + 1) * -4265267296055464877
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return torch.zeros_like(starts).index_add_(0, doc, mixed ^ (mixed >> 31))
