"""Items and texts, each through a tower of its own, meet as unit vectors in one space.

    items -- encoder -- connector ------------. image (I, Q, E) \\
                                                                 similarity x scale + bias
    ids ---- text stack -- one state -- head -' text  (N, E)   /

CLIP, SigLIP, UniCL; with passes in which the text stack also reads the items (`DualOutputs.language`, `matching`)
ALBEF, BLIP and the first stage of BLIP-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.errors import UserError
from sensorium.mask import AttentionRule, compile_layout
from sensorium.models.grounding import GroundingHead, MatchingHead, Reader, passes
from sensorium.models.wiring import Outputs, Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Features
from sensorium.sequence import Plan, Sequence

Pick = Literal["first", "last", "mean"]


@dataclass(slots=True)
class DualOutputs:
    """What both towers made of a packed sequence of I items and N texts.

    image  (I, Q, E) unit vectors, Q for each item; the largest of Q similarities counts (BLIP-2 section 3.1)
    text   (N, E) unit vectors, one for each document that says something
    scale, bias  () of the logits scale * similarity + bias; bias None: there is none
    pairs  (P, 2) rows of `image` and of `text` that belong together
    texts  (N) the document of each text
    language  runs the pass in which every document reads its own items, as a language model
    match     (M) rows of `image`, (M) rows of `text` -> (M, 2) logits: apart, together

    The last two run only when an objective asks for them; None in a model that has no such pass.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None
    pairs: Tensor
    texts: Tensor
    language: Callable[[], Outputs] | None = None
    match: Callable[[Tensor, Tensor], Tensor] | None = None
    _spoken: list[Outputs] = field(default_factory=list)

    def _language(self) -> Outputs:
        if self.language is None:
            raise UserError("this model has no pass in which its text reads the items: leave out language objectives")
        if not self._spoken:
            self._spoken.append(self.language())
        return self._spoken[0]

    @property
    def hidden(self) -> Tensor:
        """(T, D) of every token, having read the items of its document."""
        return self._language().hidden

    def logits(self, index: Tensor) -> Tensor:
        """(N) tokens -> (N, vocab): what follows them."""
        return self._language().logits(index)

    @property
    def inner(self) -> tuple[Outputs, Sequence] | None:
        return self._language().inner

    @property
    def streams(self) -> Callable[[Tensor, Tensor], list[Tensor]] | None:
        return self._language().streams

    def matching(self, images: Tensor, texts: Tensor) -> Tensor:
        """(M) rows of `image` and of `text` -> (M, 2) logits that they are apart, together."""
        if self.match is None:
            raise UserError("this model has no pass that judges pairs: leave out matching objectives")
        return self.match(images, texts)


