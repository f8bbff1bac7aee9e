"""What every request passes first and last: keys, draining, how many there are, one line of log, numbers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.serve.errors import GONE, ApiError, busy, leaving
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Budget, Limits
from sensorium.serve.metrics import Metrics

log = logging.getLogger("sensorium.serve")

PAGE = "/ui/"
"""Below it is the web page, whose framework has many routes and asks all the time: one line in the numbers, none in
the log. What it asks of models passes here as any other client's requests do."""


@dataclass
class State:
    """What the parts of a server share.

    keys      sha256 of the keys of which a client must give one; none: no key is asked for
    urls      whether pictures are fetched by https address
    draining  nothing new is taken
    active    requests for work that are being answered; worked: how many have been
    stopped   set when what is left is to be ended
    """

    models: Sequence[Hosted]
    limits: Limits
    metrics: Metrics
    keys: tuple[bytes, ...] = ()
    urls: bool = False
    draining: bool = False
    active: int = 0
    worked: int = 0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits)
        self.metrics.open.set_function(lambda: self.active)

    def knows(self, authorization: str) -> bool:
        """Whether a header holds one of the keys; takes as long for a wrong one as for a right one."""
        scheme, given = authorization.partition(" ")[0], digest(authorization)
        found = [hmac.compare_digest(given, one) for one in self.keys]
        return any(found) and scheme.lower() == "bearer"


def digest(authorization: str) -> bytes:
    """sha256 of a header's key."""
    return hashlib.sha256(authorization.partition(" ")[2].strip().encode()).digest()


@dataclass
class Visit:
    """One request on its way through. owner: whose key it has, "" where none is needed. ignored: fields that were
    accepted and mean nothing here."""

    state: State
    started: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    route: str = "other"
    model: str = ""
    status: int = 0
    code: str = ""
    owner: str = ""
    held: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        return self.state.limits

    def hold(self, size: int) -> None:
        """Raises ApiError (429) where all bodies together are too large."""
        self.state.budget.take(size)
        self.held += size


class Gate:
    """ASGI middleware. Routes below /v1 need a key, where keys are set; what asks for work is counted and limited."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state, visit = self.state, Visit(self.state, time.perf_counter())
        scope["sensorium"] = visit

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = visit.id
                if visit.ignored:
                    headers["x-sensorium-ignored"] = ", ".join(visit.ignored)
                if state.draining:
                    headers["connection"] = "close"
            await send(message)

        working = scope["path"].startswith("/v1/") and scope["method"] == "POST"
        state.active += working
        try:
            refused = self._refused(scope, working)
            if refused is not None:
                visit.code = refused.code or ""
                await refused.response()(scope, receive, sent)
            else:
                # clients that ask and do not read; the page's own streams stay open
                async with asyncio.timeout(state.limits.longest if working else None):
                    await self.app(scope, receive, sent)
        except BaseException as error:
            visit.status = GONE if isinstance(error, asyncio.CancelledError) else visit.status or 500
            raise
        finally:
            state.active -= working
            state.worked += working
            state.budget.give(visit.held)
            self._note(scope, visit)

    def _refused(self, scope: Scope, working: bool) -> ApiError | None:
        state, names = self.state, {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:
            # a proxy in front may go by the other of the two, and take what is left for a request (RFC 9112, 6.1)
            return ApiError(400, "the body's length is given twice: leave out content-length or transfer-encoding",
                            code="invalid_headers", headers={"Connection": "close"})  # fmt: skip
        if state.keys and scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
            scope["sensorium"].owner = digest(given).hex()
            if not state.knows(given):
                return ApiError(401, "no valid API key: send the header `Authorization: Bearer KEY`",
                                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        if working and state.draining:
            return leaving()
        if working and state.active > state.limits.requests:
            return busy(f"{state.limits.requests} requests are being answered")
        return None

    def _note(self, scope: Scope, visit: Visit) -> None:
        """One line, without anything that a user wrote."""
        seconds = time.perf_counter() - visit.started
        page = f"{scope['path']}/".startswith(PAGE)
        route = PAGE.rstrip("/") if page else getattr(scope.get("route"), "path", visit.route)
        metrics = self.state.metrics
        metrics.requests.labels(route, visit.model, str(visit.status)).inc()
        metrics.duration.labels(route).observe(seconds)
        if visit.status >= 400:
            metrics.errors.labels(visit.code or str(visit.status)).inc()
        noted = {"id": visit.id, "method": scope["method"][:16], "route": route, "status": visit.status,
                 "seconds": round(seconds, 4), "model": visit.model, "code": visit.code, **visit.notes}  # fmt: skip
        level = logging.DEBUG if page or route in ("/health", "/ready", "/metrics") else logging.INFO
        log.log(level, "request", extra={"fields": {name: value for name, value in noted.items() if value != ""}})
