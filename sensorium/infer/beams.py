"""Beam search: the answers that are likeliest as a whole, as captions and translations are looked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sensorium.errors import UserError
from sensorium.infer.cache import Cache
from sensorium.infer.drawing import Drawing
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.mask import Layout, compile_layout
from sensorium.sequence import Sample, Sequence


class Hypothesis(NamedTuple):
    """An answer that was found.

    score  its log-probability, the token that ends it included, divided by (number of tokens) ** length_penalty
    ids    without the token that ends it
    """

    text: str
    score: float
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Options:
    beams: int
    max_tokens: int
    length_penalty: float
    early: bool
    stops: frozenset[int]


def beam(
    engine: Engine, samples: Iterable[Sample], beams: int = 4, max_tokens: int = 64, length_penalty: float = 1.0,
    early: bool = False,
) -> list[tuple[str, float]]:  # fmt: skip
    """The best answer to each sample that a beam search finds, with its score; see `beam_search`."""
    found = beam_search(engine, samples, beams, max_tokens, length_penalty, early)
    return [(best.text, best.score) for best, *_ in found]


def beam_search(
    engine: Engine,
    samples: Iterable[Sample],
    beams: int = 4,
    max_tokens: int = 64,
    length_penalty: float = 1.0,
    early: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """For each sample up to `beams` answers, best first, whatever is asked beside it.

    Every step keeps the `beams` likeliest unfinished answers (Sutskever et al. 2014, arXiv 1409.3215, section 3.2);
    scores and the end are those of transformers' `generate(num_beams=beams, max_new_tokens=max_tokens)`.

    max_tokens      longest answer in tokens, the one that ends it included; one that is cut there competes as it is
    length_penalty  above 0 favours long answers, since log-probabilities are negative; 0 compares them as they are
    early           end as soon as `beams` answers are finished (early_stopping=True). Otherwise when, moreover, the
                    best unfinished one, scored at its present length, is no better than the worst finished one
                    (early_stopping=False): with a positive length_penalty it might yet have become better
    progress        called with the number of samples that are complete

    Raises UserError for impossible options, and for a model that says several streams.
    """
    for name, value in (("beams", beams), ("max_tokens", max_tokens)):
        if value < 1:
            raise UserError(f"{name} is a whole number from 1 on, {value} was given")
    if not math.isfinite(length_penalty):
        raise UserError(f"length_penalty is a number, {length_penalty} was given")
    if engine.model.streams is not None:
        raise UserError("beam search is for models that say one stream of tokens, this one says several")
    options = _Options(beams, max_tokens, length_penalty, early, engine.stops)
    found: list[list[Hypothesis]] = []
    pending: list[Sequence] = []
    for sample in samples:
        sequence = engine.prompt(sample, Sampling(max_tokens=max_tokens))
        tokens = sum(map(len, pending)) + len(sequence)
        items = sum(len(member.spans) for member in pending) + len(sequence.spans)
        slots = (len(pending) + 1) * beams
        if pending and (slots > engine.slots or tokens > engine.tokens or items > engine.items):
            found += _group(engine, pending, options)
            pending = []
            if progress is not None:
                progress(len(found))
        pending.append(sequence)
    if pending:
        found += _group(engine, pending, options)
        if progress is not None:
            progress(len(found))
    return found


@torch.inference_mode()
def _group(engine: Engine, sequences: list[Sequence], options: _Options) -> list[list[Hypothesis]]:
    """Prompts that advance together: they are read in one packed pass, and every step is one of all their beams."""
    cache = engine.cache(len(sequences) * options.beams)
    with engine._evaluating():
        searches = [
            _Search(options, list(range(row * options.beams, (row + 1) * options.beams)), int(one.position.max()) + 1)
            for row, one in enumerate(sequences)
        ]
        logits = _read(engine, sequences, cache, options)
        for search, row in zip(searches, logits):
            search.advance(row[None], cache)
        while active := [search for search in searches if not search.ended]:
            logits = _step(engine, active, cache)
            for search, rows in zip(active, logits.split([len(search.slots) for search in active])):
                search.advance(rows, cache)
    decode = engine.renderer.tokenizer.decode
    return [[Hypothesis(decode(ids), score, ids) for score, ids in search.found] for search in searches]


def _read(engine: Engine, sequences: list[Sequence], cache: Cache, options: _Options) -> Tensor:
    """The prompts, each into the first of its slots -> (prompts, vocab) logits of what follows them."""
    packed = Sequence.pack(engine.prepare(sequences))
    layout = compile_layout(packed, engine.model.config.rule)
    cache.reserve(max(layout.lengths) + options.max_tokens)
    with cache.step(range(0, cache.slots, options.beams), layout):
        outputs = engine.model(packed, cache, layout)
    ends = torch.tensor(layout.lengths, device=outputs.hidden.device).cumsum(0) - 1
    return _words(engine, outputs.logits(ends))


def _step(engine: Engine, searches: list[_Search], cache: Cache) -> Tensor:
    """One token more in each beam of several searches -> (beams of all, vocab) logits of the next."""
    model, device = engine.model, engine.model.reference().device
    ids = torch.tensor([one[-1] for search in searches for one in search.ids], device=device)
    counts = torch.tensor([len(search.slots) for search in searches])
    position = torch.tensor([search.position for search in searches]).repeat_interleave(counts).to(device)
    rows = torch.arange(len(ids), device=device)[:, None]
    layout = Layout(rows, None, None, True, position[:, None].expand(-1, 3), lengths=[1] * len(ids))
    _, between = model.watch({})
    with cache.step([slot for search in searches for slot in search.slots], layout):
        hidden = model.stack(model.embed(ids), layout, cache, between=between)
    return _words(engine, model.stack.logits(hidden))


def _words(engine: Engine, logits: Tensor) -> Tensor:
    """logits (N, vocab) -> the same in float32, with -inf at codes of pictures: what is said are words."""
    config = engine.model.config
    if not config.formats:
        return logits.float()
    plain = Drawing({kind: (tokens, config.said(kind)) for kind, tokens in config.formats.items()})
    return torch.stack([plain.allow(row) for row in logits.float()])


class _Search:
    """The beams of one prompt.

    ids       of the unfinished answers, likeliest first; at the beginning there is one, with nothing said
    slots     of the cache, where each of them is held; those that nobody holds are `_spare`
    position  of the token that was said last, once there is one
    found     (score, ids) of finished answers, best first
    """

    def __init__(self, options: _Options, slots: list[int], position: int) -> None:
        self.options = options
        self.ids: list[tuple[int, ...]] = [()]
        self.slots, self._spare = slots[:1], slots[1:]
        self.position = position - 1
        self.found: list[tuple[float, tuple[int, ...]]] = []
        self.ended = False
        self._scores = torch.zeros(1)

    def advance(self, logits: Tensor, cache: Cache) -> None:
        """logits (beams, vocab) float32 of the next token of each -> the beams with one token more, or the end."""
        beams, stops = self.options.beams, self.options.stops
        self.position += 1
        length = len(self.ids[0]) + 1
        total = logits.log_softmax(-1) + self._scores[:, None].to(logits.device)
        # so many that, though every beam may end in every way, enough go on
        scores, places = total.flatten().topk(min((1 + max(len(stops), 1)) * beams, total.numel()))
        going: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(zip(scores.tolist(), places.tolist())):
            parent, id = divmod(place, logits.shape[1])
            if score == -math.inf:
                break
            if id not in stops and length < self.options.max_tokens:
                going.append((score, parent, id))
            elif rank < beams:
                said = self.ids[parent] if id in stops else (*self.ids[parent], id)
                self.found.append((score / length**self.options.length_penalty, said))
        self.found = sorted(self.found, key=lambda one: -one[0])[:beams]
        going = going[:beams]
        self.ended = not going or self._settled(going[0][0] / length**self.options.length_penalty)
        if not self.ended:
            self._scores = torch.tensor([score for score, _, _ in going])
            self.ids = [(*self.ids[parent], id) for _, parent, id in going]
            self._move([parent for _, parent, _ in going], cache)

    def _settled(self, best: float) -> bool:
        """Whether the search may end though its best unfinished answer has this score."""
        full = len(self.found) == self.options.beams
        return full and (self.options.early or best <= self.found[-1][0])

    def _move(self, parents: list[int], cache: Cache) -> None:
        """Let every beam hold what its parent held: its first child goes on in its slot, the others copy it."""
        spare = [*self._spare, *(slot for row, slot in enumerate(self.slots) if row not in parents)]
        taken: set[int] = set()
        slots: list[int] = []
        for parent in parents:
            if parent in taken:
                slots.append(spare.pop())
                cache.fork(self.slots[parent], slots[-1])
            else:
                slots.append(self.slots[parent])
                taken.add(parent)
        self.slots, self._spare = slots, spare
