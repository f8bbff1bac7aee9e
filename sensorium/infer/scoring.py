"""How likely the options of questions are: through the kernels of this machine, or in one pass of torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sensorium.infer.cache import Cache
from sensorium.infer.cutting import LEAST, Mark, head, marks_of, shared
from sensorium.infer.kernels.program import Newest, Program
from sensorium.infer.likelihoods import Likelihoods
from sensorium.mask import AttentionRule, compile_layout
from sensorium.models.wiring import Outputs, Wiring
from sensorium.objectives.language import log_likelihood, wanted
from sensorium.sequence import Sequence

SLOTS = 32  # options that are read together at most
ROOM = 4096  # places of the cache that these take, where a few do not take more


@dataclass(slots=True)
class _Asked:
    """A question that kernels can read.

    prompt   with what all options begin with
    x        (T, D) embeddings of its tokens: the prompt's, then those of one option after another
    same     (T) the token that is read in place of each: of what all options begin with the first one's
    before   of these tokens those that others are predicted from, rising
    options  (first, stop) of what is read of each option behind its prompt: none where nothing is predicted from it
    marks    what the prompt's tokens stand for
    states   (len(before), D) in pieces: what the kernels made of these
    """

    sequence: Sequence
    prompt: Sequence
    x: Tensor
    same: Tensor
    before: list[int]
    options: list[tuple[int, int]]
    marks: list[Mark]
    states: list[Tensor] = field(default_factory=list)

    @property
    def places(self) -> int:
        """That an option takes with its prompt, at most."""
        return len(self.prompt) + max((stop - first for first, stop in self.options), default=0)

    @property
    def abreast(self) -> int:
        """Options that are read together: each goes on from a copy of the prompt."""
        return max(min(len(self.options), SLOTS, max(ROOM // self.places, 4)), 1)

    def held(self, marks: list[Mark], rule: AttentionRule) -> int:
        """How many leading tokens need not be read again where a prompt of these marks was."""
        return min(shared(self.marks, marks, self.prompt, rule), self.before[0])

    def part(self, round_: int, slot: int) -> Iterator[_Piece]:
        """The options that are read in a round, each in a slot of its own from `slot` on."""
        some = self.options[round_ * self.abreast : (round_ + 1) * self.abreast]
        for place, (first, stop) in enumerate(some):
            yield _Piece(self, first, stop, slot + place, len(self.prompt))


class _Piece(NamedTuple):
    """Tokens `first` to before `stop` of a question, that stand in a slot from `place` on."""

    of: _Asked
    first: int
    stop: int
    slot: int
    place: int


class Scorer:
    """Scores rendered questions, each in a way that does not depend on what else is scored.

    Where the model has kernels for this machine and sees plainly what came before, prompts are read into a cache, but
    for what they begin with as one before them did, and their options behind copies of them, many questions in a pass.
    Elsewhere prompt and options are one packed pass of torch.

    prepare  what becomes of sequences before they are read: their media are encoded
    """

    def __init__(self, model: Wiring, prepare: Callable[[list[Sequence]], list[Sequence]]) -> None:
        self.model, self.prepare, self.rule = model, prepare, model.config.rule
        self._newest = Newest(model.stack)
        self._cache: Cache | None = None
        self._held: tuple[int, list[Mark]] = 0, []

    @torch.inference_mode()
    def score(self, questions: list[Sequence]) -> list[Likelihoods]:
        """Of each its options' likelihoods."""
        prepared = self.prepare(questions)
        if self.model.reference().device.type != "cpu":
            packed = Sequence.pack(prepared)
            return _likelihoods(self.model(packed), packed) if questions else []
        program = self._newest.program() if self.model.streams is None else None
        alone = [Sequence.pack([one]) for one in prepared]
        asked = [None if program is None else self._asked(one) for one in alone]
        for group in _groups([one for one in asked if one is not None]):
            assert program is not None
            self._read(program, group)
        scores: list[Likelihoods] = []
        for sequence, read in zip(alone, asked):
            # one at a time: torch adds up sums of many rows in an order that their number decides
            outputs = self.model(sequence) if read is None or program is None else _outputs(program, read)
            scores += _likelihoods(outputs, sequence)
        return scores

    def _asked(self, question: Sequence) -> _Asked | None:
        """None where more is to be known than who stands before whom."""
        if int(question.branch[0]) != 0 or bool((question.branch[1:] < question.branch[:-1]).any()):
            return None
        straight = replace(question, branch=torch.zeros_like(question.branch))
        x = self.model.alone(question) if compile_layout(straight, self.rule).plainly_causal else None
        if x is None:
            return None
        counts = torch.unique_consecutive(question.branch, return_counts=True)[1].tolist()
        starts = list(itertools.accumulate(counts))
        if any(span.start >= starts[0] for span in question.spans):
            return None
        ids = [question.ids[start : start + count].tolist() for start, count in zip(starts, counts[1:])]
        columns = enumerate(zip(*ids))
        alike = next((place for place, column in columns if len(set(column)) > 1), min(map(len, ids)))
        same = torch.arange(len(question))
        for start in starts[1:-1]:
            same[start : start + alike] = torch.arange(starts[0], starts[0] + alike)
        before = same[wanted(question)[0]].unique()
        ends = [int(before[before < stop].max()) + 1 for stop in starts[1:]]
        options = [(start + alike, end) for start, end in zip(starts, ends) if end > start + alike]
        prompt = head(question, starts[0] + alike)
        return _Asked(question, prompt, x, same, before.tolist(), options, marks_of(prompt, self.rule) or [])

    def _read(self, program: Program, group: list[_Asked]) -> None:
        """The prompts, of those that begin alike first one and then the rest of the others, then the options."""
        if self._cache is None:
            self._cache = Cache.of(self.model.stack, SLOTS, 512, half=True)
        cache = self._cache
        cache.reserve(max(one.places for one in group))
        slots = list(itertools.accumulate((one.abreast for one in group[:-1]), initial=0))
        (row, marks), self._held = self._held, (0, [])
        cache.exchange(row, 0)
        leader, at = group[0], 0
        known = leader.held(marks, self.rule)
        cache.truncate(0, known)
        first, rest = [_Piece(leader, known, len(leader.prompt), 0, known)], []
        for one, slot in zip(group[1:], slots[1:]):
            known = one.held(leader.marks, self.rule)
            if known < LEAST:
                leader, at = one, slot
                first.append(_Piece(one, 0, len(one.prompt), slot, 0))
            else:
                rest.append((at, _Piece(one, known, len(one.prompt), slot, known)))
        self._pass(program, cache, first)
        for source, piece in rest:
            cache.fork(source, piece.slot, piece.place)
        self._pass(program, cache, [piece for _, piece in rest])
        for one, slot in zip(group, slots):
            for other in range(slot + 1, slot + one.abreast):
                cache.fork(slot, other)
        for round_ in range(max(-(-len(one.options) // one.abreast) for one in group)):
            self._pass(program, cache, [piece for one, slot in zip(group, slots) for piece in one.part(round_, slot)])
        cache.truncate(at, len(leader.prompt))
        self._held = at, leader.marks

    def _pass(self, program: Program, cache: Cache, pieces: list[_Piece]) -> None:
        """Read pieces together; each question gets the states that are asked for."""
        if not pieces:
            return
        x = torch.cat([piece.of.x[piece.first : piece.stop] for piece in pieces])
        position = torch.cat([piece.of.sequence.position[piece.first : piece.stop] for piece in pieces])
        sizes = [piece.stop - piece.first for piece in pieces]
        slots = [piece.slot for piece, size in zip(pieces, sizes) for _ in range(size)]
        places = [piece.place + place for piece, size in zip(pieces, sizes) for place in range(size)]
        starts = itertools.accumulate(sizes, initial=0)
        kept = [
            [start + token - piece.first for token in piece.of.before if piece.first <= token < piece.stop]
            for piece, start in zip(pieces, starts)
        ]
        hidden = program.read(x, slots, places, position, cache, [row for rows in kept for row in rows])
        for piece, states in zip(pieces, hidden.split([len(rows) for rows in kept])):
            piece.of.states.append(states)
        cache.wrote(slots, places, position)


def _groups(asked: list[_Asked]) -> Iterator[list[_Asked]]:
    """Questions that are read together: as many as there are slots for, and room."""
    group: list[_Asked] = []
    for asked_ in asked:
        together = [*group, asked_]
        full = sum(one.abreast for one in together) > SLOTS or sum(one.abreast * one.places for one in together) > ROOM
        if group and full:
            yield group
            group = []
        group.append(asked_)
    if group:
        yield group


def _outputs(program: Program, read: _Asked) -> Outputs:
    """What was read of a question, its vocabulary at the tokens that others are predicted from."""
    hidden, before = torch.cat(read.states), torch.tensor(read.before)

    def logits(index: Tensor) -> Tensor:
        rows, inverse = torch.searchsorted(before, read.same[index]).unique(return_inverse=True)
        made = program.logits(hidden[rows])
        in_order = torch.equal(inverse, torch.arange(len(made)))  # those of a long text need no copy
        return made if in_order else made[inverse]

    return Outputs(hidden, logits)


def _likelihoods(outputs: Outputs, packed: Sequence) -> list[Likelihoods]:
    sums, counts = (table.tolist() for table in log_likelihood(outputs, packed))
    options = [0] * packed.documents
    for document, branch in zip(packed.doc.tolist(), packed.branch.tolist()):
        options[document] = max(options[document], branch)
    return [
        Likelihoods(tuple(sums[row][1 : count + 1]), tuple(counts[row][1 : count + 1]))
        for row, count in enumerate(options)
    ]
