"""What every wiring has: encoders, connectors, a backbone, and how an item enters the stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.connectors.base import Connector
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError
from sensorium.mask import AttentionRule
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Features, Part
from sensorium.sequence import Plan, Sequence


@dataclass(slots=True)
class Outputs:
    """hidden (T, D) of every token; `logits(index)` runs the head at chosen tokens only: (N) -> (N, vocab)."""

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]


class Wiring(Part):
    """Base of `Fused`, `Dual` and `Denoiser`: the parts by name, and the tokens that an item takes."""

    class Config(Value):
        """encoders, connectors: by kind of item. rule: who attends to whom.

        share  kinds that go through the parts of another: {"video": "image"} reads a clip as pictures in time
        """

        encoders: dict[str, Encoder.Config]
        connectors: dict[str, Connector.Config]
        rule: AttentionRule = AttentionRule()
        share: dict[str, str] = {}

        @property
        def kinds(self) -> tuple[str, ...]:
            """The kinds of items that the model reads."""
            return (*self.encoders, *self.share)

        def owner(self, kind: str) -> str:
            """The kind whose encoder and connector an item goes through. Raises UserError for one that is not read."""
            owner = self.share.get(kind, kind)
            if owner not in self.encoders:
                raise UserError(f"the model reads {sorted(self.kinds)}, not {kind}: leave it out or add an encoder")
            return owner

        @property
        def stack(self) -> Backbone.Config:
            """The stack that reads text, whichever part it is of."""
            raise NotImplementedError(f"{self.tag()} does not say what reads its text")

        @property
        def measures(self) -> dict[str, float]:
            """Numbers that are this wiring's own, by name, for published figures to be held against."""
            return {}

        @property
        def reads_source(self) -> bool:
            """Whether an encoder reads the prompt, and a decoder says the answer."""
            return False

        @property
        def speaks(self) -> bool:
            """Whether it answers in words, token by token."""
            return True

        def plan(self, kind: str, shape: tuple[int, ...]) -> Plan:
            """How an item of this kind and shape enters the stream: the one owner of its token count.

            Raises UserError for a kind the model does not read.
            """
            owner = self.owner(kind)
            connector = self.connectors[owner]
            return Plan(connector.num_tokens(self.encoders[owner].grid(shape)), read=connector.reads_text)

        def token_width(self, kind: str) -> int:
            """Width of the tokens that the connector of a kind makes."""
            return self.stack.width

        def num_tokens(self, kind: str, shape: tuple[int, ...]) -> int:
            return self.plan(kind, shape).tokens

    def __init__(self, config: Config) -> None:
        super().__init__()
        if set(config.encoders) != set(config.connectors):
            raise ValueError(
                f"every encoder needs its connector: encoders {sorted(config.encoders)}, "
                f"connectors {sorted(config.connectors)}"
            )
        self.config = config
        self.encoders = nn.ModuleDict({kind: part.build() for kind, part in config.encoders.items()})
        self.connectors = nn.ModuleDict(
            {
                kind: part.build(config.encoders[kind].width, config.token_width(kind))
                for kind, part in config.connectors.items()
            }
        )

    @property
    def stack(self) -> Backbone:
        """The stack that reads text, whichever part it is of."""
        raise NotImplementedError(f"{type(self).__name__} does not say what reads its text")

    def encode(self, kind: str, sequence: Sequence, dtype: torch.dtype) -> Features:
        """Features of the items of one kind, as its connector reads them, items in order."""
        items = sequence.items.get(kind, [])
        owner = self.config.owner(kind)
        features = self.encoder(kind)(items)
        texts = [item.text for item in items] if self.config.connectors[owner].reads_text else None
        return Features(features.values.to(dtype), features.grids, texts)

    def connect(self, kind: str, sequence: Sequence, dtype: torch.dtype) -> Tensor:
        """The items of one kind, encoded and connected: (sum of their tokens, width), items in order."""
        return self.connectors[self.config.owner(kind)](self.encode(kind, sequence, dtype))

    def encoder(self, kind: str) -> Encoder:
        """What encodes items of a kind. Raises UserError for one that is not read."""
        encoder = self.encoders[self.config.owner(kind)]
        assert isinstance(encoder, Encoder)
        return encoder
