"""Items are encoded, connected, and placed into the token stream of one backbone.

    ids ---- embed ------------------------------.
                                                  place ---- backbone ---- head ---- logits
    items -- encoder -- connector -- by span ----'

LLaVA, MiniGPT-4, Qwen-VL, Kosmos, Fuyu and their kin (embed spans).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.connectors.base import Connector
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError
from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Features, Part
from sensorium.sequence import Sequence

if TYPE_CHECKING:
    from sensorium.infer.cache import Cache


@dataclass(slots=True)
class Outputs:
    """hidden (T, D) of every token; `logits(index)` runs the head at chosen tokens only: (N) -> (N, vocab)."""

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]


class Fused(Part):
    """Modality encoders and connectors in front of a language backbone."""

    class Config(Value):
        encoders: dict[str, Encoder.Config]
        connectors: dict[str, Connector.Config]
        backbone: Backbone.Config
        rule: AttentionRule = AttentionRule()

        def num_tokens(self, kind: str, shape: tuple[int, ...]) -> int:
            """Tokens that an item of this kind and shape takes: the one owner of that number.

            Raises UserError for a kind the model does not read.
            """
            if kind not in self.encoders:
                raise UserError(f"the model reads {sorted(self.encoders)}, not {kind}: leave it out or add an encoder")
            return self.connectors[kind].num_tokens(self.encoders[kind].grid(shape))

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
                kind: part.build(config.encoders[kind].width, config.backbone.width)
                for kind, part in config.connectors.items()
            }
        )
        self.backbone = config.backbone.build()

    def forward(self, sequence: Sequence, cache: Cache | None = None, layout: Layout | None = None) -> Outputs:
        """A packed sequence -> hidden states and logits on request."""
        x = self.backbone.embed_tokens(sequence.ids)
        for kind in self.encoders:
            features = self.encoders[kind](sequence.items.get(kind, []))
            tokens = self.connectors[kind](Features(features.values.to(x.dtype), features.grids))
            x = place(x, tokens, kind, sequence)
        layout = layout or compile_layout(sequence, self.config.rule)
        hidden = self.backbone(x, layout, cache)
        # index_select, not hidden[index]: where branches share a token, the gradient of the latter is summed by threads
        # in whatever order they come, and a resumed run would not repeat it to the last bit
        return Outputs(hidden, lambda index: self.backbone.logits(hidden.index_select(0, index)))


def place(x: Tensor, tokens: Tensor, kind: str, sequence: Sequence) -> Tensor:
    """Write item tokens (N, D) over the embeddings x (T, D) at the spans of `kind`, in the order of the items.

    Raises ValueError with both numbers when spans and tokens differ: counts are planned once, and checked here.
    """
    spans = sorted((span for span in sequence.spans if span.kind == kind), key=lambda span: span.item)
    planned = sum(span.length for span in spans)
    if planned != tokens.shape[0]:
        raise ValueError(
            f"{len(spans)} {kind} spans were planned with {planned} tokens, the connector made {tokens.shape[0]}: "
            "the sequence was rendered for another model, or an item was changed after rendering"
        )
    tokens = tokens.to(x.dtype)
    if not planned:  # no item here: the connector still takes part in every collective
        return x + tokens.sum()
    index = torch.cat([torch.arange(span.start, span.start + span.length, device=x.device) for span in spans])
    return x.index_copy(0, index, tokens)
