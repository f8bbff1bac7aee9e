"""From the loop's thread to the client: pieces of answers, time-outs, clients that hang up, server-sent events."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sensorium.errors import UserError
from sensorium.infer.loop import Busy, Closed, Piece, Ticket
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample
from sensorium.serve.errors import GONE, ApiError, busy, failed, leaving, too_slow, wrong
from sensorium.serve.gate import Visit, log
from sensorium.serve.hosted import Hosted

T = TypeVar("T")


class Watch:
    """Runs what a request asks for, until it is done, its client hangs up, its time is over or the server stops."""

    def __init__(self, request: Request) -> None:
        self.visit: Visit = request.scope["sensorium"]
        self.seconds = self.visit.limits.request_seconds
        self._end = self.visit.started + self.seconds
        self._gone = asyncio.create_task(_hung_up(request))
        self._stop = asyncio.create_task(self.visit.state.stopped.wait())

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Raises ApiError where it is cut short; the work is then cancelled, and has ended."""
        task = asyncio.create_task(work)
        try:
            left = self._end - time.perf_counter()
            await asyncio.wait({task, self._gone, self._stop}, timeout=max(left, 0), return_when="FIRST_COMPLETED")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            return task.result()
        if self._gone.done():
            raise ApiError(GONE, "the client hung up", code="disconnected")
        raise leaving() if self._stop.done() else too_slow(self.seconds)

    def close(self) -> None:
        self._gone.cancel()
        self._stop.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Asking:
    """The prompts of one request at a loop, and what is heard of them on the event loop's side.

    answers  of each prompt; answer i of prompt p is choice p * answers + i
    """

    def __init__(self, hosted: Hosted, visit: Visit, prompts: int, answers: int) -> None:
        self.hosted, self.visit, self.answers = hosted, visit, answers
        self.tickets: list[Ticket] = []
        self.left = prompts * answers
        self._events = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[float, int, Piece | Exception]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._closed = False
        self._last: dict[int, float] = {}
        self._submitted = time.perf_counter()

    # ---- on a thread that reads prompts

    def submit(self, samples: Iterable[Sample], sampling: Callable[[Sample], Sampling]) -> None:
        """Raises ApiError for what the loop refuses."""
        loop = self.hosted.must_answer()
        try:
            for number, sample in enumerate(samples):
                ticket = loop.submit(sample, sampling(sample), self._hear(number), self.visit.owner)
                with self._lock:
                    if self._closed:
                        ticket.cancel()
                    else:
                        self.tickets.append(ticket)
        except ApiError:  # its own cause would be itself, and all that it knows of stay until cycles are looked for
            raise
        except Exception as error:
            raise refusal(error) from error

    # ---- on the loop's thread

    def _hear(self, prompt: int) -> Callable[[Piece | Exception], None]:
        def heard(piece: Piece | Exception) -> None:
            if self._closed:
                return
            try:
                self._events.call_soon_threadsafe(self._queue.put_nowait, (time.perf_counter(), prompt, piece))
            except RuntimeError:
                return  # the event loop has ended, and the client's connection with it

        return heard

    # ---- on the event loop

    async def heard(self) -> list[tuple[int, Piece]]:
        """What has come, by choice; at least one. Raises ApiError where the loop failed or ended."""
        found = [await self._queue.get()]
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return [(self._choice(when, prompt, piece)) for when, prompt, piece in found]

    def _choice(self, when: float, prompt: int, piece: Piece | Exception) -> tuple[int, Piece]:
        if isinstance(piece, Exception):
            raise refusal(piece) from piece
        if piece.finish == "cancelled":  # not by this request: nobody waits for one that was cancelled
            raise leaving()
        choice = prompt * self.answers + piece.answer
        self._measure(choice, when)
        self.left -= piece.finish is not None
        return choice, piece

    def _measure(self, choice: int, when: float) -> None:
        metrics, name = self.visit.state.metrics, self.hosted.name
        if not self._last:
            metrics.first.labels(name).observe(when - self.visit.started)
            metrics.queue.labels(name).observe(when - self._submitted)
            self.visit.notes["first_ms"] = round(1000 * (when - self.visit.started))
        if choice in self._last:
            metrics.between.labels(name).observe(when - self._last[choice])
        self._last[choice] = when

    async def pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        while self.left:
            yield await self.heard()

    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and answers so far, as the interface counts them."""
        prompt, said, cached = (
            sum(getattr(ticket, name) for ticket in self.tickets)
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
        )
        self.visit.notes |= {"prompt_tokens": prompt, "completion_tokens": said, "cached_tokens": cached}
        return {
            "prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip

    def close(self) -> None:
        """Whatever is not finished is given up, also what a thread still submits."""
        with self._lock:
            self._closed = True
            for ticket in self.tickets:
                if not ticket.done:
                    ticket.cancel()
        self.usage()
        self.tickets = []  # they know who listens: what they hold is free now, not when cycles are looked for


def refusal(error: Exception) -> ApiError:
    """What a client is told of an error of the loop; of a failure of the program no more than that there was one."""
    match error:
        case Busy():
            return busy("too many requests wait already")
        case Closed():
            return leaving()
        case UserError():
            return wrong(str(error))
    log.error("generation failed", exc_info=error)
    return failed()


class Events(Response):
    """Server-sent events of an answer that is begun: what goes wrong from here on is an event too."""

    media_type = "text/event-stream"

    def __init__(self, watch: Watch, events: AsyncIterator[bytes], done: Callable[[], None]) -> None:
        self.watch, self.events, self.done = watch, events, done
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = b""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self.watch.run(self._pump(send))
        except ApiError as error:
            self.watch.visit.code = error.code or ""
            if error.status_code == GONE:
                self.watch.visit.status = GONE
                return
            last = event(error.value())
        finally:
            self.done()
        await send({"type": "http.response.body", "body": last})

    async def _pump(self, send: Send) -> None:
        async for content in self.events:
            await send({"type": "http.response.body", "body": content, "more_body": True})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
