"""Samples to packed micro-batches, as a function of (seed, position).

The order of samples is a function of (seed, epoch); a batch takes samples from `position` on until the next one would
exceed the token or item budget. So the state of the loader is one number, and resuming is starting there.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sensorium.data.mixture import BadRows, Mixture, SafeSource, mean_cost
from sensorium.data.source import RowError
from sensorium.errors import UserError
from sensorium.render import Renderer, TooLong
from sensorium.sequence import MediaError, Sequence
from sensorium.train.recipe import Stage


@dataclass(slots=True)
class Batch:
    """One packed micro-batch; `position` is where the next one starts.

    bad  every bad row so far (BadRows.state)
    """

    sequence: Sequence
    position: int
    samples: int
    bad: list[dict[str, Any]] = field(default_factory=list)


class Batches:
    """Micro-batches of a stage from a position on. Iterating builds them a few ahead, in a thread."""

    def __init__(
        self, stage: Stage, renderer: Renderer, seed: int, position: int = 0, bad: list[dict[str, Any]] | None = None
    ) -> None:
        if stage.data is None:
            raise UserError(f"stage {stage.name!r} has no data: give --data, or a recipe that names a source")
        self.stage, self.renderer, self.position = stage, renderer, position
        self.mixture = Mixture.of(stage.data).build(cost=self._tokens)
        self.bad = BadRows.restore(bad or [])
        self._safe = SafeSource(self.mixture, seed, skip=(RowError, MediaError, TooLong))
        self._held: Sequence | None = None

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

    def _render(self, sample: Any) -> Sequence:
        limit = min(self.stage.max_tokens or self.stage.tokens, self.stage.tokens)
        sequence = self.renderer.render(sample, max_tokens=limit)
        pictures = _items(sequence)
        if self.stage.items is not None and pictures > self.stage.items:
            raise TooLong(f"sample {sample.id} has {pictures} items, a batch holds {self.stage.items}")
        return sequence

    def build(self) -> Batch:
        """The next micro-batch."""
        parts: list[Sequence] = []
        tokens = items = 0
        while True:
            if self._held is None:
                epoch, place = divmod(self.position, self.mixture.samples)
                self._safe.bad = BadRows()  # of this sample; counted when a batch takes it, once, resumed or not
                self._held = self._safe.get(place, epoch, self._render)
            sequence = self._held
            tokens, items = tokens + len(sequence), items + _items(sequence)
            full = tokens > self.stage.tokens or (self.stage.items is not None and items > self.stage.items)
            if parts and full:  # what is held stays for the next batch; its place is where this one ends
                return Batch(Sequence.pack(parts), self.position, len(parts), self.bad.state())
            parts.append(sequence)
            for row in self._safe.bad.rows.values():
                self.bad.record(row.part, row.row, row.where, row.reason)
            self._held = None
            self.position += 1

    def __iter__(self) -> Iterator[Batch]:
        return ahead(self.build, 2)


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
