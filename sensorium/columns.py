"""The columns of a sequence while it is written, token by token or many at a time."""

from __future__ import annotations

from array import array

import numpy as np
import torch

from sensorium.sequence import Item, Sequence, Span


class Columns:
    """Ids, weights, modalities, branches and places (time, row, column) of the tokens so far.

    They are arrays of numbers: lists of as many objects take a hundred bytes a token, of a page of text as of a book.
    """

    def __init__(self) -> None:
        self.ids, self.weights, self.modality, self.branch = array("q"), array("f"), array("B"), array("q")
        self.places = array("q")

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, token: int, weight: float, kind: int, branch: int, place: tuple[int, int, int]) -> None:
        """kind: number of its modality; 0 is text."""
        self.ids.append(token)
        self.weights.append(weight)
        self.modality.append(kind)
        self.branch.append(branch)
        self.places.extend(place)

    def extend(self, ids: list[int], weight: float, branch: int, first: int) -> None:
        """Words, one behind the other from the place `first` on."""
        count = len(ids)
        self.ids.extend(ids)
        self.weights.extend(array("f", (weight,)) * count)
        self.modality.frombytes(bytes(count))
        self.branch.extend(array("q", (branch,)) * count)
        self.places.frombytes(np.arange(first, first + count, dtype=np.int64).repeat(3).tobytes())

    def trunk_end(self) -> int:
        """The place behind all that is in no branch."""
        if not self.ids:
            return 0
        places = np.frombuffer(self.places, np.int64).reshape(-1, 3)
        return int(places[np.frombuffer(self.branch, np.int64) == 0].max(initial=-1)) + 1

    def sequence(self, spans: list[Span], items: dict[str, list[Item]]) -> Sequence:
        """One document. Its tensors are these arrays, to which nothing can be added from then on."""
        self.weights[0] = 0.0  # nothing predicts the first token of a document
        return Sequence(
            ids=torch.frombuffer(self.ids, dtype=torch.int64),
            modality=torch.frombuffer(self.modality, dtype=torch.uint8),
            position=torch.frombuffer(self.places, dtype=torch.int64).view(-1, 3),
            doc=torch.zeros(len(self.ids), dtype=torch.long),
            branch=torch.frombuffer(self.branch, dtype=torch.int64),
            weight=torch.frombuffer(self.weights, dtype=torch.float32),
            spans=spans,
            items=items,
        )
