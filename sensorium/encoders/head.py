"""What is read off the features of one view: a pooler's vector, a classifier's scores."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.ffn import Activation, activate
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part


class Head(Part):
    """One vector -> norm -> linear -> activation.

    reads    the feature of the class token, the mean of those of the cells, or both, one behind the other
    norm     of that vector; None: it is read as it is
    out      width of what comes out of the linear layer; 0: there is none
    activation  behind it
    labels   what each number of a classifier is the score of; none where the numbers have no names
    """

    class Config(Value):
        reads: Literal["class", "mean", "both"] = "class"
        norm: Norm.Config | None = None
        out: int = Field(default=0, ge=0)
        activation: Activation | Literal["tanh"] | None = None
        labels: tuple[str, ...] = ()

        @model_validator(mode="after")
        def _labels_fit(self) -> Self:
            if self.labels and len(self.labels) != self.out:
                raise ValueError(f"{len(self.labels)} labels for {self.out} numbers: one each, or none")
            return self

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        read = 2 * width if config.reads == "both" else width
        self.norm = config.norm.build(read) if config.norm is not None else None
        self.linear = nn.Linear(read, config.out) if config.out else None

    def forward(self, x: Tensor, before: int) -> Tensor:
        """x: (V, before + cells, D), the class token first where there is one -> (V, out), or (V, D or 2 D)."""
        whole, mean = x[:, 0], x[:, before:].mean(dim=1)
        read = {"class": [whole], "mean": [mean], "both": [whole, mean]}[self.config.reads]
        y = torch.cat(read, dim=-1)
        y = y if self.norm is None else self.norm(y)
        y = y if self.linear is None else self.linear(y)
        kind = self.config.activation
        return y if kind is None else torch.tanh(y) if kind == "tanh" else activate(y, kind)
