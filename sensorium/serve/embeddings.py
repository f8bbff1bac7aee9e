"""/v1/embeddings: unit vectors of texts and pictures."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import Response
from torch import Tensor

from sensorium.sequence import Sample, Segment
from sensorium.serve.answers import EmbeddingAnswer
from sensorium.serve.chat import on_thread
from sensorium.serve.completions import texts_of
from sensorium.serve.errors import ApiError, wrong
from sensorium.serve.gate import Visit
from sensorium.serve.hosted import Hosted
from sensorium.serve.media import Intake
from sensorium.serve.prompts import fetched, segment_of
from sensorium.serve.schemas import EmbeddingRequest, ImagePart, ImageUrl, TextPart
from sensorium.serve.streams import Watch, refusal

TOGETHER = 8
"""Inputs that are read in one turn: between turns, answers go on."""


async def answer_embedding(request: Request, body: EmbeddingRequest, hosted: Hosted) -> Response:
    visit: Visit = request.scope["sensorium"]
    most = visit.limits.inputs
    given: Any = body.input
    if isinstance(given, list) and not isinstance(given[0], int) and len(given) > most:
        raise wrong(f"input has {len(given)} elements, at most {most} are read in one request", "input", "too_large")
    documents = None if _is_tokens(given) else _documents(given)
    watch, ended = Watch(request), threading.Event()
    found: list[tuple[Tensor, int]] = []
    try:
        with hosted.admitted():
            pictures = [(f"input[{number}]", part) for number, parts in enumerate(documents or ())
                        for part in parts if isinstance(part, ImagePart)]  # fmt: skip
            intake = Intake(visit.limits, await watch.run(fetched(pictures, visit)))

            def work() -> None:
                if documents is None:
                    texts = texts_of(given, hosted, intake, "input")
                    samples = [Sample((Segment("text", text),)) for text in texts]
                else:
                    samples = [_sample(parts, hosted, intake, f"input[{n}]") for n, parts in enumerate(documents)]
                found.append(_vectors(samples, hosted, ended))

            await watch.run(on_thread(hosted, work))
    finally:
        ended.set()
        watch.close()
    [(vectors, tokens)] = found
    return _response(vectors, tokens, body, hosted, visit)


def _response(vectors: Tensor, tokens: int, body: EmbeddingRequest, hosted: Hosted, visit: Visit) -> Response:
    width = vectors.shape[1]
    if body.dimensions not in (None, width):
        raise wrong(f"dimensions: {hosted.name} has vectors of {width} numbers, and no shorter ones", "dimensions",
                    "unsupported_value")  # fmt: skip
    visit.notes["prompt_tokens"] = tokens
    rows = vectors.numpy().astype("<f4")
    encoded = body.encoding_format == "base64"
    data = [
        {"index": index, "embedding": base64.b64encode(row.tobytes()).decode() if encoded else row.tolist()}
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    value = EmbeddingAnswer(data=data, model=hosted.name, usage=usage)  # type: ignore[arg-type]
    return Response(value.model_dump_json(), media_type="application/json")


def _is_tokens(given: Any) -> bool:
    first = given[0] if isinstance(given, list) else given
    return isinstance(first, int) or (isinstance(first, list) and isinstance(first[0], int))


def _documents(given: str | Sequence[Any]) -> list[list[TextPart | ImagePart]]:
    """The parts of every document."""
    elements = [given] if isinstance(given, str) else given
    return [list(one) if isinstance(one, list) else [_part(one)] for one in elements]


def _part(given: str | TextPart | ImagePart) -> TextPart | ImagePart:
    """A text that is a data: URL of a picture is that picture."""
    if not isinstance(given, str):
        return given
    if given.startswith("data:image/"):
        return ImagePart(type="image_url", image_url=ImageUrl(url=given))
    return TextPart(type="text", text=given)


def _sample(parts: Sequence[TextPart | ImagePart], hosted: Hosted, intake: Intake, place: str) -> Sample:
    if hosted.dual and len(parts) > 1:
        raise wrong(f"{place}: {hosted.name} has one vector of a picture or of a text, not of both together", place,
                    "unsupported_content")  # fmt: skip
    for part in parts:
        if isinstance(part, TextPart) and not part.text:
            raise wrong(f"{place}: the text is empty", place, "invalid_value")
    return Sample(tuple(segment_of(part, hosted, intake, place) for part in parts))


def _vectors(samples: list[Sample], hosted: Hosted, ended: threading.Event) -> tuple[Tensor, int]:
    """(N, D) float32 unit vectors, and how many tokens were read. On a thread. Raises ApiError."""
    rows: list[Tensor] = []
    try:
        lengths = [hosted.tokens(sample, generate=False) for sample in samples]
        if max(lengths) > hosted.context:
            raise hosted.too_long(max(lengths), "input")
        for start in range(0, len(samples), TOGETHER):
            if ended.is_set():
                break
            rows.append(hosted.ask(partial(_embedded, samples[start : start + TOGETHER], hosted)))
    except ApiError:
        raise
    except Exception as error:
        raise refusal(error) from error
    return torch.nn.functional.normalize(torch.cat(rows).float(), dim=-1).cpu(), sum(lengths)


def _embedded(samples: list[Sample], hosted: Hosted) -> Tensor:
    if hosted.dual:
        return hosted.model.embed([sample.segments[0].data for sample in samples])
    return hosted.engine.embed(samples)
