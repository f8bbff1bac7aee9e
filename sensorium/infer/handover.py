"""Answers of words and pictures: where a language model says signals, its generator makes what they stand for.

    reply(engine, [sample])  ->  [["a red apple", [<picture>]]]

Words and signals come from the one generation loop (infer/scheduler.py), pictures from the one sampling loop
(infer/painting.py): here one is handed over to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from sensorium.infer.drawing import Drawn
from sensorium.infer.engine import GREEDY, Engine
from sensorium.infer.painting import PLAIN, Frames, Painting, paint_prompts
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling
from sensorium.models.fused import Fused
from sensorium.sequence import Sample

Reply = list["str | Frames"]
"""Words, and pictures or clips, in the order in which they were said."""


def reply(
    engine: Engine,
    samples: Iterable[Sample],
    sampling: Sampling = GREEDY,
    painting: Painting = PLAIN,
    most: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """The answer to each sample, in order. Whether there are pictures in it is the model's own choice.

    most      pictures of an answer, at most
    painting  how generators make them; picture i of all has noise of its own, seeded by seed + i
    progress  called with the number of answers whose words are complete
    """
    done = engine.answered(samples, sampling, progress, drawn=(most, None))
    drawn = [one for request in done for one in _drawn(request)]
    frames = {id(one): made for one, made in zip(drawn, make(engine, drawn, painting), strict=True)}
    decode = engine.renderer.tokenizer.decode
    replies: list[Reply] = []
    for request in done:
        parts: Reply = []
        place = 0
        for one in _drawn(request):
            parts += [_until(decode(request.ids[place : one.start]), sampling.stop), frames[id(one)]]
            place = one.start + one.length
        parts.append(_until(decode(request.ids[place:]), sampling.stop))
        replies.append([part for part in parts if part != ""])
    return replies


@torch.inference_mode()
def make(engine: Engine, drawn: list[Drawn], painting: Painting = PLAIN) -> list[Frames]:
    """The frames of items of answers: decoded from their codes, or made by generators told by their signals."""
    found: dict[int, Frames] = {}
    waiting: dict[str, list[int]] = {}
    for index, one in enumerate(drawn):
        if one.states is None:
            found[index] = engine.pictures(one)
        else:
            waiting.setdefault(one.kind, []).append(index)
    for kind, members in waiting.items():
        assert isinstance(engine.model, Fused)
        generator = engine.model.generator(kind)
        denoiser = generator.denoiser
        each = len(generator.canvases(1))
        step = max(1, engine.tokens // each)
        for first in range(0, len(members), step):
            part = members[first : first + step]
            states = torch.stack([torch.stack(drawn[index].states or [], dim=1) for index in part])
            prompt = generator.prompt(generator.condition(states))
            packed = generator.canvases(len(part))
            made = paint_prompts(denoiser, packed, prompt, painting, painting.seed + first)
            found |= dict(zip(part, made, strict=True))
    return [found[index] for index in range(len(drawn))]


def _drawn(request: Request) -> list[Drawn]:
    return [] if request.drawing is None else request.drawing.drawn


def _until(text: str, stops: Iterable[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min([len(text), *(place for place in map(text.find, stops) if place >= 0)])]
