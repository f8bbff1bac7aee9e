"""The one generation loop: requests enter, each takes a slot of a cache, all advance together, finished ones leave."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sensorium.infer.cache import Cache
from sensorium.infer.drawing import Drawing
from sensorium.infer.sampling import Sampling, Text, choose
from sensorium.mask import SAID, Layout, compile_layout
from sensorium.models.wiring import Wiring
from sensorium.sequence import Sequence

AHEAD = 256  # places reserved for an answer at first; longer answers grow the cache


@dataclass(slots=True, eq=False)
class Request:
    """One answer in the making.

    sequence  one rendered document, or what of it the cache does not hold yet
    sampling  how tokens are chosen
    text      collects the answer
    stops     ids that end it
    cached    tokens the slot holds already
    seen      ids of the prompt's words, for the repetition penalty
    position  of the next token
    ids       chosen so far, without the stop token
    drawing   which of them are pictures; None where the model says words alone
    heard     (max_tokens, H) ids of the parallel streams that come from outside, step by step
    rows      ids of the further streams chosen or heard so far, a row a step
    against   the same request without its condition, in a slot of its own, for classifier-free guidance (Ho and
              Salimans 2022, arXiv 2207.12598): it reads what is chosen here and never chooses itself
    """

    sequence: Sequence
    sampling: Sampling
    text: Text
    stops: frozenset[int]
    seed: int
    cached: int = 0
    position: int = 0
    ids: list[int] = field(default_factory=list)
    done: bool = False
    seen: list[int] = field(default_factory=list)
    drawing: Drawing | None = None
    against: Request | None = None
    heard: Tensor | None = None
    rows: list[list[int]] = field(default_factory=list)
    _generator: torch.Generator | None = None
    _ready: str = ""

    def __post_init__(self) -> None:
        self.position = int(self.sequence.position.max()) + 1
        if self.heard is not None and len(self.heard) < self.sampling.max_tokens:
            raise ValueError(f"{len(self.heard)} steps are heard, and {self.sampling.max_tokens} may be said")
        if self.sampling.temperature > 0:
            self._generator = torch.Generator().manual_seed(self.seed)
        if self.sampling.repetition_penalty != 1.0:
            self.seen = self.sequence.ids[self.sequence.modality == 0].tolist()

    @property
    def last(self) -> int | list[int]:
        """The step chosen last: an id, or one of each parallel stream."""
        return [self.ids[-1], *self.rows[-1]] if self.rows else self.ids[-1]

    def pick(self, logits: Tensor) -> int:
        """A code of a further stream, from logits (codes)."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        return choose(logits.float().cpu(), self.sampling, torch.zeros(0, dtype=torch.long), self._generator)

    def advance(self, logits: Tensor) -> None:
        """Choose the next token from logits (vocab, and codes behind it where such are drawn)."""
        words = self.sampling.repetition_penalty != 1.0 and not (self.drawing is not None and self.drawing.inside)
        seen = torch.tensor(sorted(id for id in {*self.seen, *self.ids} if id < len(logits)) if words else [])
        chosen = choose(logits.float().cpu(), self.sampling, seen.long(), self._generator)
        self.take(chosen)

    def take(self, chosen: int) -> None:
        """Add one token to the answer, or end it; a picture is never cut."""
        drawing = self.drawing
        if drawing is not None and drawing.take(chosen):
            self.ids.append(chosen)
            self.done = self._drawn_out(drawing)
        elif chosen in self.stops:
            self.done = True
        else:
            self.ids.append(chosen)
            self._ready += self.text.push(chosen)
            self.done = self.text.stopped or len(self.ids) >= self.sampling.max_tokens
        if self.against is not None:
            self.against.ids.append(chosen)
        if self.done:
            self._ready += self.text.finish()

    def saw(self, states: dict[str, Tensor]) -> None:
        """By kind what generators read of the token that was chosen last; the answer may have waited for it to end."""
        if self.drawing is not None and self.drawing.waits:
            self.drawing.saw(states)
            self.done = self._drawn_out(self.drawing)
            if self.done:
                self._ready += self.text.finish()

    def _drawn_out(self, drawing: Drawing) -> bool:
        """Whether the answer ends behind an item."""
        enough = drawing.complete or len(self.ids) >= self.sampling.max_tokens
        return enough and not drawing.inside and not drawing.waits

    def new_text(self) -> str:
        """What was added to the text since the last call."""
        ready, self._ready = self._ready, ""
        return ready

    @property
    def slots(self) -> int:
        """Slots of a cache that the request takes."""
        return 1 if self.against is None else 2

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1.0


