"""The page makes its server fetch nothing, whatever is asked of its framework.

The framework's routes fetch an address that stands where a file's path is expected, or hand on what is found there:
from public hosts alone, but for anybody who sees the page, of any size, and also where a server is to fetch nothing.
What the page itself sends are paths of files that were uploaded before.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.serve.errors import ApiError, wrong

MOST = 4 << 20
"""Bytes of a body other than an upload: words and names of files."""
FETCHED = re.compile(r"(?:file|proxy)=\s*/*https?:|/proxy=", re.IGNORECASE)
UPLOAD = "/upload"


class Guard:
    """ASGI middleware for what is below a path: refuses requests that name an address where a file is expected."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{self.path}/"):
            await self.app(scope, receive, send)
            return
        try:
            if FETCHED.search(scope["path"]):
                raise _no_address()
            if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not scope["path"].rstrip("/").endswith(UPLOAD):
                receive = _again(await _checked(receive), receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _no_address() -> ApiError:
    return wrong("the page fetches nothing by its address: upload the file", code="url_not_allowed")


async def _checked(receive: Receive) -> bytes:
    """The whole body. Raises ApiError for one that is too large or names an address as a file."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MOST:
            raise ApiError(413, f"what the page sends has at most {MOST:,} bytes", code="too_large",
                           headers={"Connection": "close"})  # fmt: skip
    try:
        value = json.loads(body) if body else None
    except (ValueError, RecursionError):  # nor will the framework read it
        return body
    if _names_address(value):
        raise _no_address()
    return body


def _names_address(value: Any) -> bool:
    """Whether an object anywhere in a value has an address for its path."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            path = one.get("path")
            if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read is read once more, and then what follows it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return left.pop() if left else await receive()

    return read
