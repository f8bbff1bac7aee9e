"""From a Sample to a Sequence in one pass: chat template, tokenizer, token planning, loss weights.

The same renderer serves training, evaluation and chat. The template is rendered around private marks, so it never sees
what a user typed; text between two special tokens is then tokenized as one string (its tokens are those of the fully
rendered prompt), special tokens are looked up in template text alone, and each token knows from its character offsets
which segment it belongs to. There is nothing to find again afterwards, so nothing can be mismatched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from sensorium.columns import Columns
from sensorium.errors import UserError
from sensorium.sequence import KINDS, PLAIN, Item, Media, Numbers, Plan, Sample, Segment, Sequence, Span, made, turn_of
from sensorium.template import Chat, Template
from sensorium.tokenizer import Tokenizer


class TooLong(UserError, ValueError):
    """A sample has more tokens than allowed and nothing whole can be left out; it names both numbers."""


class Renderer:
    """Sample -> Sequence.

    plan  (kind, shape) -> how an item enters the stream: the model's own answer, asked here and checked there.
    load  (kind, Media) -> Item; called only when `items=True`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        plan: Callable[[str, tuple[int, ...]], Plan],
        load: Callable[[str, Media], Item] | None = None,
    ) -> None:
        self.tokenizer, self.template, self.plan, self.load = tokenizer, template, plan, load
        self._chat = Chat(template)
        if template.stop and template.stop not in tokenizer.special:
            known = ", ".join(sorted(tokenizer.special))
            raise UserError(f"the template stops at {template.stop!r}, which the tokenizer lacks; it has: {known}")
        if template.start and template.start not in tokenizer.special:
            raise UserError(f"a decoder starts with {template.start!r}, which is no special token of the tokenizer")
        if template.length and template.pad not in tokenizer.special:
            raise UserError(f"texts are filled with {template.pad!r}, which is no special token of the tokenizer")

    def render(
        self, sample: Sample, *, generate: bool = False, items: bool = True, max_tokens: int | None = None
    ) -> Sequence:
        """One document. `generate` leaves the assistant's turn open. `items=False` plans without loading media.

        Over `max_tokens`, whole earlier turns are dropped (never the system message, never part of a span); raises
        TooLong when the last turn alone does not fit.
        """
        segments = list(sample.segments)
        while True:
            sequence = self._render(replace(sample, segments=tuple(segments)), generate, items)
            if max_tokens is None or len(sequence) <= max_tokens:
                return sequence
            shorter = _without_oldest_turn(segments)
            if shorter is None:
                raise TooLong(
                    f"sample {sample.id or '(no id)'} has {len(sequence)} tokens, at most {max_tokens} are allowed "
                    "and no whole turn can be left out: raise max_tokens, or shorten the text or the number of pictures"
                )
            segments = shorter

    def _render(self, sample: Sample, generate: bool, items: bool) -> Sequence:
        segments = sample.segments
        if self.template.start:
            return self._source_and_target(sample, generate, items)
        if any(segment.branch for segment in segments):
            pieces = self._branches(sample, generate)
        else:
            plain = all(segment.role is None for segment in segments)
            run = _plain(segments, self.template, generate) if plain else self._pieces(sample, segments, generate)
            pieces = [(0, self.template.ordered(run, segments))]
        build = _Builder(self, segments, items)
        for branch, run in pieces:
            build.add(branch, run)
        if self.template.length and build.plain_sample and not generate:
            build.fill(self.template.length, self.template.pad)
        return build.finish(sample)

    def _source_and_target(self, sample: Sample, generate: bool, items: bool) -> Sequence:
        """What an encoder reads becomes an item beside what its decoder says, with branches where there are options."""
        segments, template = sample.segments, self.template
        answers = [one for one in segments if one.kind == "text" and one.role in (None, "assistant")]
        target = answers[-1:] if not generate else []
        if any(one.branch for one in segments):
            target = [one for one in segments if one.branch]
        asked = tuple(one for one in segments if not any(one is other for other in target))
        if any(one.kind != "text" or one.role == "user" for one in target):
            raise UserError(f"sample {sample.id or '(no id)'}: an encoder-decoder reads one prompt a document, here "
                            "prompts are branches: give each question a sample of its own")  # fmt: skip
        plain = all(one.role is None for one in segments)
        run = _plain(asked, template.replace(begin=""), False) if plain else self._pieces(sample, asked, True)
        read = _Builder(self, tuple(replace(one, train=False) for one in asked), items)
        read.add(0, template.ordered(run if plain else [*run, template.plain], asked))
        source = read.finish(sample)
        said = _Builder(self, segments, items)
        runs: dict[int, list[Any]] = {0: [template.start]}
        for one in target:
            place = next(index for index, other in enumerate(segments) if other is one)
            runs.setdefault(one.branch, []).extend([place, template.plain if plain else template.stop])
        for branch, pieces in runs.items():
            said.add(branch, pieces)
        made = said.finish(sample)
        key = hashlib.sha256(
            repr((source.ids.tolist(), [one.key for all in source.items.values() for one in all])).encode()
        )
        item = Item(None, (len(source),), key.hexdigest(), source=source)
        return replace(made, spans=[Span("text", 0, len(source), 0, "memory")], items={"text": [item]})

    @property
    def shows_tools(self) -> bool:
        """Whether the model is told of a sample's tools: its chat template writes them."""
        return self._chat.shows_tools

    def _pieces(
        self, sample: Sample, segments: Iterable[Segment], generate: bool, indices: list[int] | None = None
    ) -> list[Any]:
        """What the chat template writes. Raises UserError where the text of tools would be more than text: unlike that
        of segments it passes through the template, and special tokens are looked for in what that writes."""
        pieces = self._chat.pieces(list(segments), generate, indices, sample.tools)
        if sample.tools:
            apart = self._chat.pieces(list(segments), generate, indices, _apart(sample.tools))
            if self._fixed(pieces) != self._fixed(apart):
                raise UserError("the description of a tool holds, or makes with what stands beside it, a special token "
                                "of this model: it must be plain text")  # fmt: skip
        return pieces

    def _fixed(self, pieces: list[Any]) -> list[Any]:
        """The places of segments, and the special tokens around them."""
        cut = ([piece] if isinstance(piece, int) else self.tokenizer.split_special(piece) for piece in pieces)
        return [one for some in cut for one in some if not isinstance(one, str)]

    def _branches(self, sample: Sample, generate: bool) -> list[tuple[int, list[Any]]]:
        """Each branch is the conversation trunk + branch; what all have in common from the start is the trunk."""
        segments = sample.segments
        numbers = sorted({segment.branch for segment in segments} - {0})
        runs = []
        for number in numbers:
            chosen = [index for index, segment in enumerate(segments) if segment.branch in (0, number)]
            if all(segments[index].role is None for index in chosen):
                run = _plain([segments[index] for index in chosen], self.template, generate, chosen)
            else:
                run = self._pieces(sample, [segments[index] for index in chosen], generate, chosen)
            runs.append(self.template.ordered(run, segments))
        trunk = [index for index, segment in enumerate(segments) if segment.branch == 0]
        last = max((place for place, piece in enumerate(runs[0]) if piece in trunk), default=-1) if trunk else -1
        if any(run[: last + 1] != runs[0][: last + 1] for run in runs):
            raise UserError("the branches of a sample must share their beginning: put shared segments first")
        return [(0, runs[0][: last + 1]), *((number, run[last + 1 :]) for number, run in zip(numbers, runs))]


