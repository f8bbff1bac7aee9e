"""Codes that are no words: embeddings and a head of their own, beside a vocabulary."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class CodeHead(Part):
    """Between the codes of a codec and a decoder that says them (Janus, Wu et al. 2024, arXiv 2410.13848, section 3.1).

    A code that was said is read through its embedding and linear layers with GELU between them; the next one is said
    from a state through two linear layers.
    """

    class Config(Value):
        """codes: how many. width: of an embedding. depth: linear layers behind it. hidden: width between the two of the
        head, None: the decoder's."""

        codes: int = Field(ge=1)
        width: int = Field(ge=1)
        depth: int = Field(default=2, ge=1)
        hidden: int | None = Field(default=None, ge=1)

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
