"""Do a picture and a text belong together? Learned from pairs that are easily mistaken (ALBEF section 3.2, BLIP-2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.models.dual import DualOutputs, pairs_of
from sensorium.objectives.base import Loss, Objective
from sensorium.objectives.contrastive import fingerprints, similarity
from sensorium.sequence import Sequence


class Matching(Objective):
    """Every pair of a micro-batch; its picture with a text drawn for it, its text with a picture drawn for it.

    What is drawn is never a match: not of this pair, nor of another with the same picture or the same text. The closer
    it lies in the contrastive space, the likelier it is drawn (softmax of the contrastive logits). Draws come from
    torch's generator, which training seeds anew for each step.
    """

    name: str = "matching"

    def count(self, sequence: Sequence) -> float:
        pairs, _ = pairs_of(sequence)
        if not len(pairs):
            return 0.0
        wrong = ~related(sequence, pairs)
        return float(len(pairs) + wrong.any(1)[pairs[:, 0]].sum() + wrong.any(0)[pairs[:, 1]].sum())

    def __call__(self, outputs: DualOutputs, sequence: Sequence) -> Loss:
        images, texts, same = triples(outputs, sequence)
        logits = outputs.matching(images, texts).float()
        count = logits.new_tensor(float(len(same)))
        if not len(same):  # nothing to judge, but every parameter stays in the graph
            zero = logits.sum() + (outputs.image.sum() + outputs.text.sum()) * 0.0
            return Loss(zero, count, {f"{self.name}_accuracy": (zero.detach(), count)})
        right = (logits.argmax(1) == same.long()).sum().to(logits.dtype)
        loss = F.cross_entropy(logits, same.long(), reduction="sum")
        return Loss(loss, count, {f"{self.name}_accuracy": (right, count)})


@torch.no_grad()
def triples(outputs: DualOutputs, sequence: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """(M) pictures, (M) texts, (M) bool whether they are a pair: all pairs, then drawn texts, then drawn pictures."""
    pairs = outputs.pairs
    images, texts = pairs.unbind(1)
    same = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
    if not len(pairs):
        return images, texts, same
    wrong = ~related(sequence, pairs)
    closeness = outputs.scale * similarity(outputs.image, outputs.text)
    drawn_texts, found = _draw(closeness, wrong, images)
    drawn_images, sought = _draw(closeness.T, wrong.T, texts)
    apart = torch.zeros(int(found.sum() + sought.sum()), dtype=torch.bool, device=pairs.device)
    return (
        torch.cat([images, images[found], drawn_images[sought]]),
        torch.cat([texts, drawn_texts[found], texts[sought]]),
        torch.cat([same, apart]),
    )


def _draw(closeness: Tensor, wrong: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each row one column that is wrong for it: (P) columns, (P) bool whether there is one."""
    allowed = wrong.index_select(0, rows)
    share = closeness.float().index_select(0, rows).masked_fill(~allowed, float("-inf"))
    found = allowed.any(1)
    share = torch.where(found[:, None], share, 0.0).softmax(1)
    return torch.multinomial(share, 1)[:, 0], found


def related(sequence: Sequence, pairs: Tensor) -> Tensor:
    """(I, N) whether an item and a text belong together, or an item of the same content and a text of the same tokens.

    pairs  (P, 2) of `pairs_of`
    """
    keys: dict[str, int] = {}
    items = [item for members in sequence.items.values() for item in members]
    kinds = [keys.setdefault(item.key or f"item {index}", len(keys)) for index, item in enumerate(items)]
    item = torch.tensor(kinds, dtype=torch.long, device=pairs.device)
    says = torch.zeros(sequence.documents, dtype=torch.bool, device=pairs.device)
    says[sequence.doc[sequence.weight > 0].long()] = True
    _, text = torch.unique(fingerprints(sequence)[says], return_inverse=True)
    table = torch.zeros(len(keys), int(text.max()) + 1, dtype=torch.bool, device=pairs.device)
    table[item[pairs[:, 0]], text[pairs[:, 1]]] = True
    return table[item][:, text]
