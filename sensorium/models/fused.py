"""Items are encoded, connected, and placed into the token stream of one backbone, or beside it.

    ids ---- embed ------------------------------.
                                                  place ---- backbone ---- head ---- logits
    items -- encoder -- connector -- by span ----'|             |  |`-- latent head ---- what was added
      | \\                     `----- memory -- cross-attention -'  `-- at signals -- generator -- picture
      |  `- codec -- codes, which are ids         |
      '---- codec -- latents, noised -- by span --|
    source -- thinker -- its states -- by span ---'

LLaVA, MiniGPT-4, Qwen-VL, Kosmos, Fuyu and their kin (embed spans), with routes CogVLM; Flamingo (memory spans);
Emu3 and Chameleon (token spans), whose logits say pictures as they say words; NExT-GPT (signals), whose states tell a
generator what to make; a talker, which speaks from what another model of this kind thinks (Qwen2.5-Omni); latent spans,
which the same stack denoises (BAGEL, pi0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from sensorium.codecs.base import Codec
from sensorium.codecs.tokens import CodeTokens, Signals
from sensorium.errors import UserError
from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.models.code_head import CodeHead, CodeHeads, formats
from sensorium.models.generator import Generated, Generator
from sensorium.models.latent_stream import LatentStream
from sensorium.models.latents import Noised
from sensorium.models.marks import Marks
from sensorium.models.placing import gather_memory, place, places, spans_of
from sensorium.models.streams import Streams
from sensorium.models.thinker import Thinker
from sensorium.models.wiring import Outputs
from sensorium.nn.backbone import Backbone, Between, adding, reading
from sensorium.nn.part import Grid
from sensorium.sequence import Plan, Sequence, made

if TYPE_CHECKING:
    from sensorium.infer.cache import Cache


class Fused(LatentStream):
    """Modality encoders and connectors in front of a language backbone."""

    class Config(LatentStream.Config):
        """backbone  the language model
        source    the encoder of an encoder-decoder, whose decoder is the backbone: it reads the source of each document
                  (an item of kind text, with pictures in it), embedded as the decoder embeds; its states are memory
        thinker   another model, which reads the source of each document: its states are the tokens of an embed span
        streams   codes that run in parallel to the words: ids are (T, K)
        memory    kinds whose items stand beside the stream, for cross-attention to read; others stand in it
        routes    kinds whose tokens take other weights than text in a routed block: {"image": 1}
        together  kinds of which all tokens of an item share one position
        spread    kinds whose tokens have places in time, row and column (M-RoPE); their connectors keep a grid
        deep      kinds whose tokens go on behind some blocks: {"image": (1, 2)} adds what else the connector makes of a
                  feature to the state of its token when so many blocks are done (DeepStack, arXiv 2406.04334)
        marks     kinds whose tokens have ids of the vocabulary among them: {"image": Marks(row=71019)}
        codes     kinds whose codes have embeddings and a head of their own, beside the vocabulary (Janus): they are
                  said between the kind's marks; items of the kind that are read go through an encoder
        tokens    kinds whose items are codes of their codec, among the words of the vocabulary
        generators  kinds whose items in an answer are signals, by whose states another wiring makes them
        """

        backbone: Backbone.Config
        source: Backbone.Config | None = None
        thinker: Thinker.Config | None = None
        streams: Streams.Config | None = None
        memory: tuple[str, ...] = ()
        routes: dict[str, int] = {}
        together: tuple[str, ...] = ()
        spread: tuple[str, ...] = ()
        deep: dict[str, tuple[int, ...]] = {}
        marks: dict[str, Marks] = {}
        codes: dict[str, CodeHead.Config] = {}
        tokens: dict[str, CodeTokens] = {}
        generators: dict[str, Generator.Config] = {}

        @property
        def formats(self) -> dict[str, CodeTokens | Signals]:
            aside = formats(self.codes, self.marks, self.backbone.vocab)
            return {**self.tokens, **aside, **{kind: one.signals for kind, one in self.generators.items()}}

        @property
        def aside(self) -> tuple[str, ...]:
            return tuple(self.codes)

        def said(self, kind: str) -> Grid:
            return self.generators[kind].grid if kind in self.generators else super().said(kind)

        @property
        def targets(self) -> dict[str, Codec.Config]:
            return {made(kind): next(iter(one.denoiser.codecs.values())) for kind, one in self.generators.items()}

        def owner(self, kind: str) -> str:
            return kind if kind in self.targets else super().owner(kind)

        @property
        def measures(self) -> dict[str, float]:
            """Of each generator its signals, and the tokens of condition that come of them."""
            made = self.generators.items()
            signals = {f"signals.{kind}": one.signals.count for kind, one in made}
            return {**signals, **{f"condition.{kind}": one.tokens for kind, one in made}}

        @property
        def reads_text(self) -> bool:
            return True

        @property
        def speaks(self) -> bool:
            """Not where every token sees all others (BERT): such a model reads a whole text, and continues none."""
            return self.rule.kind != "full"

        @property
        def says(self) -> bool:
            return self.speaks or self.backbone.readout is not None

        @property
        def stack(self) -> Backbone.Config:
            return self.backbone

        @property
        def reads_source(self) -> bool:
            return self.source is not None

        def plan(self, kind: str, shape: tuple[int, ...]) -> Plan:
            owner = self.owner(kind)
            if owner in self.latents:
                read = () if self.coded(kind) else (self._read(kind, shape),)
                return self.denoised(kind, shape, kind in self.together, read)
            if self.coded(kind):
                tokens, cells = self.tokens[owner], self.codecs[owner].grid(shape)
                ids = () if tokens.filler is None else tuple(tokens.places(cells))
                return Plan(tokens.length(cells), "token", self.routes.get(kind), kind in self.together,
                            weight=tokens.weight, ids=ids, filler=tokens.filler)  # fmt: skip
            return self._read(kind, shape)

        def _read(self, kind: str, shape: tuple[int, ...]) -> Plan:
            plain = super().plan(kind, shape)
            mode = "memory" if kind in self.memory else "embed"
            grid = self._grid(kind, shape) if kind in self.spread else None
            signals = self.generators[kind].signals.ids if kind in self.generators else ()
            ids, filler = self._marked(kind, shape)
            return Plan(len(ids) or plain.tokens, mode, self.routes.get(kind), kind in self.together, plain.read, grid,
                        ids=ids, filler=filler, signals=signals)  # fmt: skip

        def _marked(self, kind: str, shape: tuple[int, ...]) -> tuple[tuple[int | None, ...], int | None]:
            marks, owner = self.marks.get(kind), self.owner(kind)
            if marks is None:
                return (), None
            return tuple(marks.places(self.connectors[owner].after(self.encoders[owner].grid(shape)))), marks.filler

        def _grid(self, kind: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
            owner = self.owner(kind)
            grid = self.connectors[owner].after(self.encoders[owner].grid(shape))
            if grid is None or grid.tiles is not None or grid.extra:
                raise UserError(f"tokens of {kind} are spread over rows and columns, and its connector leaves no plain "
                                "grid: take it out of `spread`, or choose another connector")  # fmt: skip
            return grid.frames, grid.rows, grid.cols

        def written(self, sequence: Sequence) -> Sequence:
            ids = sequence.ids
            for span in sequence.spans:
                item = sequence.items[span.kind][span.item]
                if span.mode != "token" or item.features is None:
                    continue
                owner = self.owner(span.kind)
                wrote = self.tokens[owner].write(item.features[:, 0], self.codecs[owner].grid(item.shape))
                if len(wrote) != span.length:
                    raise ValueError(
                        f"the {span.kind} at token {span.start} was planned with {span.length} tokens and has "
                        f"{len(wrote)}: the sequence was rendered for another model"
                    )
                ids = ids.clone() if ids is sequence.ids else ids
                ids[span.start : span.start + span.length] = wrote.to(ids.device)
            return replace(sequence, ids=ids)

        def token_width(self, kind: str) -> int:
            cross = self.backbone.block.cross
            width = (cross.memory if kind in self.memory and cross is not None else None) or self.backbone.width
            return width * (1 + len(self.deep.get(kind, ())))

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            for name in ("memory", "routes", "together", "spread", "deep", "marks", "latents"):
                unknown = sorted(set(getattr(self, name)) - set(self.kinds))
                if unknown:
                    raise ValueError(f"{name} names {unknown}, the model reads {sorted(self.kinds)}")
            coded = set(self.codecs) - set(self.encoders)
            aside = sorted(set(self.marks) & {*self.memory, *self.spread, *coded})
            if aside:
                raise ValueError(f"marks stand among tokens in one line of the stream, and those of {aside} are not: "
                                 "leave them out of `memory`, `spread` and `codecs`, or of `marks`")  # fmt: skip
            if self.memory and self.backbone.block.cross is None:
                raise ValueError(f"{list(self.memory)} are memory, and no block of the backbone has cross-attention")
            if self.source is not None and (self.backbone.block.cross is None or self.rule.memory != "all"):
                raise ValueError("the backbone reads all of its source: give its blocks cross-attention, and the rule "
                                 "memory='all'")  # fmt: skip
            if self.source is not None and self.thinker is not None:
                raise ValueError("the source of a document is read once: give either `source` or `thinker`")
            self.check_latents()
            self._check_tokens()
            most = max([0, *self.routes.values(), *(head.route or 0 for head in self.latents.values())])
            if most >= self.backbone.block.routes:
                raise ValueError(f"route {most} is taken, the blocks have {self.backbone.block.routes} routes")
            return self

        def _check_tokens(self) -> None:
            """Codes need a codec that makes as many, and rows of the vocabulary that no other kind has."""
            coded = {kind for kind in self.codecs if kind not in self.encoders and kind not in self.latents}
            if not set(self.generators) <= set(self.encoders):
                raise ValueError(f"generators make {sorted(self.generators)}, encoders read {sorted(self.encoders)}: a "
                                 "kind that is made is one that is read, in what users say")  # fmt: skip
            if any(layer > self.backbone.depth for one in self.generators.values() for layer in one.layers):
                raise ValueError(f"a generator reads behind more blocks than the backbone's {self.backbone.depth}")
            if any(kind not in self.codecs or self.codecs[kind].codes != one.codes for kind, one in self.codes.items()):
                raise ValueError(f"codes {sorted(self.codes)} need a codec of the kind that makes as many")
            if self.codes and self.streams is not None:
                raise ValueError("ids of parallel streams are words of each: leave out either `codes` or `streams`")
            if set(self.tokens) != coded:
                raise ValueError(f"the codecs {sorted(coded)} need `tokens`, their place in the vocabulary, and no "
                                 f"others do: given {sorted(self.tokens)}")  # fmt: skip
            taken: set[int] = set()
            for kind, tokens in self.tokens.items():
                if tokens.codes != self.codecs[kind].codes:
                    raise ValueError(f"tokens.{kind} has {tokens.codes} codes, its codec {self.codecs[kind].codes}")
            for kind, tokens in self.formats.items():
                own = tokens.marks if kind in self.codes else tokens.ids
                if max(own) >= self.backbone.vocab or taken & set(tokens.ids):
                    raise ValueError(f"{kind} as tokens or signals ends at id {max(own)}: the vocabulary has "
                                     f"{self.backbone.vocab}, and every kind needs ids of its own")  # fmt: skip
                taken |= set(tokens.ids)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.backbone: Backbone = config.backbone.build()
        self.source: Backbone | None = config.source.build() if config.source is not None else None
        stack, streams = config.backbone, config.streams
        self.streams: Streams | None = streams.build(stack.vocab, stack.width) if streams is not None else None
        self.thinker: Thinker | None = config.thinker.build(config.backbone.width) if config.thinker else None
        width = config.backbone.width
        self.codes = CodeHeads({kind: part.build(width) for kind, part in config.codes.items()})
        self.generators = nn.ModuleDict({kind: part.build(width) for kind, part in config.generators.items()})

    @property
    def stack(self) -> Backbone:
        return self.backbone

    def embed(self, ids: Tensor) -> Tensor:
        words = self.config.backbone.vocab
        if not self.codes:
            return super().embed(ids)
        return self.codes.embed(ids, super().embed(ids.clamp(max=words - 1)), words)

    def aside(self, hidden: Tensor) -> Tensor:
        return self.codes.logits(hidden)

    def forward(
        self, sequence: Sequence, cache: Cache | None = None, layout: Layout | None = None,
        states: Mapping[int, list[Tensor]] | None = None, noised: Mapping[str, Noised] | None = None,
    ) -> Outputs:  # fmt: skip
        """A packed sequence -> hidden states, logits on request, and what was said of noised latents.

        states  by how many blocks are done, a list to which the states (T, D) there are appended
        noised  by kind, the latents to denoise; those of other kinds are noised by `noise`
        """
        if self.source is None:
            x, beside, deeper = self.stream(sequence)
        else:
            x, beside, deeper = self.embed(sequence.ids), {"text": self.read(sequence)}, {}
        inner = None
        if self.thinker is not None:
            sources = _sources(sequence)
            thoughts, outputs = self.thinker(sources)
            x, inner = place(x, thoughts, "text", sequence), (outputs, sources)
        x, placed = self.enter(x, sequence, noised or {})
        for done, read in (states or {}).items():
            deeper[done] = reading(read, deeper.get(done))
        memory = gather_memory(beside, sequence)
        layout = layout or compile_layout(sequence, self.config.rule)
        seen, between = self.watch(deeper)
        hidden = self.backbone(x, layout, cache, memory=memory, between=between)
        denoised = {kind: self.leave(kind, hidden, *found) for kind, found in placed.items()}
        # index_select, not hidden[index]: where branches share a token, the gradient of the latter is summed by threads
        # in whatever order they come, and a resumed run would not repeat it to the last bit
        return Outputs(hidden, lambda index: self.backbone.logits(hidden.index_select(0, index)), inner,
                       denoised, self._beside(hidden), self._generated(sequence, hidden, seen),
                       self.backbone.routings())  # fmt: skip

    def _beside(self, hidden: Tensor) -> Callable[[Tensor, Tensor], list[Tensor]] | None:
        """What says the further streams; None where there are none."""
        streams = self.streams
        if streams is None:
            return None
        return lambda index, said: streams.logits(hidden.index_select(0, index), said)

    def stream(self, sequence: Sequence) -> tuple[Tensor, dict[str, Tensor], dict[int, Between]]:
        """The token stream (T, D) with its items placed, by kind the tokens of those that stand beside it, and what is
        added to the stream between its blocks."""
        self._check_codes(sequence)
        ids = sequence.ids
        for tokens in self.config.tokens.values():
            if self.training and tokens.keep < 1:
                ids = tokens.doubted(ids, sequence.weight > 0)
        x = self.embed(ids)
        beside, deeper = {}, {}
        for kind in self.config.kinds:
            if self.config.coded(kind):  # ids already, or latents
                continue
            tokens = self.connect(kind, sequence, x.dtype)
            if kind in self.config.memory:
                beside[kind] = tokens
            elif kind in self.config.deep:
                tokens, *more = tokens.split(x.shape[1], dim=1)
                x = place(x, tokens, kind, sequence)
                index = places(spans_of(kind, sequence, tokens), x.device)
                for done, values in zip(self.config.deep[kind], more):
                    deeper[done] = adding(index, values, deeper.get(done))
            else:
                x = place(x, tokens, kind, sequence)
        return x, beside, deeper

    def alone(self, sequence: Sequence) -> Tensor | None:
        if any((self.source, self.thinker, self.streams, self.config.memory, self.config.deep, self.config.latents,
                self.config.generators)):  # fmt: skip
            return None
        return self.stream(sequence)[0]

    # ---- generators

    def watch(self, between: Mapping[int, Between]) -> tuple[dict[int, list[Tensor]], dict[int, Between]]:
        watched = dict(between)
        seen = {layer: [] for one in self.config.generators.values() for layer in one.layers}
        for layer, states in seen.items():
            watched[layer] = reading(states, watched.get(layer))
        return seen, watched

    def signals(self, hidden: Tensor, seen: Mapping[int, list[Tensor]]) -> dict[str, Tensor]:
        return {
            kind: torch.stack([*(seen[layer][-1] for layer in one.layers), hidden], dim=1)
            for kind, one in self.config.generators.items()
        }

    def generator(self, kind: str) -> Generator:
        """What makes items of a kind. Raises UserError where there is none."""
        if kind not in self.generators:
            raise UserError(f"the model makes no {kind}: it has generators of {sorted(self.generators)}")
        generator = self.generators[kind]
        assert isinstance(generator, Generator)
        return generator

    def codec(self, kind: str) -> Codec:
        for own in self.generators:
            if kind == made(own):
                return next(iter(self.generator(own).denoiser.codecs.values()))  # type: ignore[return-value]
        return super().codec(kind)

    def _generated(
        self, sequence: Sequence, hidden: Tensor, seen: Mapping[int, list[Tensor]]
    ) -> dict[str, Callable[[], Generated]]:
        """By kind what its generator makes of the items that answers hold, computed when it is asked for."""

        def make(kind: str) -> Generated:
            name, generator = made(kind), self.generator(kind)
            spans = sorted((span for span in sequence.spans if span.kind == name), key=lambda span: span.item)
            index = places(spans, hidden.device)
            layers = {layer: [states[-1].index_select(0, index)] for layer, states in seen.items()}
            states = self.signals(hidden.index_select(0, index), layers)[kind]
            states = states.unflatten(0, (len(spans), generator.config.signals.count)).transpose(1, 2)
            return Generated(generator, list(sequence.items.get(name, ())), generator.condition(states))

        return {kind: partial(make, kind) for kind in self.generators}

    def _check_codes(self, sequence: Sequence) -> None:
        """Raises ValueError for an item whose codes were not filled in: its tokens would be meaningless."""
        for span in sequence.spans:
            if span.mode == "token" and sequence.items[span.kind][span.item].features is None:
                raise ValueError(
                    f"the {span.kind} at token {span.start} has no codes: freeze its codec while the language model "
                    "reads it, so that `Task.complete` or `Engine.prepare` can write them"
                )

    def read(self, sequence: Sequence) -> Tensor:
        """The encoder's states of all sources (tokens of the sources, D), in the order of the documents."""
        assert self.source is not None
        packed = _sources(sequence)
        x, _, _ = self.stream(packed)
        return self.source(x, compile_layout(packed, AttentionRule("full")))


def _sources(sequence: Sequence) -> Sequence:
    """The sources of all documents, packed in their order."""
    sources = [item.source for item in sequence.items.get("text", ()) if item.source is not None]
    if not sources:
        raise ValueError("the model reads a source, the sequence has none: render it with the template's `start`")
    return Sequence.pack(sources)
