"""The server as a process: sockets, signals, draining, log."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sensorium.errors import UserError
from sensorium.infer.room import give_back
from sensorium.serve.gate import State, log

REST = 65.0
"""Seconds without work after which memory is given back: a little longer than loops wait before they do."""
LAST = 2.0
"""Seconds for what is ended to tell its clients so."""


class JsonLines(logging.Formatter):
    """One JSON object a line. Of an exception its kind and where it was raised: a message may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        value: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(), "event": record.getMessage().strip().partition("\n")[0],
        }  # fmt: skip
        value |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            value["error"] = type(error).__name__
            value["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}"
                              for frame in traceback.extract_tb(error.__traceback__)][-8:]  # fmt: skip
        return json.dumps(value, ensure_ascii=False)


def log_to_stderr(level: int = logging.INFO) -> None:
    """The server's log and that of what it stands on, threads that end and warnings included, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("sensorium.serve", level), ("uvicorn.error", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    threading.excepthook = _thread_ended
    warnings.showwarning = _warned
    # of what is wrong with a picture its sender is told; a warning of each would also be remembered for ever
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _thread_ended(found: threading.ExceptHookArgs) -> None:
    error = found.exc_value
    if error is not None:
        log.critical("a thread ended", exc_info=(found.exc_type, error, found.exc_traceback))


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """Its kind and where it was raised: what it says may quote a request."""
    log.warning("warning", extra={"fields": {"error": category.__name__, "where": [f"{filename}:{lineno}"]}})


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the port is taken."""
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return found


def address_of(sock: socket.socket) -> str:
    """http://host:port"""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 in which the head of a request, the first and each after it, must come in within so many seconds."""

    class Impatient(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            self._wait()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            self.waiting = self.loop.call_later(seconds, self._enough, self.cycle)

        def _enough(self, before: Any) -> None:
            if self.cycle is before and not self.transport.is_closing():
                self.transport.close()

    return Impatient


class Server(uvicorn.Server):
    """uvicorn, with signals that begin to drain. Exit code 0: whoever sent the signal meant it."""

    def __init__(self, app: FastAPI, drain: float, rest: float = REST) -> None:
        self.state: State = app.state.serving
        self.drain, self.rest = drain, rest
        config = uvicorn.Config(
            app, http=protocol(self.state.limits.head_seconds), ws="none", lifespan="auto", log_config=None,
            access_log=False, server_header=False, timeout_keep_alive=30, proxy_headers=False,
            timeout_graceful_shutdown=int(LAST) + 1, backlog=2048,
        )  # fmt: skip
        super().__init__(config)
        self._draining: asyncio.Task[None] | None = None
        self._seen, self._since, self._rested = -1, time.monotonic(), True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain; the second one does not wait."""
        if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
            yield
            return
        loop = asyncio.get_running_loop()
        names = [signal.SIGTERM, signal.SIGINT]
        before = {name: signal.signal(name, lambda *_: loop.call_soon_threadsafe(self.leave)) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._rest()
        return await super().on_tick(counter)

    def _rest(self) -> None:
        """After a while without work, once, memory is given back."""
        state, now = self.state, time.monotonic()
        if state.active or state.worked != self._seen:
            self._seen, self._since, self._rested = state.worked, now, False
        elif not self._rested and now - self._since >= self.rest:
            self._rested = True
            asyncio.get_running_loop().run_in_executor(None, _rest, state)

    def leave(self) -> None:
        """Nothing new is taken; what was accepted is finished, if there is time; then the server ends."""
        if self._draining is None:
            self.state.draining = True
            log.info("draining", extra={"fields": {"active": self.state.active, "seconds": self.drain}})
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self.drain = 0

    async def _drain(self) -> None:
        began = time.monotonic()
        while self.state.active and time.monotonic() - began < self.drain:
            await asyncio.sleep(0.02)
        log.info("ending", extra={"fields": {"unfinished": self.state.active}})
        self.state.stopped.set()
        began = time.monotonic()
        while self.state.active and time.monotonic() - began < LAST:
            await asyncio.sleep(0.02)
        self.should_exit = True


def _rest(state: State) -> None:
    for hosted in state.models:
        hosted.rest()
    gc.collect()
    give_back()


def run(app: FastAPI, sock: socket.socket, drain: float, rest: float = REST) -> None:
    """Serve until a signal says to end."""
    state: State = app.state.serving
    try:
        Server(app, drain, rest).run(sockets=[sock])
    finally:
        for hosted in state.models:
            hosted.close()
    log.info("ended")
