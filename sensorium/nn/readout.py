"""What becomes of a last hidden state before the head turns it into logits, and of the logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.ffn import Activation, activate
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part


class Readout(Part):
    """hidden (N, D) -> what the head reads (N, D).

    scale  it is multiplied by this: width^-0.5 where a head shares T5's large embeddings (Raffel et al. 2020, arXiv
           1910.10683, released code)
    dense  a linear layer with this activation, then a norm (BERT's masked-word head, Devlin et al. 2019, released code)
    norm   the one behind the linear layer
    bias   a number for each word is added to its logit, whether the head is the embedding or not
    """

    class Config(Value):
        scale: float = 1.0
        dense: Activation | None = None
        norm: Norm.Config = Norm.Config(kind="layer", eps=1e-12)
        bias: bool = False

    def __init__(self, config: Config, width: int, vocab: int) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(width, width) if config.dense is not None else None
        self.norm = config.norm.build(width) if config.dense is not None else None
        self.bias = nn.Parameter(torch.zeros(vocab)) if config.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.config.scale != 1:
            hidden = hidden * self.config.scale
        if self.dense is not None and self.norm is not None and self.config.dense is not None:
            hidden = self.norm(activate(self.dense(hidden), self.config.dense))
        return hidden

    def shifted(self, logits: Tensor) -> Tensor:
        """logits (N, vocab) with each word's bias."""
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)
