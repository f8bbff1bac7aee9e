"""Speculation says what would be said without it, and says it in fewer steps where a guess is right."""

import pytest
import torch
from tiny_fused import plain_greedy

from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.infer.speculation import PromptLookup
from sensorium.sequence import Sample


class Oracle:
    """Guesses the answer it was told, with every third token wrong."""

    def __init__(self, ids):
        self.ids = ids

    def draft(self, request):
        place = len(request.ids)
        return [id if (at + 1) % 3 else (id + 1) % 200 for at, id in enumerate(self.ids[place : place + 5])]


def prompts(tiny):
    return [
        Sample(tiny.ask(text, *seeds)) for text, seeds in (("abab abab abab", ()), ("what is it?", (1,)), ("x", (2, 0)))
    ]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=20),
    Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=3),
    Sampling(max_tokens=20, temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.5),
])  # fmt: skip
def test_a_draft_changes_no_token(tiny, monkeypatch, sampling, kernels):
    if not kernels:
        monkeypatch.setattr("sensorium.infer.decoding.Program.of", lambda stack: None)
    plain = Engine(tiny.model, tiny.renderer)
    plain.stops = frozenset()
    samples = prompts(tiny)
    expected = plain.answered(samples, sampling, None)
    engine = Engine(tiny.model, tiny.renderer)
    engine.stops = frozenset()
    requests = [engine.open(sample, sampling.replace(seed=sampling.seed + row)) for row, sample in enumerate(samples)]
    for request, told in zip(requests[:2], expected):  # the third has no draft, and advances beside them
        request.drafter = Oracle(told.ids)
    for request in requests:
        engine.scheduler.submit(request)
    steps = 0
    with torch.inference_mode():
        while not engine.scheduler.idle:
            engine.scheduler.step()
            steps += requests[2].done is False
    assert [request.ids for request in requests] == [request.ids for request in expected]
    assert [request.text.text for request in requests] == [request.text.text for request in expected]
    for request in requests[:2]:
        assert 0 < request.right < request.drafted


def test_right_guesses_save_steps(tiny, monkeypatch):
    engine = Engine(tiny.model, tiny.renderer)
    engine.stops = frozenset()
    sampling = Sampling(max_tokens=20)
    [told] = engine.answered(prompts(tiny)[:1], sampling, None)
    request = engine.open(prompts(tiny)[0], sampling)
    request.drafter = Oracle(told.ids)
    steps, step = [], type(engine.scheduler.decoder).step
    monkeypatch.setattr(type(engine.scheduler.decoder), "step", lambda self: (steps.append(1), step(self)))
    assert "".join(engine.run(request)) == told.text.text
    assert len(steps) <= 10


def test_an_answer_that_repeats_its_prompt_is_guessed_from_it(tiny):
    sample = prompts(tiny)[0]
    engine = Engine(tiny.model, tiny.renderer, drafter=PromptLookup(longest=2, shortest=1))
    [request] = engine.answered([sample], Sampling(max_tokens=24), None)
    assert request.text.text == plain_greedy(tiny, sample, 24)
    assert request.drafted > 0


def test_the_longest_end_that_was_there_before_is_followed():
    class Asked:
        words, ids = [1, 2, 3, 4, 9, 2, 3, 7, 7], [2, 3]

    assert PromptLookup(tokens=3).draft(Asked) == [7, 7, 2]
    Asked.ids = [1, 2, 3]
    assert PromptLookup(tokens=2).draft(Asked) == [4, 9]
    Asked.ids = [5, 6]
    assert PromptLookup().draft(Asked) == []
    with pytest.raises(ValueError, match="at least 1"):
        PromptLookup(longest=1, shortest=2)