def _apart(value: Any) -> Any:
    """A JSON value with the letters of its strings kept apart, so that nothing can be found in them. Names and words
    that a template may compare with its own stay as they are."""
    if isinstance(value, dict):
        return {_apart(key): _apart(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_apart(inner) for inner in value]
    if not isinstance(value, str) or value.isidentifier():
        return value
    return "\ue002".join(("", *value, ""))


def _plain(
    segments: Iterable[Segment], template: Template, generate: bool, indices: list[int] | None = None
) -> list[Any]:
    pieces: list[Any] = [template.begin] if template.begin else []
    for place, segment in enumerate(segments):
        before, after = ("", "") if segment.train else template.media.get(segment.kind, ("", ""))
        pieces += [piece for piece in (before, indices[place] if indices else place, after) if piece != ""]
    return pieces if generate else [*pieces, template.plain]


def _without_oldest_turn(segments: list[Segment]) -> list[Segment] | None:
    """Drop the first user turn with its answer; None when it is the only one, or branches share it."""
    if any(segment.branch for segment in segments):
        return None
    starts = [
        index
        for index, segment in enumerate(segments)
        if segment.role == "user" and (index == 0 or segments[index - 1].role != "user")
    ]
    if len(starts) < 2:
        return None
    return segments[: starts[0]] + segments[starts[1] :]


class _Builder:
    """Collects tokens, weights and spans of one document."""

    def __init__(self, renderer: Renderer, segments: tuple[Segment, ...], load: bool) -> None:
        self.renderer, self.segments, self.load = renderer, segments, load
        self.columns = Columns()
        self.next_position = 0
        self.spans: list[Span] = []
        self.items: dict[str, list[Item]] = {}
        self.plain_sample = all(segment.role is None for segment in segments)

    def add(self, branch: int, pieces: list[Any]) -> None:
        """One run of template text (str) and segments (int); text between specials is tokenized as one string."""
        if branch:  # a branch goes on where the trunk ended
            self.next_position = self.columns.trunk_end()
        self.current = branch
        pending: list[tuple[str, float]] = []
        closes = False  # the special token right after an assistant's words is the model's to say
        for piece in pieces:
            if isinstance(piece, int) and self.segments[piece].kind in self.renderer.template.films:
                self._film(self.segments[piece], pending)
                closes = False
            elif isinstance(piece, int) and self.segments[piece].kind != "text":
                self._text(pending)
                closes = self._span(self.segments[piece], self.segments[piece].data)
            elif isinstance(piece, int):
                segment = self.segments[piece]
                closes = self._trained(segment)
                pending.append((str(segment.data), float(closes)))
            else:
                for part in self.renderer.tokenizer.split_special(piece):
                    if isinstance(part, str):
                        pending.append((part, 0.0))
                        continue
                    self._text(pending)
                    self._token(part[1], float(closes))
                    closes = False
        self._text(pending)

    def _trained(self, segment: Segment, mode: str = "token") -> bool:
        """Whether a segment carries loss. mode: how an item enters the stream; only tokens can be said."""
        if segment.train is not None:
            return segment.train
        if segment.kind != "text" and (segment.role is None or mode != "token"):
            return self.plain_sample and segment is self.segments[-1]
        return segment.role == "assistant" or self.plain_sample

    def _text(self, pending: list[tuple[str, float]]) -> None:
        if not pending:
            return
        text = "".join(part for part, _ in pending)
        if len({weight for _, weight in pending}) == 1:
            ids = self.renderer.tokenizer.encode(text)
            self.columns.extend(ids, pending[0][1], self.current, self.next_position)
            self.next_position += len(ids)
            pending.clear()
            return
        ends, total = [], 0
        for part, weight in pending:
            total += len(part)
            ends.append((total, weight))
        ids, offsets = self.renderer.tokenizer.encode_with_offsets(text)
        place = 0
        for token, (start, stop) in zip(ids, offsets):
            # a token that straddles two pieces belongs to the one its last character lies in
            while place < len(ends) - 1 and max(stop - 1, start) >= ends[place][0]:
                place += 1
            self._token(token, ends[place][1])
        pending.clear()

    def _token(self, token: int, weight: float, kind: int = 0, at: tuple[int, int, int] | None = None) -> None:
        """at: its place in time, row and column; None: the next in all three."""
        at = at or (self.next_position, self.next_position, self.next_position)
        self.columns.append(token, weight, kind, self.current, at)
        self.next_position = max(self.next_position, max(at) + 1)

    def _film(self, segment: Segment, pending: list[tuple[str, float]]) -> None:
        """Place the frames of a clip one by one, and words around them."""
        if not isinstance(segment.data, Media):
            raise UserError(f"a {segment.kind} segment needs Media, got {type(segment.data).__name__}")
        for piece in self.renderer.template.films[segment.kind].pieces(segment.data):
            if isinstance(piece, str):
                pending.append((piece, 0.0))
                continue
            self._text(pending)
            self._span(segment, piece)

    def _span(self, segment: Segment, media: Any) -> bool:
        """Place an item; returns whether it stands in the stream and carries loss: what ends it is then said too.

        media  what stands there: the segment's data, or a part of it
        """
        if segment.kind in PLAIN and not isinstance(media, Media):
            media = Numbers.of(media)
        if not isinstance(media, Media):
            raise UserError(f"a {segment.kind} segment needs Media (key, shape, load), got {type(media).__name__}")
        shape = media.shape()
        plan = self.renderer.plan(segment.kind, shape)
        if plan.signals and (segment.role == "assistant" or self._trained(segment, "token")):
            return self._signals(segment, plan, media)
        item = self._item(segment.kind, media)
        if plan.read:
            words = " ".join(str(one.data) for one in turn_of(self.segments, segment))
            reader = self.renderer.tokenizer.readers.get(segment.kind)
            ids = self.renderer.tokenizer.encode(words) if reader is None else reader.encode_whole(words)
            item = replace(item, text=torch.tensor(ids, dtype=torch.long))
        members = self.items.setdefault(segment.kind, [])
        members.append(item)
        for one in (plan, *plan.also):
            if not one.learned or self._trained(segment):
                self._stand(segment, one, len(members) - 1)
        return plan.mode != "memory" and self._trained(segment, plan.mode)

    def _item(self, kind: str, media: Media) -> Item:
        """What the renderer makes of media; of one that only plans, its size."""
        if not self.load:
            return Item(None, media.shape(), media.key())
        if self.renderer.load is None:
            raise ValueError("this renderer plans only: give it `load` to read media")
        return self.renderer.load(kind, media)

    def _stand(self, segment: Segment, plan: Plan, item: int) -> None:
        """One span of an item."""
        if plan.mode == "memory":
            start = max(len(self.columns) - 1, 0)  # before every word: at the first of them
        else:
            start, position = len(self.columns), self.next_position
            said = plan.mode == "token" and self._trained(segment)
            self._fill(segment.kind, plan, plan.weight if said else 0.0)
            self.next_position = self.next_position if plan.visible else position
        marks = tuple(place for place, id in enumerate(plan.ids) if id is not None)
        self.spans.append(
            Span(segment.kind, start, plan.tokens, item, plan.mode, route=plan.route, time=plan.time,
                 visible=plan.visible, marks=marks)
        )  # fmt: skip

    def _signals(self, segment: Segment, plan: Plan, media: Media) -> bool:
        """Place an item that the model says: its signals, and beside them what they are to tell a generator."""
        kind, said = made(segment.kind), self._trained(segment)
        item = self._item(kind, media)
        turn = turn_of(self.segments, segment) or [one for one in self.segments if one.kind == "text"]
        words = " ".join(str(one.data) for one in turn)
        tokenizer, template = self.renderer.tokenizer, self.renderer.template
        ids = tokenizer.encode_trusted(template.begin) + tokenizer.encode(words)
        ids += tokenizer.encode_trusted(template.plain)
        item = replace(item, text=torch.tensor(ids, dtype=torch.long))  # as a denoiser's own documents are written
        members = self.items.setdefault(kind, [])
        members.append(item)
        self.spans.append(Span(kind, len(self.columns), len(plan.signals), len(members) - 1, mode="signal"))
        for id in plan.signals:
            self._token(id, float(said), KINDS.index(segment.kind))
        return said

    def _fill(self, kind: str, plan: Plan, weight: float) -> None:
        """The placeholders of an item, and the marks among them."""
        filler = self.renderer.tokenizer.pad if plan.filler is None else plan.filler
        ids = plan.ids or [None] * plan.tokens
        first = self.next_position
        places = [(0, 0, 0) if plan.together else (token,) * 3 for token in range(plan.tokens)]
        if plan.grid is not None:
            places = list(product(*map(range, plan.grid)))
        for place, id in zip(places, ids, strict=True):
            at = (first + place[0], first + place[1], first + place[2])
            id = id if id is not None else filler
            self._token(id if id is not None else 0, weight, KINDS.index(kind), at)

    def fill(self, length: int, pad: str) -> None:
        """The rest of `length` tokens of a text. Raises TooLong where it has more."""
        if all(segment.kind != "text" for segment in self.segments):
            return
        if len(self.columns) > length:
            raise TooLong(f"a text has {len(self.columns)} tokens, the model reads {length}: shorten it")
        for _ in range(length - len(self.columns)):
            self._token(self.renderer.tokenizer.special[pad], 0.0)

    def finish(self, sample: Sample) -> Sequence:
        if not self.segments or not len(self.columns):
            raise UserError(f"sample {sample.id or '(no id)'} is empty: it has neither text nor media")
        return self.columns.sequence(self.spans, self.items)
