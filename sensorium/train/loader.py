"""Samples to packed micro-batches, as a function of (seed, position).

The order of samples is a function of (seed, epoch); a batch takes samples from `position` on until the next one would
exceed the token or item budget. So the state of the loader is one number, and resuming is starting there.

On several ranks the micro-batches of a step are those of one process, dealt out in turn. Every rank plans all of them
(text and shapes, which is all that their borders depend on) and decodes the media of its own.
"""

from __future__ import annotations

import copy
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sensorium.data.mixture import BadRows, Mixture, SafeSource, SkippedRow, mean_cost
from sensorium.data.source import RowError
from sensorium.errors import UserError
from sensorium.render import Renderer, TooLong
from sensorium.sequence import MediaError, Sequence
from sensorium.train.parallel import ALONE, Ranks
from sensorium.train.recipe import Stage


@dataclass(slots=True)
class Batch:
    """One packed micro-batch; `position` is where the next one starts.

    bad     every bad row so far (BadRows.state)
    mine    whether this rank trains on it; only then its items are loaded
    broken  rows that could be planned but not decoded, met while it was built and not known before
    """

    sequence: Sequence
    position: int
    samples: int
    bad: list[dict[str, Any]] = field(default_factory=list)
    mine: bool = True
    broken: list[SkippedRow] = field(default_factory=list)