class Decoder:
    """Continuous batching (Yu et al. 2022, Orca section 4): `active[i]` owns slot i of the cache, always."""

    def __init__(self, model: Wiring, cache: Cache) -> None:
        rule = model.config.rule
        if rule.kind != "causal" and not (rule.kind == "prefix" and SAID in rule.until):
            raise ValueError(f"text is generated left to right, the model's rule is {rule.kind!r}")
        self.model, self.cache = model, cache
        streams = model.streams
        self.steps = Cache.of(streams.depth, cache.slots, streams.config.says) if streams is not None else None
        self.active: list[Request] = []

    @property
    def free(self) -> int:
        return self.cache.slots - len(self.active)

    @torch.inference_mode()
    def admit(self, requests: Many[Request]) -> None:
        """Read the prompts of new requests in one packed pass and choose the first token of each."""
        requests = [one for request in requests for one in (request, request.against) if one is not None]
        if len(requests) > self.free:
            raise ValueError(f"{len(requests)} requests for {self.free} free slots")
        slots = list(range(len(self.active), len(self.active) + len(requests)))
        for slot, request in zip(slots, requests):
            self.cache.truncate(slot, request.cached)
        room = (r.cached + len(r.sequence) + min(r.sampling.max_tokens, AHEAD) for r in requests)
        self.cache.reserve(max(room))
        packed = Sequence.pack([request.sequence for request in requests])
        layout = compile_layout(packed, self.model.config.rule)
        with self.cache.step(slots, layout):
            outputs = self.model(packed, self.cache, layout)
        ends = torch.tensor(layout.lengths, device=outputs.hidden.device).cumsum(0) - 1
        self.active += requests
        self._advance(list(requests), outputs.logits(ends), outputs.hidden.index_select(0, ends))

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every active request."""
        ids = torch.tensor([request.last for request in self.active])
        position = torch.tensor([request.position for request in self.active])
        backbone = self.model.stack
        device = next(backbone.parameters()).device
        layout = _one_each(position.to(device))
        self.cache.reserve(max(self.cache.lengths[: len(self.active)]) + 1)
        with self.cache.step(range(len(self.active)), layout):
            seen, between = self.model.watch({})
            hidden = backbone(self.model.embed(ids.to(device)), layout, self.cache, between=between)
        states = self.model.signals(hidden, seen)
        for row, request in enumerate(self.active):
            request.position += 1
            request.saw({kind: values[row] for kind, values in states.items()})
        self._advance(list(self.active), backbone.logits(hidden), hidden)

    def _advance(self, requests: list[Request], logits: Tensor, hidden: Tensor) -> None:
        """logits (requests, vocab) and hidden (requests, D), of guided requests and of what they are guided against."""
        words = logits.shape[1]
        if any(request.drawing is not None and request.drawing.inside for request in requests):
            logits = torch.cat([logits, self.model.aside(hidden)], dim=1)
        rows = {id(request): row for request, row in zip(requests, logits)}
        led = {id(request.against) for request in requests if request.against is not None}
        leading = [request for request in requests if id(request) not in led]
        choosing = [request for request in leading if not request.done]
        if not choosing:
            logits = logits[:0]
        elif len(choosing) < len(requests) or any(request.drawing is not None for request in choosing):
            logits = torch.stack([_judged(request, rows, words) for request in choosing])
        likeliest = logits.argmax(-1).tolist()
        for request, best, row in zip(choosing, likeliest, logits):
            if request.greedy:
                request.take(best)
            else:
                request.advance(row)
        speaking = [row for row, request in enumerate(requests) if len(request.rows) < len(request.ids)]
        speaking = [row for row in speaking if id(requests[row]) not in led]
        if speaking and self.steps is not None:
            self._say(self.steps, [requests[row] for row in speaking], hidden[speaking])
        for request in leading:
            if request.done:
                self.remove(request)

    def _say(self, cache: Cache, requests: list[Request], hidden: Tensor) -> None:
        """The parallel streams of the step whose first id was just chosen, one after another; hidden (requests, D)."""
        streams = self.model.streams
        assert streams is not None
        config, slots = streams.config, range(len(requests))
        for slot in slots:
            cache.truncate(slot, 0)
        before = torch.tensor([request.ids[-1] for request in requests], device=hidden.device)
        rows: list[list[int]] = [[] for _ in requests]
        for stream in range(config.says):
            layout = _one_each(torch.full((len(requests),), stream, device=hidden.device))
            with cache.step(slots, layout):
                state = streams.depth(streams.read(stream, hidden, before), layout, cache)
            logits = streams.heads[stream](state)
            for row, request, scores in zip(rows, requests, logits):
                late = request.position <= config.delays[stream]  # nothing of this stream is there yet
                row.append(config.codes[stream] if late else request.pick(scores))
            before = torch.tensor([row[-1] for row in rows], device=hidden.device)
        for row, request in zip(rows, requests):
            heard = [] if request.heard is None else request.heard[len(request.rows)].tolist()
            request.rows.append([*row, *heard])
            if request.against is not None:
                request.against.rows.append(request.rows[-1])

    def remove(self, request: Request) -> None:
        """Free the request's slots; the last active request moves into each, so that active slots stay side by side."""
        if request.against is not None:
            self._free(request.against)
        self._free(request)

    def _free(self, request: Request) -> None:
        slot = self.active.index(request)
        last = len(self.active) - 1
        if slot != last:
            self.cache.fork(last, slot)
            self.active[slot] = self.active[last]
        self.active.pop()


