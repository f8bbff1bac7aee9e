"""What every wiring has: encoders, connectors, codecs, a backbone, and how an item enters the stream.

By itself, without a backbone, it is what trains a codec: items -- codec -- their reconstruction. Or an encoder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.codecs.base import Codec, Coded, batches
from sensorium.codecs.critic import Critic, as_it_is
from sensorium.codecs.tokens import CodeTokens, Signals
from sensorium.config import Config as Value
from sensorium.connectors.base import Connector
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError
from sensorium.mask import AttentionRule
from sensorium.models.latents import Denoised
from sensorium.models.streams import Streams
from sensorium.nn.backbone import Backbone, Between
from sensorium.nn.moe import Routing
from sensorium.nn.part import Features, Grid, Part
from sensorium.sequence import Plan, Sequence


@dataclass(slots=True)
class Outputs:
    """hidden (T, D) of every token; `logits(index)` runs the head at chosen tokens only: (N) -> (N, vocab).

    inner      of a model that reads what another one thinks: that one's outputs, and the sequence that it read
    denoised   by kind what was said of the noised latents in the stream
    streams    (index (N), ids (N, K) that follow) -> of each further stream that is said the logits (N, codes), given
               those before it in its step; None where the model says one stream
    generated  by kind what a generator makes of its signals (models.generator.Generated), when it is asked
    routings   in training, of each block with a mixture of experts who took which
    """

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]
    inner: tuple[Outputs, Sequence] | None = None
    denoised: dict[str, Denoised] = field(default_factory=dict)
    streams: Callable[[Tensor, Tensor], list[Tensor]] | None = None
    generated: dict[str, Callable[[], Any]] = field(default_factory=dict)
    routings: list[Routing] = field(default_factory=list)


@dataclass(slots=True)
class CodecOutputs:
    """What the codecs made of the items of a sequence.

    batches  kind -> items of equal size together: (pixels (N, 3, F, H, W), what the codec made of them)
    critics  who judges them, by name
    """

    batches: dict[str, list[tuple[Tensor, Coded]]] = field(default_factory=dict)
    critics: dict[str, nn.Module] = field(default_factory=dict)


__all__ = ["CodecOutputs", "Critic", "Encoder", "Outputs", "Wiring", "as_it_is"]


class Wiring(Part):
    """Base of `Fused`, `Dual` and `Denoiser`: the parts by name, and the tokens that an item takes."""

    class Config(Value):
        """encoders, connectors: by kind of item. codecs: by kind, of items that are codes or latents. rule: who
        attends to whom.

        share    kinds that go through the parts of another: {"video": "image"} reads a clip as pictures in time
        critics  who judges reconstructions while codecs are trained alone (objectives/critics.py), by name
        """

        encoders: dict[str, Encoder.Config] = {}
        connectors: dict[str, Connector.Config] = {}
        codecs: dict[str, Codec.Config] = {}
        rule: AttentionRule = AttentionRule()
        share: dict[str, str] = {}
        critics: dict[str, Encoder.Config | Critic.Config] = {}

        @property
        def kinds(self) -> tuple[str, ...]:
            """The kinds of items that the model reads."""
            return (*self.encoders, *(kind for kind in self.codecs if kind not in self.encoders), *self.share)

        def owner(self, kind: str) -> str:
            """The kind whose parts an item goes through. Raises UserError for one that is not read."""
            owner = self.share.get(kind, kind)
            if owner not in self.encoders and owner not in self.codecs:
                raise UserError(f"the model reads {sorted(self.kinds)}, not {kind}: leave it out or add an encoder")
            return owner

        def coded(self, kind: str) -> bool:
            """Whether items of a kind go through a codec, not through an encoder."""
            return self.owner(kind) not in self.encoders

        def reader(self, kind: str) -> Encoder.Config | Codec.Config:
            """The encoder that reads items of a kind, or the codec."""
            owner = self.owner(kind)
            return self.encoders[owner] if owner in self.encoders else self.codecs[owner]

        @property
        def readers(self) -> dict[str, Encoder.Config | Codec.Config]:
            """By kind what turns items into features, shared ones once."""
            return {kind: self.reader(kind) for kind in self.kinds if kind not in self.share}

        @property
        def reads_text(self) -> bool:
            """Whether there is a stack that reads text."""
            return False

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
            return self.reads_text

        @property
        def says(self) -> bool:
            """Whether it has logits of words: those that follow, or of a masked model those that stand there."""
            return self.speaks

        def plan(self, kind: str, shape: tuple[int, ...]) -> Plan:
            """How an item of this kind and shape enters the stream: the one owner of its token count.

            Raises UserError for a kind the model does not read.
            """
            owner = self.owner(kind)
            if self.coded(kind):
                return Plan(self.codecs[owner].grid(shape).tokens, "latent")
            grid, connector = self.encoders[owner].grid(shape), self.connectors.get(owner)
            if connector is None:  # nothing reads what the encoder makes
                return Plan(grid.tokens)
            return Plan(connector.num_tokens(grid), read=connector.reads_text)

        @property
        def formats(self) -> dict[str, CodeTokens | Signals]:
            """By kind, how items that the model can say stand among its words."""
            return {}

        @property
        def aside(self) -> tuple[str, ...]:
            """Kinds of `formats` whose codes are no words: their ids are behind the vocabulary."""
            return ()

        def said(self, kind: str) -> Grid:
            """What an item that the model says has between its marks: one frame, or as many as become one, of the size
            that the codec was made for."""
            codec = self.codecs[self.owner(kind)]
            return codec.grid((codec.transform.size,) * 2)

        @property
        def targets(self) -> dict[str, Codec.Config]:
            """By name (`sequence.made`) the codecs of items that generators are to make; these are no kinds to read."""
            return {}

        def written(self, sequence: Sequence) -> Sequence:
            """The sequence with the ids of what frozen codecs made of its items, where these are tokens."""
            return sequence

        def token_width(self, kind: str) -> int:
            """Width of the tokens that the connector of a kind makes; where nothing reads them, that of features."""
            return self.stack.width if self.reads_text else self.encoders[kind].width

        def num_tokens(self, kind: str, shape: tuple[int, ...]) -> int:
            """Tokens that an item takes, in all of its spans."""
            plan = self.plan(kind, shape)
            return plan.tokens + sum(one.tokens for one in plan.also)

    def __init__(self, config: Config) -> None:
        super().__init__()
        alone = not config.reads_text and not config.connectors
        if set(config.encoders) != set(config.connectors) and not alone:
            raise ValueError(
                f"every encoder needs its connector: encoders {sorted(config.encoders)}, "
                f"connectors {sorted(config.connectors)}"
            )
        self.config = config
        self.streams: Streams | None = None
        self.encoders = nn.ModuleDict({kind: part.build() for kind, part in config.encoders.items()})
        self.codecs = nn.ModuleDict({kind: part.build() for kind, part in config.codecs.items()})
        self.generators = nn.ModuleDict()
        self.critics = nn.ModuleDict({name: part.build() for name, part in config.critics.items()})
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

    def forward(self, sequence: Sequence) -> Any:
        """The codecs alone: every item that one of them reads, and its reconstruction (CodecOutputs)."""
        outputs = CodecOutputs(critics=dict(self.critics.items()))
        for kind in self.config.codecs:
            codec = self.codec(kind)
            groups = batches(sequence.items.get(kind, []), codec.reference(), most=None)
            outputs.batches[kind] = [(pixels, codec(pixels)) for _, pixels in groups]
        return outputs

    def embed(self, ids: Tensor) -> Tensor:
        """ids (T), of parallel streams (T, K) -> (T, D)."""
        if self.streams is None:
            return self.stack.embed_tokens(ids)
        return self.stack.embed_tokens(ids[:, 0]) + self.streams.embed(ids[:, 1:])

    def aside(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, codes): logits of the ids behind the vocabulary, of codes that are no words."""
        return hidden[:, :0]

    def reference(self) -> Tensor:
        """A parameter with the device and dtype that the model computes in."""
        return next((self.stack if self.config.reads_text else self).parameters())

    def recompute(self, on: bool) -> None:
        """Whether the stack that reads text recomputes its activations in the backward pass."""
        if self.config.reads_text:
            self.stack.checkpointing = on

    def watch(self, between: Mapping[int, Between]) -> tuple[dict[int, list[Tensor]], dict[int, Between]]:
        """States between blocks that generators read, by how many are done, filled in a pass of the backbone with what
        is returned in place of `between`."""
        return {}, dict(between)

    def alone(self, sequence: Sequence) -> Tensor | None:
        """(T, D), where that is all that the stack reads of a sequence: nothing stands beside it or comes between its
        blocks."""
        return None

    def signals(self, hidden: Tensor, seen: Mapping[int, list[Tensor]]) -> dict[str, Tensor]:
        """hidden (T, D) and what `watch` saw of the same tokens -> by kind what a generator reads of each, (T, layers,
        D)."""
        return {}

    def encode(self, kind: str, sequence: Sequence, dtype: torch.dtype) -> Features:
        """Features of the items of one kind, as its connector reads them, items in order.

        Where a codec reads items of this kind as well, only those with a span for their features.
        """
        items = sequence.items.get(kind, [])
        owner = self.config.owner(kind)
        if owner in self.config.codecs:
            read = {span.item for span in sequence.spans if span.kind == kind and span.mode != "latent"}
            items = [item for index, item in enumerate(items) if index in read]
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

    def codec(self, kind: str) -> Codec:
        """What turns items of a kind into codes or latents, and back. Raises UserError where there is none."""
        owner = self.config.owner(kind)
        if owner not in self.codecs:
            raise UserError(f"the model makes no {kind}: it has codecs of {sorted(self.codecs)}")
        codec = self.codecs[owner]
        assert isinstance(codec, Codec)
        return codec

    def reader(self, kind: str) -> Encoder | Codec:
        """What turns items of a kind into features: their encoder, or their codec."""
        coded = kind in self.config.targets or self.config.coded(kind)
        return self.codec(kind) if coded else self.encoder(kind)
