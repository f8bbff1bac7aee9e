"""A model that another one listens to: what it thinks, from the middle of its stack."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.models.wiring import Outputs, Wiring
from sensorium.nn.part import Part
from sensorium.sequence import Sequence


class Thinker(Part):
    """A whole model with a backbone; its states behind some blocks, added up and projected, are tokens for another.

    Qwen2.5-Omni (arXiv 2503.20215, section 2.4): a talker speaks from the thinker's states, which tell tone and intent,
    and from the embeddings of its words, which tell which words they are.
    """

    class Config(Value):
        """model   a wiring whose forward takes `states` (Fused)
        levels  how many blocks are done where its states are read; 0 is the embeddings, items among them
        """

        model: Wiring.Config
        levels: tuple[int, ...] = Field(default=(0,), min_length=1)

        @model_validator(mode="after")
        def _inside(self) -> Self:
            depth = self.model.stack.depth
            if any(not 0 <= level <= depth for level in self.levels) or len(set(self.levels)) < len(self.levels):
                raise ValueError(f"a thinker of {depth} blocks is read after 0 to {depth} of them, each once: "
                                 f"given levels {self.levels}")  # fmt: skip
            return self

    def __init__(self, config: Config, width: int) -> None:
        """width: of the model that listens."""
        super().__init__()
        self.levels = config.levels
        self.model: Wiring = config.model.build()
        self.project = nn.Linear(config.model.stack.width, width)

    def forward(self, sequence: Sequence) -> tuple[Tensor, Outputs]:
        """A packed sequence of T tokens -> (T, width) for the listener, and what the thinker itself says."""
        states: dict[int, list[Tensor]] = {level: [] for level in self.levels}
        outputs = self.model(sequence, states=states)
        return self.project(sum(read for [read] in states.values())), outputs
