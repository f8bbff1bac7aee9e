"""Q-Former: learned queries read a picture, and text beside them, in one BERT (BLIP-2, arXiv 2301.12597, 3.1)."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.connectors.base import Connector
from sensorium.errors import UserError
from sensorium.mask import AttentionRule, Rule, compile_layout
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone, bert
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import Activation
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid
from sensorium.sequence import Sequence, Span

QUERY = 1
"""The route of queries; text takes route 0, BERT's own weights."""


class QFormer(Connector):
    """Queries attend to each other and to the words beside them, and in every second block read the features.

    Queries and words share the self-attention; each have their own feed-forward, and only queries read the features.
    Queries stand at no position. A linear layer `out` brings them to the language model's width.

    `stack` is a BERT with a vocabulary, so it also reads text alone (`read`), as stage 1 asks: contrastive learning,
    matching and language modelling are three attention rules of this one stack.

    At the published size and behind 1408 wide features it has 187 M parameters: BERT-base without its pooler 108.9 M
    (23.8 M of them embeddings), the queries' feed-forwards 56.7 M, cross-attention 20.1 M, and 2 M of `out` into 2560;
    the paper's 188 M include stage 1's heads.
    """

    class Config(Connector.Config):
        """queries     tokens an item becomes
        instructed  queries also see the words of the item's turn (InstructBLIP, arXiv 2305.06500, section 2.3)
        norm        normalise the features first, where the encoder does not (BLIP-2's encoder ends in a norm)
        every       how many blocks for one with cross-attention; the first has it
        text_ffn    words have feed-forwards beside those of the queries; False where no words are read
        vocab, width, depth, heads, hidden, positions, activation, eps  of the BERT; vocab 0: it reads no words, as
                    BLIP-2's after its first stage
        """

        queries: int = Field(default=32, ge=1)
        instructed: bool = False
        norm: bool = False
        every: int = Field(default=2, ge=1)
        text_ffn: bool = True
        vocab: int = Field(default=30_523, ge=0)
        width: int = 768
        depth: int = 12
        heads: int = 12
        hidden: int = 3072
        positions: int = 512
        activation: Activation = "gelu"
        eps: float = Field(default=1e-12, gt=0)

        @model_validator(mode="after")
        def _words_are_read(self) -> Self:
            if self.instructed and not self.vocab:
                raise ValueError("queries that see the words of a turn need a vocabulary: give `vocab`")
            if self.vocab and not self.text_ffn:
                raise ValueError("words need feed-forwards of their own: leave text_ffn on, or set vocab to 0")
            return self

        @property
        def reads_text(self) -> bool:
            return self.instructed

        def num_tokens(self, grid: Grid) -> int:
            return self.queries

        @property
        def stack(self) -> Backbone.Config:
            """The BERT; the features it reads may be of another width than its own."""
            plain = bert(
                vocab=self.vocab, width=self.width, depth=self.depth, heads=self.heads, hidden=self.hidden,
                positions=self.positions if self.vocab else 0,
            )  # fmt: skip
            attention, norm = Attention.Config(heads=self.heads, bias=True), Norm.Config(kind="layer", eps=self.eps)
            block = plain.block.replace(ffn=plain.block.ffn.replace(activation=self.activation), norm=norm)
            if self.text_ffn:
                cross = Cross.Config(attention=attention, norm=norm, route=QUERY)
                block = block.replace(routes=2, routed=("ffn", "norm2"), cross=cross)
            else:
                block = block.replace(cross=Cross.Config(attention=attention, norm=norm))
            return plain.replace(block=block, cross_every=self.every)

    def __init__(self, config: Config, in_width: int, out_width: int) -> None:
        super().__init__(config, in_width, out_width)
        self.count, self.instructed = config.queries, config.instructed
        self.queries = nn.Parameter(torch.randn(config.queries, config.width) * 0.02)
        block = config.stack.block
        assert block.cross is not None
        reading = block.replace(cross=block.cross.replace(memory=in_width))
        self.stack: Backbone = config.stack.replace(block=reading).build()
        for layer in self.stack.modules():  # what no pretrained BERT fills: wide enough for what is seen to be heard
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.stack.start_routes()  # the queries' feed-forwards start as the text's, those of BERT
        self.norm = Norm.Config(kind="layer").build(in_width) if config.norm else None
        self.out = nn.Linear(config.width, out_width)

    def adopt(self, other: Connector) -> None:
        """All becomes that of a Q-Former in front of another model; `out` alone stays this one's own."""
        assert isinstance(other, QFormer)
        self.queries, self.stack, self.norm = other.queries, other.stack, other.norm

    def forward(self, features: Features) -> Tensor:
        texts = self._texts(features)
        if not features.grids:  # one blank feature, of whose tokens none are returned, connects every parameter
            blank = torch.cat([features.values, features.values.new_zeros(1, self.in_width)])
            return self.out(self.read(Features(blank, [Grid(1, 1)]))[0])[:0]
        return self.out(self.read(features, texts)[0])

    def _texts(self, features: Features) -> list[Tensor] | None:
        if not self.instructed:
            return None
        empty = torch.zeros(0, dtype=torch.long, device=features.values.device)
        given: list[Tensor | None] = features.texts if features.texts is not None else [None] * len(features.grids)
        return [empty if text is None else text for text in given]

    def read(
        self, features: Features | None, texts: list[Tensor] | None = None, kind: Rule = "full"
    ) -> tuple[Tensor, Tensor]:
        """Queries that read each item's features, and its text, in one pass.

        features  None: text alone
        texts     for each item ids (M) of words that stand behind its queries; None: queries alone
        kind      full: all see all; prefix: queries see queries, words see the queries and the words before them
        -> hidden states of the queries (items * queries, width) and of the words (sum of M, width)
        """
        if features is None and texts is None:
            raise ValueError("a Q-Former reads features, texts or both: neither was given")
        device = self.queries.device
        count = len(features.grids) if features is not None else len(texts or ())
        words = [len(text) for text in texts] if texts is not None else [0] * count
        if any(words) and not self.stack.config.vocab:
            raise UserError("this Q-Former reads no words: set the connector's `vocab`, or give it no text")
        if len(words) != count:
            raise ValueError(f"{count} items and {len(words)} texts: give a text for every item")
        if max(words, default=0) > self.stack.config.positions:
            raise UserError(
                f"a text of {max(words)} tokens stands beside the queries, the Q-Former has "
                f"{self.stack.config.positions} positions: shorten it, or set the connector's `positions` higher"
            )
        queries = self.count if features is not None else 0
        lengths = features.lengths if features is not None else None
        sequence = _documents(queries, words, lengths)
        layout = compile_layout(sequence, AttentionRule(kind, memory="all"), torch.full((count,), queries)).to(device)
        ids = torch.cat(texts) if texts else torch.zeros(0, dtype=torch.long, device=device)
        asked = self.queries.repeat(count if queries else 0, 1)
        told = self.stack.embed_tokens(ids) if self.stack.config.vocab else asked[:0]
        word = sequence.position[:, 0] >= 0
        order = torch.argsort(word.to(torch.uint8), stable=True)  # queries before words
        x = torch.cat([asked.to(told.dtype), told]).index_select(0, torch.argsort(order).to(device))
        memory = features.values.to(x.dtype) if features is not None else x.new_zeros(0, self.in_width)
        if self.norm is not None:
            memory = self.norm(memory)
        hidden = self.stack(x, layout, memory=memory)
        asked_at, told_at = order.to(device).split([len(asked), len(told)])
        return hidden.index_select(0, asked_at), hidden.index_select(0, told_at)


def _documents(queries: int, words: list[int], features: list[int] | None) -> Sequence:
    """One document an item: its queries at no position, then its words from position 0; its features beside them."""
    position, spans, start = [], [], 0
    for item, count in enumerate(words):
        position += [torch.full((queries,), -1), torch.arange(count)]
        if features is not None:
            spans.append(Span("image", start, queries, item, route=QUERY))
            spans.append(Span("image", start, features[item], item, mode="memory"))
        start += queries + count
    lengths = torch.tensor([queries + count for count in words], dtype=torch.long)
    zeros = torch.zeros(start, dtype=torch.long)
    place = torch.cat(position) if position else zeros
    return Sequence(
        ids=zeros, modality=zeros.to(torch.uint8), position=place[:, None].expand(-1, 3).contiguous(),
        doc=torch.repeat_interleave(torch.arange(len(words)), lengths), branch=zeros, weight=torch.zeros(start),
        spans=spans,
    )  # fmt: skip