class Batches:
    """Micro-batches of a stage from a position on. Iterating builds them a few ahead, in a thread."""

    def __init__(
        self,
        stage: Stage,
        renderer: Renderer,
        seed: int,
        position: int = 0,
        bad: list[dict[str, Any]] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if stage.data is None:
            raise UserError(f"stage {stage.name!r} has no data: give --data, or a recipe that names a source")
        self.stage, self.renderer = stage, renderer
        self.mixture = Mixture.of(stage.data).build(cost=self._tokens)
        self.ranks, self._seed = ranks, seed
        self._start(position, bad or [], ())

    def _start(self, position: int, bad: list[dict[str, Any]], known: Iterable[SkippedRow]) -> None:
        self.position, self.bad = position, BadRows.restore(bad)
        self._safe = SafeSource(self.mixture, self._seed, skip=(RowError, MediaError, TooLong), known=tuple(known))
        self._held: Sequence | None = None
        self._loaded = False  # whether the held sequence has its items
        self._broken: list[SkippedRow] = []
        self._count = 0

    def again(self, position: int, bad: list[dict[str, Any]], broken: Iterable[SkippedRow]) -> Batches:
        """The same batches from a position where a step begins, with rows that are known to be broken."""
        other = copy.copy(self)
        other._start(position, bad, [*self._safe.known.values(), *broken])
        return other

    def steps(self) -> int:
        """Optimizer steps of the stage: as given, or what its epochs fill by the mean length of a sample."""
        if self.stage.steps is not None:
            return self.stage.steps
        samples = self.mixture.samples * (self.stage.epochs or 1.0)
        mean = sum(
            mean_cost(source, name, self._filled) * float(share)
            for source, (name, share) in zip(self.mixture.sources, self.mixture.shares.items())
        )
        return max(1, math.ceil(samples * mean / self.stage.accumulate))

    def _filled(self, sample: Any) -> float:
        """The part of a micro-batch that a sample fills: of its tokens or of its items, whichever is more."""
        sequence = self.renderer.render(sample, items=False)
        tokens = min(1.0, len(sequence) / self.stage.tokens)
        return tokens if self.stage.items is None else max(tokens, min(1.0, _items(sequence) / self.stage.items))

    def _tokens(self, sample: Any) -> float:
        return float(len(self.renderer.render(sample, items=False)))

    def _plan(self, sample: Any) -> Sequence:
        return self._render(sample, items=False)

    def _render(self, sample: Any, items: bool = True) -> Sequence:
        limit = min(self.stage.max_tokens or self.stage.tokens, self.stage.tokens)
        sequence = self.renderer.render(sample, items=items, max_tokens=limit)
        pictures = _items(sequence)
        if self.stage.items is not None and pictures > self.stage.items:
            raise TooLong(f"sample {sample.id} has {pictures} items, a batch holds {self.stage.items}")
        return sequence

    def build(self) -> Batch:
        """The next micro-batch."""
        parts: list[Sequence] = []
        tokens = items = 0
        mine = self._count % self.ranks.world == self.ranks.rank
        while True:
            sequence = self._next(mine)
            tokens, items = tokens + len(sequence), items + _items(sequence)
            full = tokens > self.stage.tokens or (self.stage.items is not None and items > self.stage.items)
            if parts and full:  # what is held stays for the next batch; its place is where this one ends
                self._count += 1
                broken, self._broken = self._broken, []
                return Batch(Sequence.pack(parts), self.position, len(parts), self.bad.state(), mine, broken)
            parts.append(sequence)
            for row in self._safe.bad.rows.values():
                self.bad.record(row.part, row.row, row.where, row.reason)
            self._held = None
            self.position += 1

    def _next(self, mine: bool) -> Sequence:
        """The sequence at the position; what was only planned for another rank's batch is loaded for one's own."""
        if self._held is None or (mine and not self._loaded):
            epoch, place = divmod(self.position, self.mixture.samples)
            self._safe.bad = BadRows()  # of this sample; counted when a batch takes it, once, resumed or not
            self._held = self._safe.get(place, epoch, self._render if mine else self._plan)
            self._loaded = mine
            if mine and self.ranks.world > 1:
                self._broken += [row for key, row in self._safe.bad.rows.items() if self._others_take(*key)]
        return self._held

    def _others_take(self, part: str, row: int) -> bool:
        """Whether a rank that only plans would find nothing wrong with a row that is bad."""
        if (part, row) in self._safe.known:
            return False
        try:
            self._plan(self.mixture.get(self.mixture.names.index(part), row))
        except self._safe.skip:
            return False
        return True

    def __iter__(self) -> Iterator[Batch]:
        return ahead(self.build, 2 * self.ranks.world)


class Feed:
    """The micro-batches of one optimizer step after another; on several ranks the same ones on each.

    A row that cannot be decoded is found by the rank that decodes it, and the row that replaces it may move the border
    of its batch and of all after it. So before a step the ranks tell each other what broke; if anything did, all build
    the step once more with these rows known to be bad. The batches are then those of one process.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._begin = (batches.position, batches.bad.state())
        self._stream = iter(batches)

    def step(self) -> list[Batch]:
        """All micro-batches of the next step, in order."""
        ranks = self.batches.ranks
        while True:
            found = [next(self._stream) for _ in range(self.batches.stage.accumulate)]
            broken = [row for batch in found for row in batch.broken]
            if ranks.any(bool(broken)) == [False]:
                self._begin = (found[-1].position, found[-1].bad)
                return found
            self.close()
            everyone = [row for one in ranks.gathered(broken) for row in one]
            self.batches = self.batches.again(*self._begin, everyone)
            self._stream = iter(self.batches)

    def close(self) -> None:
        self._stream.close()  # type: ignore[attr-defined]


def _items(sequence: Sequence) -> int:
    inside = (_items(item.source) for item in sequence.items.get("text", ()) if item.source is not None)
    return sum(len(members) for kind, members in sequence.items.items() if kind != "text") + sum(inside)


def ahead(build: Callable[[], Batch], depth: int) -> Iterator[Batch]:
    """Run `build` in a thread, `depth` results ahead; its exceptions are raised here."""
    results: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                result: Batch | BaseException = build()
            except BaseException as error:  # handed to the consumer
                result = error
            while not stop.is_set():
                try:
                    results.put(result, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(result, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True, name="sensorium-loader")
    thread.start()
    try:
        while True:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        thread.join(timeout=5)
