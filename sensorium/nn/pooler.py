"""One vector for a whole text: what BERT's further heads read."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class Pooler(Part):
    """tanh of a linear layer, of the state of a text's first token (BERT: Devlin et al. 2019, released code).

    classes  logits of so many classes, by a linear layer behind it (BERT's next-sentence prediction: 2); 0: none
    """

    class Config(Value):
        classes: int = Field(default=0, ge=0)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.classes = nn.Linear(width, config.classes) if config.classes else None

    def forward(self, first: Tensor) -> Tensor:
        """first (N, D): of each text the state of its first token -> (N, D)."""
        return self.dense(first).tanh()

    def logits(self, first: Tensor) -> Tensor:
        """first (N, D) -> (N, classes). Raises ValueError where there are none."""
        if self.classes is None:
            raise ValueError("this pooler tells no classes apart")
        return self.classes(self(first))
