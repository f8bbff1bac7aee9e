"""A generation loop on a thread (to be replaced by the continuous-batching one: same names, same calls)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample

Finish = Literal["stop", "length", "cancelled"]


class Busy(Exception):
    """The queue is full."""


class Closed(Exception):
    """The loop takes nothing more."""


@dataclass(frozen=True, slots=True)
class Scored:
    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    answer: int
    text: str
    tokens: tuple[Scored, ...]
    finish: Finish | None


@dataclass(slots=True)
class Stats:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    failed: int = 0


class Ticket:
    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.cached_tokens, self.completion_tokens = prompt_tokens, 0, 0
        self.done = self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    def __init__(self, engine: Engine, waiting: int = 64) -> None:
        self.engine, self.limit = engine, waiting
        engine.lock = threading.RLock()  # type: ignore[attr-defined]
        self.stats = Stats()
        self.active = 0
        self._queue: queue.Queue = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def start(self) -> Loop:
        self._thread.start()
        return self

    def close(self, drain: float = 0.0) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join(drain or None)

    def submit(self, sample: Sample, sampling: Sampling, heard: Callable[[Piece | Exception], None]) -> Ticket:
        if self._closed:
            raise Closed
        if self.waiting >= self.limit:
            raise Busy
        ticket = Ticket(len(self.engine.prompt(sample, sampling)))
        self._queue.put((ticket, sample, sampling, heard))
        return ticket

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            ticket, sample, sampling, heard = job
            self.active = 1
            try:
                with self.engine.lock:  # type: ignore[attr-defined]
                    for text in self.engine.stream(sample, sampling):
                        ticket.completion_tokens += 1
                        if ticket.cancelled:
                            break
                        heard(Piece(0, text, (), None))
                finish: Finish = "cancelled" if ticket.cancelled else "stop"
                if ticket.completion_tokens >= sampling.max_tokens:
                    finish = "length"
                heard(Piece(0, "", (), finish))
            except Exception as result:
                heard(result)
            ticket.done = True
            self.active = 0
