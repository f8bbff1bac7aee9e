"""The one generation loop, its passes: requests take slots of a cache, prompts are read, all advance together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import partial

import torch
from torch import Tensor

from sensorium.infer.cache import Cache
from sensorium.infer.cutting import LEAST, Mark, head, piece, shared, tail
from sensorium.infer.kernels.program import Newest, Program
from sensorium.infer.request import Request
from sensorium.mask import SAID, Layout, compile_layout, rows_of
from sensorium.models.wiring import Wiring
from sensorium.sequence import Sequence

AHEAD = 256  # places reserved for an answer at first; longer answers grow the cache
MANY = 1 << 30


def cache_of(model: Wiring, slots: int, capacity: int) -> Cache:
    """A cache as a Decoder of this model reads it: where no step is torch's, of the type that the model computes in."""
    kernels = model.streams is None and not model.watch({})[1] and Program.missing(model.stack) is None
    return Cache.of(model.stack, slots, capacity, half=kernels)


class Decoder:
    """Continuous batching (Yu et al. 2022, Orca section 4) over the slots of one cache.

    Slots are in the order of `active`: first those of requests that say a token in every step (`saying` of them), then
    those whose prompts are still read, then those that nobody owns. What these still hold is read again by prompts
    that begin alike (prefix reuse: Zheng et al. 2023, SGLang, arXiv 2312.07104, section 3), until somebody needs the
    slot: the one that was left longest ago goes first.

    prepare  what becomes of pieces of prompts before they are read: their media are encoded
    """

    def __init__(self, model: Wiring, cache: Cache, prepare: Callable[[list[Sequence]], list[Sequence]] = list) -> None:
        rule = model.config.rule
        if rule.kind != "causal" and not (rule.kind == "prefix" and SAID in rule.until):
            raise ValueError(f"text is generated left to right, the model's rule is {rule.kind!r}")
        self.model, self.cache, self.prepare, self.rule = model, cache, prepare, rule
        streams = model.streams
        self.steps = Cache.of(streams.depth, cache.slots, streams.config.says) if streams is not None else None
        self.active: list[Request] = []
        self.saying = 0
        self._kept: list[tuple[int, list[Mark]]] = [(0, []) for _ in range(cache.slots)]
        self._clock = itertools.count(1)
        self._newest = Newest(model.stack)
        self.program: Program | None = None
        """The same backbone in kernels for this machine, for passes of few tokens; None where it has none."""

    @property
    def free(self) -> int:
        return self.cache.slots - len(self.active)

    @property
    def reading(self) -> list[Request]:
        """Requests whose prompts are not read to their end, in the order in which they came."""
        return self.active[self.saying :]

    # ---- slots

    def enter(self, requests: Many[Request]) -> None:
        """Give each request a slot, with what of its prompt is held already."""
        if sum(request.slots for request in requests) > self.free:
            raise ValueError(f"{sum(request.slots for request in requests)} requests for {self.free} free slots")
        if not self.active and self.model.streams is None:
            self.program = self._newest.program()
        for one in _each(requests):
            slot = len(self.active)
            source, one.cached = self.nearest(one)
            least = min(range(slot, self.cache.slots), key=lambda free: self._kept[free][0])
            if source is not None and source >= slot and len(self._kept[source][1]) <= one.cached:
                least = source  # all of it is read on
            self.cache.reserve(one.cached + len(one.sequence) + min(one.sampling.max_tokens, AHEAD))
            if source is None:
                self.cache.truncate(least, 0)
            elif source != least:
                self.cache.fork(source, least, one.cached)
            self.cache.truncate(least, one.cached)
            self._kept[least] = (0, [])
            self._exchange(least, slot)
            one.rest = tail(one.sequence, one.cached) if one.cached else one.sequence
            one.begun = True
            self.active.append(one)

    def nearest(self, request: Request) -> tuple[int | None, int]:
        """The slot that holds most of the beginning of a prompt, and how many tokens; (None, 0) where it is too little
        to be worth it."""
        found: tuple[int | None, int] = (None, 0)
        if request.marks is None:
            return found
        for slot in range(self.cache.slots):
            owned = slot < len(self.active)
            held = self.active[slot].held(self.cache.lengths[slot]) if owned else self._kept[slot][1]
            common = shared(request.marks, held, request.sequence, self.rule) if held else 0
            least = LEAST if owned or common < len(held) else 1  # what is read on where it stands needs no copy
            if common >= max(least, found[1] + 1):
                found = slot, common
        return found

    def coming(self, request: Request) -> bool:
        """Whether a prompt that is being read will soon hold more of the beginning of this one than is held now."""
        if request.marks is None:
            return False
        others = [one.marks for one in self.reading if one.marks is not None]
        best = max((shared(request.marks, marks, request.sequence, self.rule) for marks in others), default=0)
        return best >= LEAST and best > self.nearest(request)[1]

    def remove(self, request: Request) -> None:
        """Free the request's slots, which go on holding what they hold."""
        for one in _each([request]):
            slot = self.active.index(one)
            if slot < self.saying:
                self.saying -= 1
                self._exchange(slot, self.saying)
                slot = self.saying
            self._exchange(slot, len(self.active) - 1)
            self.active.pop()
            slot = len(self.active)
            self._kept[slot] = (next(self._clock), one.held(self.cache.lengths[slot]))

    def _exchange(self, one: int, other: int) -> None:
        if one == other:
            return
        self.cache.exchange(one, other)
        self._kept[one], self._kept[other] = self._kept[other], self._kept[one]
        if max(one, other) < len(self.active):
            self.active[one], self.active[other] = self.active[other], self.active[one]

    # ---- passes

    def admit(self, requests: Many[Request]) -> None:
        """Give requests their slots, read all of their prompts and choose the first token of each."""
        self.enter(requests)
        while self.reading:
            self.read()

    @torch.inference_mode()
    def read(self, room: int = MANY, items: int = MANY, most: int = MANY) -> None:
        """One packed pass over pieces of the prompts that are not read yet, in their order; those that are read to
        their end choose their first token.

        room   tokens of the pass, but for a span that is longer
        items  media in it, but for one prompt that has more
        most   prompts in it
        """
        pieces = self._pieces(room, items, most)
        packed = Sequence.pack(self.prepare([part for _, part, _ in pieces]))
        layout = compile_layout(packed, self.rule)
        places = {id(one): slot for slot, one in enumerate(self.active)}
        slots = [places[id(one)] for one, _, _ in pieces]
        x = self.model.alone(packed) if self.program is not None and layout.plainly_causal else None
        read = [row for row, (_, _, rest) in enumerate(pieces) if rest is None]
        stops = list(itertools.accumulate(layout.lengths))
        ends = [stops[row] - 1 for row in read]
        if self.program is not None and x is not None:
            kernels = partial(self.program.read, kept=ends)
            hidden = self._run(kernels, x, packed.position, slots, layout.lengths)
        else:
            with self.cache.step(slots, layout):
                hidden = self.model(packed, self.cache, layout).hidden
            hidden = hidden[ends]
        for one, _, rest in pieces:
            one.rest = rest
        for row in read:
            self._exchange(self.active.index(pieces[row][0]), self.saying)
            self.saying += 1
        if read:
            chosen = [pieces[row][0] for row in read]
            self._advance(chosen, self._logits(hidden), hidden)

    def _pieces(self, room: int, items: int, most: int) -> list[tuple[Request, Sequence, Sequence | None]]:
        """(request, what of it is read now, what is left). New prompts and those that go on are not mixed, since new
        ones need no mask; a guided request and what it is guided against are read whole, together."""
        reading = self.reading
        led = {id(one.against) for one in reading if one.against is not None}
        pieces: list[tuple[Request, Sequence, Sequence | None]] = []
        fresh = None
        for request in reading:
            if id(request) in led:
                continue
            pair = _each([request])
            rests = [one.rest for one in pair if one.rest is not None]
            begins = not any(self.cache.lengths[self.active.index(one)] for one in pair)
            media = sum(len(rest.spans) for rest in rests)
            if pieces and (len(pieces) >= most or room <= 0 or media > items or begins != fresh):
                break
            fresh = begins
            for one, rest in zip(pair, rests):
                stop = len(rest) if len(pair) > 1 else piece(rest, room, self.rule)
                whole = stop == len(rest)
                part = rest if whole else head(rest, stop)
                pieces.append((one, part, None if whole else tail(rest, stop)))
                room -= stop
                items -= len(part.spans)
        return pieces

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every request whose prompt is read, or several where a draft proves right."""
        requests = self.active[: self.saying]
        drafts = _drafts(requests)
        told = [[request.last, *draft] for request, draft in zip(requests, drafts)]
        starts = [request.position for request in requests]
        position = torch.tensor([start + k for start, ids in zip(starts, told) for k in range(len(ids))])
        ids = torch.tensor([id for one in told for id in one])
        self.cache.reserve(max(map(sum, zip(self.cache.lengths, map(len, told)))))
        hidden, seen = self._pass(ids, position, [len(ids) for ids in told])
        states = self.model.signals(hidden, seen)
        first = list(itertools.accumulate(map(len, told), initial=0))
        for row, request in zip(first, requests):
            request.position += 1
            request.saw({kind: values[row] for kind, values in states.items()})
        logits = self._logits(hidden)
        plain = [index for index, draft in enumerate(drafts) if not draft]
        whole = len(plain) == len(requests)
        rows = [first[index] for index in plain]
        for index, (request, draft) in enumerate(zip(requests, drafts)):
            if draft:
                self._verify(request, draft, logits[first[index] : first[index + 1]])
        if not whole:
            logits, hidden = logits[rows], hidden[rows]
        self._advance([requests[index] for index in plain], logits, hidden)

    def _pass(self, ids: Tensor, position: Tensor, counts: list[int]) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """ids and position (N) of `counts[i]` new tokens for each slot i from the first -> hidden states (N, D), and
        what generators read between the blocks."""
        backbone, device = self.model.stack, self.model.reference().device
        seen, between = self.model.watch({})
        x = self.model.embed(ids.to(device))
        slots = range(len(counts))
        if self.program is not None and not between:
            return self._run(self.program.step, x, position, slots, counts), seen
        layout = _in_order(position.to(device), counts)
        with self.cache.step(slots, layout):
            return backbone(x, layout, self.cache, between=between), seen

    def _run(
        self, kernels: Callable[..., Tensor], x: Tensor, position: Tensor, slots: Many[int], counts: list[int]
    ) -> Tensor:
        """The same through the kernels of this machine, those for steps or those for prompts."""
        starts = [self.cache.lengths[slot] for slot in slots]
        places = [start + place for start, count in zip(starts, counts) for place in range(count)]
        each = [slot for slot, count in zip(slots, counts) for _ in range(count)]
        hidden = kernels(x, each, places, position, self.cache)
        self.cache.wrote(each, places, position)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.stack.logits(hidden) if self.program is None else self.program.logits(hidden)

    def _verify(self, request: Request, draft: list[int], logits: Tensor) -> None:
        """logits (1 + draft, vocab): what is chosen from each row is chosen as without a draft; behind the first that
        the draft did not foresee, its tokens are forgotten (Leviathan et al. 2023, arXiv 2211.17192, for one that is
        sure of each token)."""
        slot = self.active.index(request)
        before = self.cache.lengths[slot] - len(logits)
        right = 0
        for row in logits:
            request.advance(row)
            if request.done or right == len(draft) or request.ids[-1] != draft[right]:
                break
            right += 1
        request.position += right
        request.drafted, request.right = request.drafted + len(draft), request.right + right
        self.cache.truncate(slot, before + 1 + right)
        if request.done:
            self.remove(request)

    def _advance(self, requests: list[Request], logits: Tensor, hidden: Tensor) -> None:
        """logits (requests, vocab) and hidden (requests, D), of guided requests and of what they are guided against."""
        words = logits.shape[1]
        if any(request.inside for request in requests):
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
                request.advance(row if request.inside else row[:words])
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
            layout = _in_order(torch.full((len(requests),), stream, device=hidden.device), [1] * len(requests))
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


def _drafts(requests: Many[Request]) -> list[list[int]]:
    """What may follow the last token of each request; its drafter guesses for all that it drafts for together."""
    drafts: list[list[int]] = [[] for _ in requests]
    for drafter in {id(one.drafter): one.drafter for one in requests}.values():
        rows = [row for row, one in enumerate(requests) if one.drafter is drafter and one.room]
        if drafter is not None and rows:
            for row, ids in zip(rows, drafter.draft([requests[row] for row in rows])):
                drafts[row] = ids[: requests[row].room]
    return drafts


def _each(requests: Many[Request]) -> list[Request]:
    """The requests and what they are guided against."""
    return [one for request in requests for one in (request, request.against) if one is not None]


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


def _in_order(position: Tensor, counts: list[int]) -> Layout:
    """position (N) of `counts[i]` new tokens of document i -> their layout."""
    doc = torch.arange(len(counts), device=position.device).repeat_interleave(torch.tensor(counts).to(position.device))
    rows, inverse, lengths = rows_of(doc, len(counts))
    return Layout(rows, inverse, None, True, position[:, None].expand(-1, 3), lengths=lengths)
