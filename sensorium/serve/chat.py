"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from sensorium.infer.loop import Piece, Scored
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample
from sensorium.serve.answers import ChatAnswer
from sensorium.serve.errors import wrong
from sensorium.serve.gate import Visit
from sensorium.serve.hosted import Hosted
from sensorium.serve.media import Intake
from sensorium.serve.prompts import fetched, pictures_of, sample_of, sampling
from sensorium.serve.schemas import Asked, ChatRequest
from sensorium.serve.streams import DONE, Asking, Events, Watch, event

LEAST = -9999.0
"""The logarithm of a probability of nothing, which JSON has no number for."""


@dataclass
class Heading:
    """What every piece of one answer begins with."""

    kind: str
    prefix: str
    model: str
    id: str = field(default="")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def value(self) -> dict[str, Any]:
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}


async def answer_chat(request: Request, body: ChatRequest, hosted: Hosted) -> Response:
    """The whole answer, or its events."""
    visit: Visit = request.scope["sensorium"]
    hosted.must_answer()
    count = answers_of(body, visit)
    logprobs = _logprobs(body)
    tools = _tools(body, hosted, visit)
    watch, asking = Watch(request), Asking(hosted, visit, 1, count)
    handed = False

    def end() -> None:
        watch.close()
        asking.close()

    try:
        with hosted.admitted():
            intake = Intake(visit.limits, await watch.run(fetched(pictures_of(body.messages), visit)))
            param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
            wanted = getattr(body, param)

            def chosen(sample: Sample) -> Sampling:
                return sampling(body, hosted, hosted.room(sample, wanted, param), logprobs)

            def submit() -> None:
                asking.submit(iter([replace(sample_of(body.messages, hosted, intake), tools=tools)]), chosen)

            await watch.run(on_thread(hosted, submit))
        if body.stream:
            heading = Heading("chat.completion.chunk", "chatcmpl", hosted.name)
            events = _events(asking, heading, count, body)
            handed = True
            return Events(watch, events, end)
        return await watch.run(_whole(asking, Heading("chat.completion", "chatcmpl", hosted.name), count, logprobs))
    finally:
        if not handed:
            end()


async def on_thread(hosted: Hosted, work: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(hosted.threads, work)


def answers_of(body: Asked, visit: Visit, prompts: int = 1) -> int:
    """n. Raises ApiError where all answers together are too many."""
    count = body.n or 1
    if count * prompts > visit.limits.answers:
        raise wrong(f"{count * prompts} answers are asked for, this server gives at most {visit.limits.answers} in one "
                    "request", "n", "too_large")  # fmt: skip
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options are for streams: set stream, or leave them out", "stream_options", "invalid_value")
    return count


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs needs logprobs=true", "top_logprobs", "invalid_value")
    return (body.top_logprobs or 0) if body.logprobs else None


def _tools(body: ChatRequest, hosted: Hosted, visit: Visit) -> tuple[dict[str, Any], ...]:
    """The tools that the model is told of, if its chat template has a place for them; what it calls is then part of its
    text. Raises ApiError where one must be called."""
    if body.tool_choice not in (None, "none", "auto"):
        raise wrong("no call of a tool can be forced here: tool_choice may be none or auto; response_format makes an "
                    "answer that has the form of a call", "tool_choice", "unsupported_value")  # fmt: skip
    if not body.tools or body.tool_choice == "none":
        return ()
    if not hosted.engine.renderer.shows_tools:
        visit.ignored.append("tools")
        return ()
    return tuple(tool.model_dump() for tool in body.tools)


# ---- whole answers


async def _whole(asking: Asking, heading: Heading, count: int, logprobs: int | None) -> Response:
    said = await collected(asking, count)
    choices = [
        {
            "index": index, "message": {"content": one.text}, "finish_reason": one.finish,
            "logprobs": None if logprobs is None else {"content": [scored(token) for token in one.tokens]},
        }
        for index, one in enumerate(said)
    ]  # fmt: skip
    value = ChatAnswer(**heading.value(), choices=choices, usage=asking.usage())  # type: ignore[arg-type]
    return Response(value.model_dump_json(), media_type="application/json")


@dataclass
class Said:
    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    finish: str | None = None


async def collected(asking: Asking, count: int) -> list[Said]:
    """Every choice, once all are finished."""
    said = [Said() for _ in range(count)]
    async for pieces in asking.pieces():
        for choice, piece in pieces:
            one = said[choice]
            one.text += piece.text
            one.tokens += piece.tokens
            one.finish = piece.finish or one.finish
    return said


def logarithm(value: float) -> float:
    return max(value, LEAST)


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logarithm(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def scored(token: Scored) -> dict[str, Any]:
    """A token with its log-probability and the likeliest in its place."""
    top = [_entry(text, logprob) for _, text, logprob in token.top]
    return {**_entry(token.text, token.logprob), "top_logprobs": top}


# ---- events


def _chunk(heading: Heading, body: Asked, choices: Sequence[dict[str, Any]], usage: Any = None) -> bytes:
    wanted = body.stream_options is not None and body.stream_options.include_usage
    return event({**heading.value(), "choices": choices, **({"usage": usage} if wanted else {})})


async def _events(asking: Asking, heading: Heading, count: int, body: ChatRequest) -> AsyncIterator[bytes]:
    first = {"role": "assistant", "content": ""}
    yield b"".join(_chunk(heading, body, [_choice(index, first)]) for index in range(count))
    async for pieces in asking.pieces():
        yield b"".join(_chunk(heading, body, [one]) for choice, piece in pieces for one in _deltas(choice, piece))
    if body.stream_options is not None and body.stream_options.include_usage:
        yield _chunk(heading, body, [], asking.usage())
    yield DONE


def _deltas(choice: int, piece: Piece) -> list[dict[str, Any]]:
    """A piece's words, and the end where it is the last."""
    found = []
    if piece.text or piece.tokens:
        logprobs = {"content": [scored(token) for token in piece.tokens], "refusal": None} if piece.tokens else None
        found.append(_choice(choice, {"content": piece.text}, logprobs))
    if piece.finish is not None:
        found.append(_choice(choice, {}, None, piece.finish))
    return found


def _choice(index: int, delta: Any, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