class Dual(Wiring):
    """Towers that meet in a contrastive space."""

    class Config(Wiring.Config):
        """width     of the shared space
        backbone  the text stack; None: that of the one connector, which reads text itself (a Q-Former)
        text      the state that stands for a text: of its first or its last token (the one that ends it), or their mean
        text_bias whether the projection of texts has a bias (SigLIP's; CLIP's has none)
        scale     of the logits at first (1 / temperature), learned; None: logits are the similarities themselves
        ceiling   the scale never exceeds it (CLIP section 2.5); None: no limit
        bias      of the logits at first, learned (SigLIP section 3.2); None: there is none
        grounded  text also reads items, for objectives of matching, and where the text stack is that of a Q-Former, of
                  language (models/grounding.py)
        start     in that language pass, the id that takes the place of a text's first one (BLIP-2's [DEC])
        """

        width: int = Field(ge=1)
        backbone: Backbone.Config | None = None
        text: Pick = "last"
        text_bias: bool = False
        scale: float | None = Field(default=1 / 0.07, gt=0)
        ceiling: float | None = Field(default=100.0, gt=0)
        bias: float | None = None
        grounded: bool = False
        start: int | None = None

        @property
        def reads_text(self) -> bool:
            return True

        @property
        def stack(self) -> Backbone.Config:
            if self.backbone is not None:
                return self.backbone
            stacks = [getattr(connector, "stack", None) for connector in self.connectors.values()]
            if len(stacks) == 1 and isinstance(stacks[0], Backbone.Config):
                return stacks[0]
            raise UserError("nothing here reads text: give `backbone`, or one connector that has a text `stack`")

        def token_width(self, kind: str) -> int:
            return self.width

        @property
        def measures(self) -> dict[str, float]:
            """Width of the space; temperature, scale and bias of the logits at first."""
            scale = 1.0 if self.scale is None else self.scale
            found = {"space": self.width, "temperature": 1 / scale, "logit_scale": scale}
            return found if self.bias is None else {**found, "logit_bias": self.bias}

        @property
        def speaks(self) -> bool:
            return False

        def plan(self, kind: str, shape: tuple[int, ...]) -> Plan:
            return replace(super().plan(kind, shape), mode="memory")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.backbone: Backbone | None = config.backbone.build() if config.backbone is not None else None
        self.head: ContrastiveHead = ContrastiveHead(config, config.stack.width)
        self.grounding: GroundingHead | MatchingHead | None = None
        cross = None if config.backbone is None else config.backbone.block.cross
        if config.grounded and cross is not None and cross.route is None:
            self.grounding = MatchingHead(config.stack.width)
        elif config.grounded:
            if [isinstance(part, Reader) for part in self.connectors.values()] != [True]:
                given = [part.tag() for part in config.connectors.values()]
                raise ValueError("a grounded text stack reads items by cross-attention, or is that of the one "
                                 f"connector, a Q-Former: given {given}")  # fmt: skip
            self.grounding = GroundingHead(config.stack.width, config.stack.vocab)

    @property
    def stack(self) -> Backbone:
        if self.backbone is not None:
            return self.backbone
        [connector] = self.connectors.values()
        stack = connector.get_submodule("stack")
        assert isinstance(stack, Backbone)
        return stack

    def forward(self, sequence: Sequence) -> DualOutputs:
        """A packed sequence -> unit vectors of its items and texts."""
        dtype = next(self.stack.parameters()).dtype
        features = {kind: self.encode(kind, sequence, dtype) for kind in self.config.kinds}
        image = torch.cat([self.vectors(kind, found) for kind, found in features.items()])
        pairs, texts = pairs_of(sequence, tuple(features))
        states = pick(self.read(sequence, self.config.rule), sequence, self.config.text).index_select(0, texts)
        scale, bias = self.head.terms()
        language, match = passes(self, sequence, features, texts)
        return DualOutputs(
            F.normalize(image.float(), dim=-1),
            F.normalize(self.head.text(states).float(), dim=-1),
            scale,
            bias,
            pairs,
            texts,
            language,
            match,
        )

    def vectors(self, kind: str, features: Features) -> Tensor:
        """The connected items of one kind, (I, Q, E), not yet of unit length."""
        tokens, items = self.connectors[self.config.owner(kind)](features), len(features.grids)
        if not items:
            owner, side = self.config.owner(kind), self.encoder(kind).config.transform.size
            each = self.config.num_tokens(owner, (side, side))  # as many as an item has, to be joined with others
            return tokens.view(0, each, self.config.width) + tokens.sum()
        if len(tokens) % items:
            raise ValueError(f"{items} {kind} items became {len(tokens)} vectors: a connector of the contrastive "
                             "wiring makes equally many of each item")  # fmt: skip
        return tokens.view(items, -1, self.config.width)

    def read(self, sequence: Sequence, rule: AttentionRule, features: dict[str, Features] | None = None) -> Tensor:
        """The text stack over packed documents under a rule: hidden states (T, D).

        features  by kind: what cross-attention reads of the items that memory spans point at; None: texts alone
        """
        spans, memory = [], None
        if features is not None:
            values = {kind: found.values.split(found.lengths) for kind, found in features.items()}
            spans = [replace(span, length=len(values[span.kind][span.item])) for span in sequence.spans]
            pieces = [values[span.kind][span.item] for span in spans]
            memory = torch.cat(pieces or [found.values[:0] for found in features.values()])
        seen = replace(sequence, spans=spans)
        return self.stack(self.stack.embed_tokens(seen.ids), compile_layout(seen, rule), memory=memory)

    def judge(
        self, sequence: Sequence, features: dict[str, Features], documents: Tensor, images: Tensor, texts: Tensor
    ) -> Tensor:  # fmt: skip
        """(M) items and (M) texts, by number -> (M, 2) logits: apart, together. Each text reads the item by
        cross-attention.

        documents  (N) of each text
        """
        assert self.grounding is not None
        if not len(images):
            return self.grounding.match(next(self.stack.parameters()).new_zeros(0, self.stack.config.width))
        [kind] = features
        seen = paired(sequence, images, documents[texts], kind)
        states = self.read(seen, self.config.rule, features)
        return self.grounding.match(pick(states, seen, self.config.text))


