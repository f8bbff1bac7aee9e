"""What one request may take: bytes, depth, seconds, pixels, tokens. All of it is checked before it is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from sensorium.config import Config
from sensorium.serve.errors import GONE, ApiError, busy, wrong

DEPTH = 64
"""Levels of objects and lists in a body; no schema that a client has reason to send is deeper."""
VALUES = 500_000
"""Commas and brackets in a body: a value costs up to a hundred bytes of memory, however short it is written."""


class Limits(Config):
    """What is taken of one request and of all together.

    body_bytes       of one body, counted as it comes in
    total_bytes      of the bodies of all requests that are being answered
    body_seconds     from the first to the last byte of a body
    request_seconds  of a whole request, answer included
    head_seconds     of a connection without a whole request head
    requests         answered or waiting at once; more are refused (429)
    waiting          of these, how many wait for their first token, for each model
    context          tokens of prompt and answer together, of models that have no limit of their own
    max_tokens       longest answer, in tokens; also where the client asks for no length
    answers          answers in one request: n, times the prompts
    inputs           texts and pictures to be embedded in one request
    characters       of all texts in one request
    pictures, pixels of one request, together; read from their headers before they are decoded
    sound_seconds    of one sound
    url_bytes, url_seconds  of one picture that is fetched by its address
    """

    body_bytes: int = Field(default=32 << 20, gt=0)
    total_bytes: int = Field(default=512 << 20, gt=0)
    body_seconds: float = Field(default=30.0, gt=0)
    request_seconds: float = Field(default=600.0, gt=0)
    head_seconds: float = Field(default=10.0, gt=0)
    requests: int = Field(default=256, gt=0)
    waiting: int = Field(default=64, gt=0)
    context: int = Field(default=16_384, gt=1)
    max_tokens: int = Field(default=4096, gt=0)
    answers: int = Field(default=32, gt=0)
    inputs: int = Field(default=512, gt=0)
    characters: int = Field(default=1_000_000, gt=0)
    pictures: int = Field(default=16, ge=0)
    pixels: int = Field(default=50_000_000, gt=0)
    sound_seconds: float = Field(default=300.0, gt=0)
    url_bytes: int = Field(default=16 << 20, gt=0)
    url_seconds: float = Field(default=10.0, gt=0)

    @property
    def longest(self) -> float:
        """Seconds after which even a client that does not read its answer is left."""
        return self.body_seconds + self.request_seconds + 5


class Budget:
    """Bytes of bodies that are held now."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    def take(self, size: int) -> None:
        """Raises ApiError (429) where all bodies together would be too large."""
        if self.held + size > self.limits.total_bytes:
            raise busy("the requests being answered hold all the memory there is for them")
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size


class Read(Request):
    """A request whose body has come in whole and is JSON."""

    def __init__(self, request: Request, content: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._content, self._value = content, value

    async def body(self) -> bytes:
        return self._content

    async def json(self) -> Any:
        return self._value


class JsonRoute(APIRoute):
    """A route whose body is read within limits, before anything else sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer

        async def limited(request: Request) -> Response:
            content = await read(request)
            return await answer(Read(request, content, parsed(content)))

        return limited


async def read(request: Request) -> bytes:
    """The body. Raises ApiError: 415 for another type than JSON, 413 for too much of it, 408 where it is too slow."""
    visit = request.scope["sensorium"]
    limits: Limits = visit.limits
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body must be application/json, the header says {kind[:80] or 'nothing'!r}",
                       code="unsupported_type")  # fmt: skip
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body_bytes:
                    raise _too_large(limits)
                visit.hold(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come in within {limits.body_seconds:g} s", code="timeout",
                       headers={"Connection": "close"}) from error  # fmt: skip
    except ClientDisconnect as error:
        raise ApiError(GONE, "the client hung up while it sent its request", code="disconnected") from error
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    # what is left of the body is not read: the connection cannot be used again
    return ApiError(413, f"the body is larger than {limits.body_bytes:,} bytes: send fewer or smaller pictures",
                    code="too_large", headers={"Connection": "close"})  # fmt: skip


def parsed(content: bytes) -> Any:
    """JSON, of bounded size in memory. Raises ApiError (400) for what is none, is too deep or has too many values."""
    if not content.strip():
        raise wrong("the body is empty: send a JSON object", code="invalid_json")
    if content.count(b",") + content.count(b"[") + content.count(b"{") > VALUES:
        raise wrong(f"the body has more than {VALUES:,} values: send less in one request", code="too_large")
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise wrong(f"the body is no valid JSON in UTF-8: {error}", code="invalid_json") from error
    level = [value]
    for _ in range(DEPTH + 1):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise wrong(f"the body has more than {DEPTH} levels of lists and objects", code="invalid_json")


def _inside(value: Any) -> list[Any]:
    """The lists and objects inside one."""
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in members if isinstance(one, dict | list)]
