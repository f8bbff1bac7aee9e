"""Samples to packed micro-batches, as a function of (seed, position).

The order of samples is a function of (seed, epoch); a batch takes samples from `position` on until the next one would
exceed the token or item budget. So the state of the loader is one number, and resuming is starting there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from sensorium.data.source import RowError
from sensorium.render import Renderer, TooLong
from sensorium.sequence import MediaError, Sample, Sequence
from sensorium.train.recipe import Stage


class Ordered(Protocol):
    """An endless, seekable order of samples."""

    def at(self, position: int) -> Sample:
        """The sample at this place of the order. Raises RowError for a row that cannot be read."""
        ...


@dataclass(slots=True)
class Batch:
    """One packed micro-batch; `position` is where the next one starts.

    skipped  (position, reason) of rows that could not be used
    """

    sequence: Sequence
    position: int
    samples: int
    skipped: list[tuple[int, str]] = field(default_factory=list)
    text: list[Sample] = field(default_factory=list)


class Batches:
    """Iterates over micro-batches from a position on, one batch ahead in a thread."""

    def __init__(self, order: Ordered, renderer: Renderer, stage: Stage, position: int = 0, ahead: int = 2) -> None:
        self.order, self.renderer, self.stage, self.ahead = order, renderer, stage, ahead
        self.position = position
        self._held: tuple[Sequence, Sample] | None = None

    def _one(self, skipped: list[tuple[int, str]]) -> tuple[Sequence, Sample]:
        """The next usable sample, rendered. Raises UserError-free RuntimeError when nothing at all is usable."""
        limit = min(self.stage.max_tokens or self.stage.tokens, self.stage.tokens)
        for _ in range(1000):
            try:
                sample = self.order.at(self.position)
                sequence = self.renderer.render(sample, max_tokens=limit)
                pictures = sum(len(items) for items in sequence.items.values())
                if self.stage.items is not None and pictures > self.stage.items:
                    raise TooLong(f"sample {sample.id} has {pictures} items, a batch holds {self.stage.items}")
                return sequence, sample
            except (RowError, MediaError, TooLong) as error:
                skipped.append((self.position, str(error)))
                self.position += 1
        raise RowError(f"1000 rows in a row are unusable; the last: {skipped[-1][1]}")

    def build(self) -> Batch:
        """The next micro-batch."""
        parts: list[Sequence] = []
        samples: list[Sample] = []
        skipped: list[tuple[int, str]] = []
        tokens = items = 0
        while True:
            sequence, sample = self._held or self._one(skipped)
            self._held = None
            count = sum(len(members) for members in sequence.items.values())
            full = parts and (
                tokens + len(sequence) > self.stage.tokens
                or (self.stage.items is not None and items + count > self.stage.items)
            )
            if full:
                self._held = (sequence, sample)  # rendered already; its place in the order stays the batch's end
                return Batch(Sequence.pack(parts), self.position, len(parts), skipped, samples)
            parts.append(sequence)
            samples.append(sample)
            tokens, items = tokens + len(sequence), items + count
            self.position += 1

    def __iter__(self) -> Iterator[Batch]:
        return ahead(self.build, self.ahead)


def ahead(build: Callable[[], Batch], depth: int) -> Iterator[Batch]:
    """Run `build` in a thread, `depth` results ahead; its exceptions are raised here."""
    results: queue.Queue = queue.Queue(maxsize=max(1, depth))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                result = build()
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