class ContrastiveHead(nn.Module):
    """Projection of texts into the shared space, scale and bias of the logits."""

    def __init__(self, config: Dual.Config, text_width: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_width, config.width, bias=config.text_bias)
        nn.init.normal_(self.text.weight, std=text_width**-0.5)
        if self.text.bias is not None:
            nn.init.zeros_(self.text.bias)
        self.log_scale = None if config.scale is None else nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(config.bias)) if config.bias is not None else None
        self.ceiling = math.log(config.ceiling) if config.ceiling is not None else None

    def terms(self) -> tuple[Tensor, Tensor | None]:
        """Scale and bias of the logits, float32."""
        bias = None if self.bias is None else self.bias.float()
        if self.log_scale is None:
            return self.text.weight.new_ones((), dtype=torch.float32), bias
        scale = self.log_scale.float()
        if self.ceiling is not None:
            scale = _Ceiling.apply(scale, self.ceiling)
        return scale.exp(), bias


class _Ceiling(torch.autograd.Function):
    """min(x, most). At the ceiling only a gradient that leads down passes, so x is not stuck there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, most: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.most = most
        return x.clamp(max=most)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where(x >= ctx.most, grads[0].clamp(min=0), grads[0]), None


def pairs_of(sequence: Sequence, kinds: tuple[str, ...] | None = None) -> tuple[Tensor, Tensor]:
    """(P, 2) item and text that share a document, (N) the document of each text.

    Items are numbered kind by kind; a document is a text where something in it is to be said (weight > 0), so that a
    picture alone is none.
    """
    says = torch.zeros(sequence.documents, dtype=torch.bool, device=sequence.ids.device)
    says[sequence.doc[sequence.weight > 0].long()] = True
    texts = says.nonzero(as_tuple=True)[0]
    row = {int(document): index for index, document in enumerate(texts.tolist())}
    first, count = {}, 0
    for kind in kinds or tuple(sequence.items):
        first[kind], count = count, count + len(sequence.items.get(kind, ()))
    found = []
    for span in sequence.spans:
        document = int(sequence.doc[span.start])
        if span.kind in first and document in row:
            found.append((first[span.kind] + span.item, row[document]))
    return torch.tensor(sorted(found), dtype=torch.long, device=texts.device).view(-1, 2), texts


def paired(sequence: Sequence, items: Tensor, documents: Tensor, kind: str = "image") -> Sequence:
    """A packed sequence of M documents, each with the item of the same place beside it.

    items (M) of `kind`, documents (M); both may repeat. Items stay numbered as in `sequence`.
    """
    parts = list(sequence.unpack())
    chosen = []
    for item, document in zip(items.tolist(), documents.tolist(), strict=True):
        own = [span for span in sequence.spans if span.kind == kind and span.item == item]
        if not own:
            raise ValueError(f"the sequence has no {kind} {item}")
        chosen.append(replace(parts[document], spans=[replace(own[0], start=0, item=0)], items={}))
    made = Sequence.pack(chosen)
    spans = [replace(span, item=item) for span, item in zip(made.spans, items.tolist())]
    return replace(made, spans=spans, items=sequence.items)


def pick(hidden: Tensor, sequence: Sequence, which: Pick) -> Tensor:
    """hidden (T, D) -> (documents, D): the state that stands for each document."""
    lengths = torch.bincount(sequence.doc.long(), minlength=sequence.documents)
    ends = torch.cumsum(lengths, 0)
    match which:
        case "first":
            return hidden.index_select(0, ends - lengths)
        case "last":
            return hidden.index_select(0, ends - 1)
        case "mean":
            sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, sequence.doc.long(), hidden)
            return sums / lengths[:, None].to(hidden.dtype)
