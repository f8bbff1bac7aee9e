"""/v1/completions: plain text, continued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from sensorium.infer.loop import Scored
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment
from sensorium.serve.answers import TextAnswer
from sensorium.serve.chat import Heading, answers_of, collected, logarithm, on_thread
from sensorium.serve.errors import wrong
from sensorium.serve.gate import Visit
from sensorium.serve.hosted import Hosted
from sensorium.serve.media import Intake
from sensorium.serve.prompts import sampling
from sensorium.serve.schemas import CompletionRequest
from sensorium.serve.streams import DONE, Asking, Events, Watch, event

USUAL = 16
"""Tokens where a client asks for no length: the interface's own number for this route."""


async def answer_text(request: Request, body: CompletionRequest, hosted: Hosted) -> Response:
    """The whole answer, or its events."""
    visit: Visit = request.scope["sensorium"]
    hosted.must_answer()
    _supported(body)
    prompts = texts_of(body.prompt, hosted, Intake(visit.limits), "prompt")
    count = answers_of(body, visit, len(prompts))
    watch, asking = Watch(request), Asking(hosted, visit, len(prompts), count)

    def chosen(sample: Sample) -> Sampling:
        return sampling(body, hosted, hosted.room(sample, body.max_tokens or USUAL, "max_tokens"), body.logprobs)

    def submit() -> None:
        asking.submit((Sample((Segment("text", text),)) for text in prompts), chosen)

    before = [text if body.echo else "" for text in prompts for _ in range(count)]
    heading = Heading("text_completion", "cmpl", hosted.name)
    handed = False

    def end() -> None:
        watch.close()
        asking.close()

    try:
        with hosted.admitted(len(prompts)):
            await watch.run(on_thread(hosted, submit))
        if body.stream:
            events = _events(asking, heading, before, body)
            handed = True
            return Events(watch, events, end)
        return await watch.run(_whole(asking, heading, before, body.logprobs is not None))
    finally:
        if not handed:
            end()


def _supported(body: CompletionRequest) -> None:
    if body.suffix:
        raise wrong("no model here fills in before a suffix: leave it out", "suffix", "unsupported_value")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise wrong("best_of is not offered: ask for n answers with logprobs, and choose", "best_of",
                    "unsupported_value")  # fmt: skip
    if body.echo and body.logprobs is not None:
        raise wrong("echo with logprobs is not offered: leave out one", "echo", "unsupported_value")


def texts_of(given: str | Sequence[Any], hosted: Hosted, intake: Intake, param: str) -> list[str]:
    """The texts of a prompt, which may be several, and ids of tokens.

    Raises ApiError for ids that no text has: a prompt's text is tokenized, and special tokens are not of it.
    """
    if isinstance(given, str):
        return [intake.text(given, param)]
    if isinstance(given[0], int):
        return [_decoded(list(given), hosted, intake, param)]
    return [
        intake.text(one, f"{param}[{place}]")
        if isinstance(one, str)
        else _decoded(one, hosted, intake, f"{param}[{place}]")
        for place, one in enumerate(given)
    ]


def _decoded(ids: list[int], hosted: Hosted, intake: Intake, place: str) -> str:
    tokenizer, template = hosted.engine.renderer.tokenizer, hosted.engine.renderer.template
    known = hosted.model.recipe.model.stack.vocab
    if any(id >= known for id in ids):
        raise wrong(f"{place}: ids of tokens are 0 to {known - 1}", place, "invalid_value")
    first = tokenizer.special.get(template.begin)
    ids = ids[1:] if first is not None and ids[:1] == [first] else ids  # the prompt's own beginning is written anyway
    text = tokenizer.decode(ids, skip_special=False)
    if tokenizer.encode(text) != ids:
        raise wrong(f"{place}: these ids are not those of a text in this model's tokens: send the text", place,
                    "invalid_value")  # fmt: skip
    return intake.text(text, place)


# ---- answers


async def _whole(asking: Asking, heading: Heading, before: list[str], logprobs: bool) -> Response:
    said = await collected(asking, len(before))
    choices = [
        {
            "index": index, "text": before[index] + one.text, "finish_reason": one.finish,
            "logprobs": _logprobs(one.tokens) if logprobs else None,
        }
        for index, one in enumerate(said)
    ]  # fmt: skip
    value = TextAnswer(**heading.value(), choices=choices, usage=asking.usage())  # type: ignore[arg-type]
    return Response(value.model_dump_json(), media_type="application/json")


def _logprobs(tokens: Sequence[Scored], offset: int = 0) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [logarithm(token.logprob) for token in tokens],
        "top_logprobs": [{text: logarithm(value) for _, text, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


async def _events(asking: Asking, heading: Heading, before: list[str], body: CompletionRequest) -> AsyncIterator[bytes]:
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    offsets = [0] * len(before)

    def chunk(choices: list[dict[str, Any]], counts: Any = None) -> bytes:
        return event({**heading.value(), "choices": choices, **({"usage": counts} if usage else {})})

    def choice(index: int, text: str, tokens: Sequence[Scored] = (), finish: str | None = None) -> bytes:
        logprobs = _logprobs(tokens, offsets[index]) if tokens else None
        offsets[index] += sum(len(token.text) for token in tokens)
        return chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}])

    echoed = b"".join(choice(index, text) for index, text in enumerate(before) if text)
    if echoed:
        yield echoed
    async for pieces in asking.pieces():
        yield b"".join(
            choice(index, piece.text, piece.tokens, piece.finish)
            for index, piece in pieces
            if piece.text or piece.tokens or piece.finish
        )
    if usage:
        yield chunk([], asking.usage())
    yield DONE
