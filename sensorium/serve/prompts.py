"""From the fields of a request to a Sample and a Sampling."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from sensorium.api import sampling_of
from sensorium.config import explain
from sensorium.errors import UserError
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment
from sensorium.serve.errors import wrong
from sensorium.serve.gate import Visit
from sensorium.serve.hosted import Hosted
from sensorium.serve.media import Intake, fetchable
from sensorium.serve.schemas import (
    LONGEST_FORM,
    Asked,
    AudioPart,
    ChatRequest,
    ImagePart,
    Message,
    ObjectFormat,
    Part,
    SchemaFormat,
)
from sensorium.serve.urls import Fetcher

FETCHING = ThreadPoolExecutor(8, thread_name_prefix="fetching")


async def fetched(pictures: Iterable[tuple[str, ImagePart]], visit: Visit) -> dict[str, bytes]:
    """Content by address, of the pictures that are given by one. Raises ApiError where that is not allowed or fails."""
    limits = visit.limits
    wanted = {part.url: place for place, part in pictures if fetchable(part.url)}
    if wanted and not visit.state.urls:
        place = next(iter(wanted.values()))
        raise wrong(f"{place}: this server fetches no pictures: send it as data:image/...;base64,...", place,
                    "url_not_allowed")  # fmt: skip
    if len(wanted) > limits.pictures:
        raise wrong(f"the request has more than {limits.pictures} pictures", next(iter(wanted.values())), "too_large")
    fetcher, loop = Fetcher(limits.url_bytes, limits.url_seconds), asyncio.get_running_loop()
    found: dict[str, bytes] = {}
    for url, place in wanted.items():
        try:
            found[url] = await loop.run_in_executor(FETCHING, fetcher.fetch, url)
            visit.hold(len(found[url]))
        except UserError as error:
            raise wrong(f"{place}: {error}", place, "invalid_image_url") from error
    return found


def pictures_of(messages: Sequence[Message]) -> Iterable[tuple[str, ImagePart]]:
    """Pictures and where in the request they stand."""
    for number, message in enumerate(messages):
        if isinstance(message.content, list):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield f"messages[{number}].content[{place}]", part


def sample_of(messages: Sequence[Message], hosted: Hosted, intake: Intake) -> Sample:
    """A conversation that waits for an answer. Raises ApiError naming the message and the part."""
    segments: list[Segment] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message.tool_calls:
            raise wrong(f"{place}: calls of tools are written as text in `content`: the prompt of {hosted.name} has no "
                        "other place for them", f"{place}.tool_calls", "unsupported_content")  # fmt: skip
        if message.content is None or message.content == []:
            raise wrong(f"{place}: the content is empty", f"{place}.content", "invalid_value")
        role = "system" if message.role == "developer" else message.role
        common = {"role": role, "call_id": message.tool_call_id}
        if isinstance(message.content, str):
            segments.append(Segment("text", intake.text(message.content, f"{place}.content"), **common))
            continue
        for index, part in enumerate(message.content):
            segments.append(segment_of(part, hosted, intake, f"{place}.content[{index}]", **common))
    if segments[-1].role == "assistant":
        raise wrong("the last message is the assistant's: end with what the user says",
                    f"messages[{len(messages) - 1}].role", "invalid_value")  # fmt: skip
    return Sample(tuple(segments))


def segment_of(part: Part, hosted: Hosted, intake: Intake, place: str, **common: Any) -> Segment:
    """A part as a segment. Raises ApiError for what the model does not read, and for what is no picture or sound."""
    if isinstance(part, ImagePart):
        hosted.must_read("image", place)
        return Segment("image", intake.picture(part.url, place), **common)
    if isinstance(part, AudioPart):
        hosted.must_read("audio", place)
        return Segment("audio", intake.sound(part.input_audio.data, place), **common)
    return Segment("text", intake.text(part.text, place), **common)


# ---- sampling


def sampling(asked: Asked, hosted: Hosted, max_tokens: int, logprobs: int | None) -> Sampling:
    """How the answer is chosen. Raises ApiError for options that do not go together."""
    stop = asked.stop
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": asked.temperature or 0.0,
        "top_p": None if asked.top_p is None else max(asked.top_p, 1e-6),  # 0: the likeliest alone
        "top_k": asked.top_k if asked.top_k is not None and asked.top_k > 0 else None,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "logit_bias": _bias(asked, hosted) if asked.logit_bias else None,
        "n": asked.n if asked.n != 1 else None,
        "stop": None if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        "seed": secrets.randbits(31) if asked.seed is None else asked.seed & (2**63 - 1),
        "logprobs": logprobs,
        "constraint": constraint(asked),
    }
    return sampling_of({name: value for name, value in options.items() if value is not None})


def _bias(asked: Asked, hosted: Hosted) -> dict[int, float]:
    known = hosted.model.recipe.model.stack.vocab
    try:
        found = {int(key): value for key, value in (asked.logit_bias or {}).items()}
    except ValueError as error:
        raise wrong("logit_bias: its keys are ids of tokens", "logit_bias", "invalid_value") from error
    if any(not 0 <= key < known for key in found):
        raise wrong(f"logit_bias: ids of tokens are 0 to {known - 1}", "logit_bias", "invalid_value")
    return found


def constraint(asked: Asked) -> Any:
    """What the answer must be, or None. Raises ApiError where that is said twice."""
    given = {
        "guided_choice": {"choices": tuple(asked.guided_choice)} if asked.guided_choice else None,
        "guided_regex": {"regex": asked.guided_regex} if asked.guided_regex else None,
        "guided_json": None if asked.guided_json is None else {"json_schema": asked.guided_json},
    }
    if (one := asked.structured_outputs) is not None:
        given |= {
            "structured_outputs.choice": {"choices": tuple(one.choice)} if one.choice else None,
            "structured_outputs.regex": {"regex": one.regex} if one.regex else None,
            "structured_outputs.json": None if one.json_ is None else {"json_schema": one.json_},
        }
    if isinstance(asked, ChatRequest) and isinstance(asked.response_format, SchemaFormat):
        given["response_format"] = {"json_schema": asked.response_format.json_schema.schema_}
    elif isinstance(asked, ChatRequest) and isinstance(asked.response_format, ObjectFormat):
        given["response_format"] = {"json_schema": {"type": "object"}}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise wrong(f"{' and '.join(chosen)} are given: the answer can follow one of them",
                    list(chosen)[1].partition(".")[0], "invalid_value")  # fmt: skip
    if not chosen:
        return None
    from sensorium.infer.constrain import Constraint

    [(name, value)] = chosen.items()
    if len(json.dumps(value)) > LONGEST_FORM:
        raise wrong(f"{name}: the form of an answer has at most {LONGEST_FORM:,} characters", name.partition(".")[0],
                    "too_large")  # fmt: skip
    try:
        return Constraint(**value)
    except ValidationError as error:
        raise wrong(f"{name}: {explain(error)}", name.partition(".")[0], "invalid_value") from error
