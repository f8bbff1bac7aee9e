"""The page's side of the OpenAI-compatible interface: one streamed chat answer over HTTP, and failures as sentences."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from sensorium.errors import UserError

PATIENCE = httpx.Timeout(10.0, read=600.0)
"""Seconds. Reading waits for the first token, and so for requests that stand before this one."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer.

    finish  "stop" or "length", in the last piece with text
    tokens  of the whole answer, where the server counts them, in the last piece
    """

    text: str = ""
    finish: str | None = None
    tokens: int | None = None


def client_for(base_url: str) -> httpx.AsyncClient:
    """base_url: with the version, for example http://127.0.0.1:8000/v1. Proxies of the environment are not used."""
    return httpx.AsyncClient(base_url=base_url, timeout=PATIENCE, trust_env=False)


async def stream_chat(client: httpx.AsyncClient, body: dict[str, Any], key: str = "") -> AsyncIterator[Said]:
    """The pieces of one answer. Closing the iterator closes the connection, which ends the answer in the server too.

    body  of /chat/completions, without what asks for a stream
    key   API key, "" for none
    Raises UserError with one sentence when there is no (whole) answer.
    """
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with client.stream("POST", "chat/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                raise UserError(refusal(response.status_code, await response.aread(), response.headers))
            async for value in _events(response):
                yield _said(value)
    except httpx.ConnectError as error:
        raise UserError(f"The server at {client.base_url} cannot be reached: is it still running?") from error
    except httpx.TimeoutException as error:
        raise UserError("The server did not answer in time: ask for fewer tokens, or try again later.") from error
    except httpx.HTTPError as error:
        raise UserError("The connection to the server broke before the answer was complete.") from error


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events until [DONE]. Lines end at a line feed alone: JSON may hold other separators."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line[5:].strip()
            if text == b"[DONE]":
                return
            try:
                value = json.loads(text)
            except ValueError as error:
                raise UserError("The server sent something that is not JSON: is it OpenAI-compatible?") from error
            if not isinstance(value, dict):
                raise UserError("The server sent JSON that is not OpenAI's.")
            if "error" in value:
                raise UserError(_sentence(value) or "The server failed in the middle of this answer.")
            yield value
    raise UserError("The connection to the server broke before the answer was complete.")


def _said(value: dict[str, Any]) -> Said:
    choices, usage = value.get("choices") or [], value.get("usage") or {}
    chosen = choices[0] if choices else {}
    text = (chosen.get("delta") or {}).get("content") or ""
    return Said(text, chosen.get("finish_reason"), usage.get("completion_tokens"))


def refusal(status: int, body: bytes, headers: httpx.Headers) -> str:
    """One sentence for an answer that is not 200."""
    try:
        said = _sentence(json.loads(body))
    except ValueError:
        said = None
    if status in (401, 403):
        return f"The server wants an API key that it knows: write it under Settings. ({said or status})"
    if status == 429:
        wait = headers.get("Retry-After")
        return f"The server is busy: try again in {wait} s." if wait else "The server is busy: try again."
    return said or f"The server answered with status {status}."


def _sentence(value: Any) -> str | None:
    """What an error says for people: its first letter a capital, and a full stop. Which field of the request it is
    about, which nobody wrote here, is left out."""
    error = value.get("error") if isinstance(value, dict) else None
    message, field = (error.get("message"), error.get("param")) if isinstance(error, dict) else (error, None)
    if not isinstance(message, str) or not message.strip():
        return None
    message = " ".join(message.split())
    message = message.removeprefix(f"{field}: ") or message
    return message[0].upper() + message[1:] + ("" if message[-1] in ".!?" else ".")
