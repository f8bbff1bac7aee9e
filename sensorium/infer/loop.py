"""The generation loop on a thread of its own, for servers: requests come from any thread, pieces of answers go back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from sensorium.infer.cutting import owned
from sensorium.infer.engine import Engine
from sensorium.infer.request import Finish, Request
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample

REST = 60.0  # seconds without a request after which memory of earlier ones is given back


class Busy(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """The loop takes no requests: it is draining, or has ended."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A chosen token; logarithms are natural. top: the likeliest (id, text, logprob), likeliest first."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What an answer grew by.

    answer  which of the n answers of its request
    tokens  chosen since the last piece, where `Sampling.logprobs` asks for them
    finish  why it ended, in its last piece
    """

    answer: int
    text: str
    tokens: tuple[Scored, ...]
    finish: Finish | None


@dataclass(slots=True)
class Stats:
    """Counts since the loop began."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    failed: int = 0


Heard = Callable[["Piece | Exception"], None]


class Ticket:
    """One request under way, with all of its answers. Thread-safe."""

    def __init__(self, loop: Loop, requests: list[Request], heard: Heard) -> None:
        self.requests, self.heard, self._loop = requests, heard, loop
        self.prompt_tokens = len(requests[0].sequence)
        self.cancelled = False
        self.done = False
        self._told = [0] * len(requests)
        self._ended = [False] * len(requests)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were read for an earlier request."""
        return self.requests[0].cached

    @property
    def completion_tokens(self) -> int:
        return sum(len(request.ids) for request in self.requests)

    def cancel(self) -> None:
        """Its memory is free at the next step; its answers finish as "cancelled"."""
        self.cancelled = True
        self._loop.wake()

    def tell(self) -> None:
        """What is new of each answer goes to whoever listens. Raises what was asked for and cannot be."""
        for index, request in enumerate(self.requests):
            if self._ended[index]:
                continue
            if request.error is not None:
                raise request.error
            text, tokens = request.new_text(), self._scored(index)
            self._ended[index] = request.done
            if text or tokens or request.done:
                self.heard(Piece(index, text, tokens, request.finish))
        self.done = all(self._ended)

    def _scored(self, index: int) -> tuple[Scored, ...]:
        request = self.requests[index]
        new = request.scored[self._told[index] :]
        self._told[index] += len(new)
        words = request.text.of
        return tuple(
            Scored(one.id, words(one.id), one.logprob or 0.0, tuple((id, words(id), value) for id, value in one.top))
            for one in new
        )


class Loop:
    """Continuous batching for whoever asks, until it is closed.

    waiting  requests that may wait for a slot; more are turned away (`Busy`)
    rest     seconds without a request after which memory is given back
    """

    def __init__(self, engine: Engine, waiting: int = 64, rest: float = REST) -> None:
        self.engine, self.limit, self.rest = engine, waiting, rest
        self.stats = Stats()
        self._new: list[Ticket | tuple[Callable[[], Any], Future[Any]]] = []
        self._tickets: list[Ticket] = []
        self._changed = threading.Condition(threading.RLock())
        self._closing: float | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="sensorium generation", daemon=True)

    def start(self) -> Loop:
        self.engine.model.eval()
        self._thread.start()
        return self

    def close(self, drain: float = 0.0) -> None:
        """Take nothing more; what was accepted may go on for `drain` seconds, then it is cancelled. Waits until all has
        ended."""
        with self._changed:
            self._closing = time.monotonic() + drain
            self._changed.notify()
        self._thread.join()

    def submit(self, sample: Sample, sampling: Sampling, heard: Heard, owner: str = "") -> Ticket:
        """Ask, from any thread: the prompt is rendered and its media decoded there.

        owner  what was read of a prompt is read again for this owner's alone, so that nobody learns from how fast an
               answer comes, or from its count of cached tokens, what others ask
        heard  is called on the loop's thread with each Piece; or with an Exception, after which nothing comes
        Raises Busy, Closed, and UserError for a prompt that cannot be read.
        """
        self._admissible()
        first = self.engine.open(sample, sampling.answer(0))
        others = (sampling.answer(number) for number in range(1, sampling.n))
        requests = [first, *(self.engine.request(first.sequence, one) for one in others)]
        for request in requests:
            request.marks = owned(request.marks, owner)
        ticket = Ticket(self, requests, heard)
        with self._changed:
            self._admissible()
            self._new.append(ticket)
            self._changed.notify()
        return ticket

    def call(self, ask: Callable[[], Any]) -> Future[Any]:
        """Ask the model something else (an embedding, say) between two steps, on the loop's thread. Raises Closed."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closing is not None:
                raise Closed
            self._new.append((ask, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """Requests that no slot is free for yet."""
        with self._changed:
            every = [*self._new, *self._tickets]
        return sum(isinstance(one, Ticket) and not one.requests[0].begun for one in every)

    @property
    def active(self) -> int:
        """Requests that are being read or answered."""
        return sum(one.requests[0].begun for one in list(self._tickets))

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _admissible(self) -> None:
        if self._closing is not None or not self._thread.is_alive():
            raise Closed
        if self.waiting >= self.limit:
            raise Busy

    # ---- on the thread

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread does not inherit it
        while self._wait():
            self._take()
            for ticket in [one for one in self._tickets if one.cancelled]:
                for request in ticket.requests:
                    self.engine.scheduler.cancel(request)
            self._step()
            for ticket in list(self._tickets):
                self._tell(ticket)
        self._turn_away()
        for ticket in list(self._tickets):
            for request in ticket.requests:
                self.engine.scheduler.cancel(request)
            self._tell(ticket)

    def _wait(self) -> bool:
        """Until there is something to do; False when all has ended."""
        with self._changed:
            if not self._changed.wait_for(self._stirs, self.rest):
                self.engine.rest()
                self._changed.wait_for(self._stirs)
            if self._closing is None:
                return True
            return bool(self._new or self._tickets) and time.monotonic() < self._closing

    def _stirs(self) -> bool:
        return bool(self._new or self._tickets or self._closing is not None)

    def _take(self) -> None:
        with self._changed:
            new, self._new = self._new, []
            self._tickets += [one for one in new if isinstance(one, Ticket)]
        for one in new:
            if isinstance(one, Ticket):
                self.stats.requests += 1
                for request in one.requests:
                    self.engine.scheduler.submit(request)
                continue
            ask, future = one
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(ask())
                except Exception as result:
                    future.set_exception(result)

    def _turn_away(self) -> None:
        """What came while the end was near is told so: somebody may wait for it."""
        with self._changed:
            new, self._new = self._new, []
        for one in new:
            if isinstance(one, Ticket):
                self._tickets.append(one)
            elif one[1].set_running_or_notify_cancel():
                one[1].set_exception(Closed())

    def _step(self) -> None:
        scheduler = self.engine.scheduler
        if scheduler.idle:
            return
        try:
            scheduler.step()
        except Exception as result:
            for request in scheduler.blamed():
                for ticket in [one for one in self._tickets if request in one.requests]:
                    self._fail(ticket, result)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self.stats.failed += 1
        for request in ticket.requests:
            self.engine.scheduler.cancel(request)
        self._end(ticket)
        with suppress(Exception):
            ticket.heard(error)

    def _tell(self, ticket: Ticket) -> None:
        try:
            ticket.tell()
        except Exception as result:  # whoever listened is gone
            self._fail(ticket, result)
            return
        if ticket.done:
            self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.done = True
        self._tickets.remove(ticket)
        self.stats.prompt_tokens += ticket.prompt_tokens
        self.stats.cached_tokens += ticket.cached_tokens
        self.stats.completion_tokens += ticket.completion_tokens
