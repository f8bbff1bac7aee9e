"""Passes in which text reads items: whether they belong together, and what comes next (BLIP-2, arXiv 2301.12597, 3.1).

One text stack, three attention rules: in the contrastive pass (`Dual.forward`) items and text see nothing of each
other; in `judge` all see all; in `speak` text sees its item and the words before it, and the item sees no text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.errors import UserError
from sensorium.mask import Rule
from sensorium.models.wiring import Outputs
from sensorium.nn.backbone import Backbone
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features
from sensorium.sequence import Sequence

if TYPE_CHECKING:
    from sensorium.models.dual import Dual


@runtime_checkable
class Reader(Protocol):
    """A connector whose queries read features, and text beside them, in one stack (a Q-Former)."""

    @property
    def stack(self) -> Backbone: ...

    def read(
        self, features: Features | None, texts: list[Tensor] | None = None, kind: Rule = "full"
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of the queries, equally many an item, and of the words."""
        ...


class GroundingHead(nn.Module):
    """match: apart or together. The rest is BERT's head over words (Devlin et al. 2019, appendix A.2)."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.match = nn.Linear(width, 2)
        self.transform = nn.Linear(width, width)
        self.norm = Norm.Config(kind="layer", eps=1e-12).build(width)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def words(self, hidden: Tensor, stack: Backbone) -> Tensor:
        """hidden (N, D) -> logits (N, vocab)."""
        return stack.logits(self.norm(F.gelu(self.transform(hidden)))) + self.bias


class MatchingHead(nn.Module):
    """match: apart or together, of the state at a text's first token (ALBEF, arXiv 2107.07651, section 3.2; BLIP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.match = nn.Linear(width, 2)


class Grounding:
    """The two passes over one packed sequence, each run only when it is asked for."""

    def __init__(self, model: Dual, sequence: Sequence, features: dict[str, Features], texts: Tensor) -> None:
        """texts: (N) the document of each text."""
        [(kind, self.features)] = features.items()
        reader = model.connectors[kind]
        assert isinstance(reader, Reader)
        self.kind, self.reader, self.head, self.start = kind, reader, model.grounding, model.config.start
        self.sequence, self.texts = sequence, texts
        self.documents = sequence.ids.split(torch.bincount(sequence.doc.long(), minlength=sequence.documents).tolist())

    def judge(self, images: Tensor, texts: Tensor) -> Tensor:
        """(M) items and (M) texts, by number -> (M, 2) logits: the mean over queries that have read both."""
        assert isinstance(self.head, GroundingHead)
        if not len(images):
            return self.head.match(self.features.values.new_zeros(0, self.head.match.in_features))
        words = [self.documents[document] for document in self.texts[texts].tolist()]
        queries, _ = self.reader.read(self._features(images.tolist()), words)
        return self.head.match(queries).view(len(images), -1, 2).mean(1)

    def speak(self) -> Outputs:
        """Every token of the sequence, having read its document's item and the tokens before it."""
        head = self.head
        assert isinstance(head, GroundingHead)
        seen: list[list[int]] = [[] for _ in self.documents]
        for span in self.sequence.spans:
            if span.kind == self.kind:
                seen[int(self.sequence.doc[span.start])].append(span.item)
        if max(map(len, seen), default=0) > 1:
            raise UserError(f"a text reads one {self.kind} in this pass, a document has {max(map(len, seen))}: "
                            "give each its own sample")  # fmt: skip
        with_item = [document for document, items in enumerate(seen) if items]
        alone = [document for document, items in enumerate(seen) if not items]
        made: dict[int, Tensor] = {}
        for chosen in filter(None, (with_item, alone)):
            words = [self._begun(document) for document in chosen]
            features = self._features([seen[document][0] for document in chosen]) if chosen is with_item else None
            _, hidden = self.reader.read(features, words, "prefix")
            made |= dict(zip(chosen, hidden.split([len(text) for text in words])))
        hidden = torch.cat([made[document] for document in range(len(seen))])
        return Outputs(hidden, lambda index: head.words(hidden.index_select(0, index), self.reader.stack))

    def _begun(self, document: int) -> Tensor:
        """The document's ids, its first one replaced by the mark of a text that is to be said."""
        ids = self.documents[document]
        return ids if self.start is None else torch.cat([ids.new_tensor([self.start]), ids[1:]])

    def _features(self, items: list[int]) -> Features:
        """The features of some items; they may repeat."""
        values = self.features.values.split(self.features.lengths)
        return Features(torch.cat([values[item] for item in items]), [self.features.grids[item] for item in items])


def passes(
    model: Dual, sequence: Sequence, features: dict[str, Features], texts: Tensor
) -> tuple[Callable[[], Outputs] | None, Callable[[Tensor, Tensor], Tensor] | None]:
    """What `DualOutputs` calls `language` and `match`; None in a model without them."""
    if model.grounding is None:
        return None, None
    if isinstance(model.grounding, MatchingHead):
        return None, partial(model.judge, sequence, features, texts)
    grounding = Grounding(model, sequence, features, texts)
    return grounding.speak, grounding.judge
