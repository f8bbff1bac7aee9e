"""Whatever the engine does to be fast, the answer is that of plain full forward passes, token for token, in fp32."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from recipe_systems import SPEAKING, System, ask, expected, system_of
from tiny_fused import strong

from sensorium.infer.engine import Engine
from sensorium.infer.request import Drafter, Request
from sensorium.infer.sampling import Sampling
from sensorium.infer.speculation import DraftModel, PromptLookup
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer

GREEDY = Sampling(max_tokens=6)
FAST = {"llava", "flamingo", "blip-2-flan-t5"}
"""One of each wiring; the others are `slow`."""
RECIPES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SPEAKING]

PROMPTS = (
    ask("what is this?", 1),
    ask("count them one by one, to the end"),
    ask("compare the two", 1, 2),
    ask("what is this, and why?", 1),
    ask("what is this?", 3),
    (*ask("what is this?", 1), *ask("no idea", role="assistant"), *ask("look again")),
)
"""With a picture, without, with two; beginning alike; of several turns."""


@pytest.fixture(params=RECIPES)
def system(request) -> System:
    return system_of(request.param)


@cache
def small() -> Fused:
    """A draft model, which has nothing to do with what it drafts for."""
    return strong(Fused.Config(backbone=llama(vocab=259, width=16, depth=1, heads=2, kv_heads=1, hidden=32)))


def drafters(system: System) -> list[Drafter]:
    """Guesses of the prompt, a draft model that is nearly always wrong, and one that is right where there is no
    picture and the model reads words alone as well."""
    tokenizer = system.renderer.tokenizer
    found: list[Drafter] = [PromptLookup(longest=2, shortest=1), DraftModel(small(), Tokenizer.bytes(), tokenizer)]
    if not system.model.config.reads_source:
        found.append(DraftModel(system.model, tokenizer, tokenizer, tokens=3, slots=2))
    return found


def told(system: System) -> list[list[int]]:
    return [expected(system, prompt, GREEDY.max_tokens) for prompt in PROMPTS]


def answered(engine: Engine, prompts: tuple[tuple[Segment, ...], ...] = PROMPTS) -> list[list[int]]:
    return [request.ids for request in engine.answered(map(Sample, prompts), GREEDY, None)]


def test_the_prompts_tell_answers_apart(system):
    """So that the other tests can fail: every prompt, and every picture, has an answer of its own."""
    assert len({tuple(ids) for ids in told(system)}) == len(PROMPTS)


@pytest.mark.parametrize("options", [{"slots": 6}, {"slots": 3, "tokens": 9, "items": 1}], ids=["batched", "chunked"])
def test_in_a_batch_and_in_chunks(system, options):
    assert answered(system.engine(**options)) == told(system)


def test_behind_what_was_read_before(system):
    engine = system.engine(slots=8)
    for _ in range(2):
        for prompt, ids in zip(PROMPTS, told(system)):  # the fourth begins as the first, the sixth goes on from it
            [request] = engine.answered([Sample(prompt)], GREEDY, None)
            assert request.ids == ids
    long = len(request.sequence) > 32  # shorter prompts are not worth a copy
    assert (request.cached > 0) == (long and request.marks is not None)


def test_with_guesses(system):
    for drafter in drafters(system):
        assert answered(system.engine(drafter=drafter)) == told(system)
    if not system.model.config.reads_source:  # the model itself knows what it says of words
        [request] = system.engine(drafter=drafter).answered([Sample(PROMPTS[1])], GREEDY, None)
        assert request.right == request.drafted
        assert request.drafted or system.model.config.formats  # answers that may hold pictures are not guessed


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_comes_and_goes_beside_it(system, seed):
    """Requests arrive in any order at any time, some are given up: the others say what they say alone, and what was
    said until then is right too."""
    draw, right = random.Random(seed), told(system)
    engine = system.engine(slots=draw.choice([2, 3, 5]), tokens=draw.choice([16, 60, 2048]))
    guessing = [None, *drafters(system)]
    coming = [index for index in range(len(PROMPTS)) for _ in range(2)]
    draw.shuffle(coming)
    there: list[tuple[int, Request]] = []
    with torch.inference_mode():
        while coming or not engine.scheduler.idle:
            if coming and draw.random() < 0.5:
                index = coming.pop()
                engine.drafter = draw.choice(guessing)
                there.append((index, engine.open(Sample(PROMPTS[index]), GREEDY)))
                engine.scheduler.submit(there[-1][1])
            if there and draw.random() < 0.1:
                engine.scheduler.cancel(draw.choice(there)[1])
            engine.scheduler.step()
    cut = [request.finish == "cancelled" for _, request in there]
    assert not all(cut)
    for (index, request), given_up in zip(there, cut):
        assert request.ids == (right[index][: len(request.ids)] if given_up else right[index])