def _judged(request: Request, rows: dict[int, Tensor], words: int) -> Tensor:
    """The logits (vocab, and codes behind it) that a request chooses from: guided, and with what may not follow ruled
    out. words: how many of them are of the vocabulary."""
    row = rows[id(request)].float()
    if request.against is not None:
        plain = rows[id(request.against)].float()
        row = plain + request.sampling.guidance * (row - plain)
    if request.drawing is None:
        return torch.where(torch.arange(len(row), device=row.device) < words, row, -torch.inf)
    return request.drawing.allow(row)


def _one_each(position: Tensor) -> Layout:
    """position (B) -> the layout of one new token for each of B documents."""
    batch = position.shape[0]
    rows = torch.arange(batch, device=position.device)[:, None]
    return Layout(rows, None, None, True, position[:, None].expand(-1, 3), lengths=[1] * batch)


def head(sequence: Sequence, stop: int) -> Sequence:
    """The first `stop` tokens of one document. A span must not be cut."""
    cut = [span for span in sequence.spans if span.mode != "memory" and span.start < stop < span.start + span.length]
    if cut:
        raise ValueError(f"token {stop} lies inside the {cut[0].kind} at {cut[0].start}, which cannot be cut")
    spans = [span for span in sequence.spans if span.start < stop]
    names = ("ids", "modality", "position", "doc", "branch", "weight")
    whole = Sequence(spans=spans, items=sequence.items, **{name: getattr(sequence, name)[:stop] for name in names})
    return next(whole.unpack())


def tail(sequence: Sequence, start: int) -> Sequence:
    """What follows the first `start` tokens of one document. A span must not be cut."""
    spans, items = [], {}
    for span in sequence.spans:
        if span.start >= start:
            members = items.setdefault(span.kind, [])
            spans.append(replace(span, start=span.start - start, item=len(members)))
            members.append(sequence.items[span.kind][span.item])
        elif span.mode != "memory" and span.start + span.length > start:
            raise ValueError(f"token {start} lies inside the {span.kind} at {span.start}, which cannot be cut")
    names = ("ids", "modality", "position", "doc", "branch", "weight")
    cut = {name: getattr(sequence, name)[start:] for name in names}
    return Sequence(spans=spans, items=items, **cut)
