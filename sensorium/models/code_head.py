"""Codes that are no words: embeddings and a head of their own, beside a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.codecs.tokens import CodeTokens
from sensorium.config import Config as Value
from sensorium.models.marks import Marks
from sensorium.nn.part import Part


class CodeHead(Part):
    """Between the codes of a codec and a decoder that says them (Janus, Wu et al. 2024, arXiv 2410.13848, section 3.1).

    A code that was said is read through its embedding and linear layers with GELU between them; the next one is said
    from a state through two linear layers.
    """

    class Config(Value):
        """codes: how many. width: of an embedding. depth: linear layers behind it. hidden: width between the two of the
        head, None: the decoder's. blank: as of `CodeTokens`."""

        codes: int = Field(ge=1)
        width: int = Field(ge=1)
        depth: int = Field(default=2, ge=1)
        hidden: int | None = Field(default=None, ge=1)
        blank: int | None = None

    def __init__(self, config: Config, width: int) -> None:
        """width: of the decoder."""
        super().__init__()
        self.embedding = nn.Embedding(config.codes, config.width)
        widths = [config.width, *[width] * config.depth]
        self.enter = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        hidden = config.hidden or width
        self.leave = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, config.codes)])

    def embed(self, codes: Tensor) -> Tensor:
        """codes (N) -> (N, D), what the decoder reads of them."""
        x = self.embedding(codes)
        for index, layer in enumerate(self.enter):
            x = layer(x if index == 0 else F.gelu(x))
        return x

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, codes), logits of the next one."""
        first, second = self.leave
        return second(F.gelu(first(hidden)))


class CodeHeads(nn.ModuleDict):
    """By kind, codes beside one vocabulary: their ids begin where it ends, kind by kind."""

    def embed(self, ids: Tensor, embedded: Tensor, words: int) -> Tensor:
        """ids (T), embedded (T, D) of those below `words` -> (T, D), codes as their own embeddings have them."""
        first = words
        for head in self.values():
            assert isinstance(head, CodeHead)
            size = head.embedding.num_embeddings
            own = ((ids >= first) & (ids < first + size)).nonzero()[:, 0]
            if len(own):
                embedded = embedded.index_copy(0, own, head.embed(ids[own] - first))
            first += size
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, codes of all kinds)."""
        return torch.cat([hidden[:, :0], *(head(hidden) for head in self.values())], dim=1)


def formats(codes: Mapping[str, CodeHead.Config], marks: Mapping[str, Marks], words: int) -> dict[str, CodeTokens]:
    """How items in codes beside a vocabulary of `words` stand among these: between the marks of those that are read.

    Kinds without one mark that opens and one that closes are not said.
    """
    found, first = {}, words
    for kind, head in codes.items():
        around = marks.get(kind, Marks())
        if len(around.open) == len(around.close) == 1:
            found[kind] = CodeTokens(first=first, codes=head.codes, open=around.open[0], close=around.close[0],
                                     row=around.row, blank=head.blank)  # fmt: skip
        first += head.codes
    return found
