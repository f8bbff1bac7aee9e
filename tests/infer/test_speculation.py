"""Speculation says what would be said without it, and says it in fewer steps where a guess is right."""

import pytest
import torch
from tiny_fused import config, plain_greedy, strong

from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.infer.speculation import DraftModel, PromptLookup
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.sequence import Sample
from sensorium.tokenizer import Tokenizer


class Oracle:
    """Guesses the answer it was told, with every third token wrong."""

    def __init__(self, ids):
        self.ids = ids

    def draft(self, requests):
        told = [self.ids[len(request.ids) :][:5] for request in requests]
        return [[id if (at + 1) % 3 else (id + 1) % 200 for at, id in enumerate(ids)] for ids in told]

    def rest(self):
        pass


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
    said = [1, 2, 3, 4, 9, 2, 3, 7, 7]
    assert PromptLookup(tokens=3).following([*said, 2, 3]) == [7, 7, 2]
    assert PromptLookup(tokens=2).following([*said, 1, 2, 3]) == [4, 9]
    assert PromptLookup().following([*said, 5, 6]) == []
    with pytest.raises(ValueError, match="at least 1"):
        PromptLookup(longest=1, shortest=2)


# ---- a draft model

BYTES = Tokenizer.bytes()
SAMPLINGS = [Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=3)]


def language(**changes):
    return strong(Fused.Config(backbone=llama(vocab=259, width=32, depth=1, heads=2, kv_heads=1, hidden=32, **changes)))


def asked(engine, samples, sampling):
    engine.stops = frozenset()
    return engine.answered(samples, sampling, None)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_wrong_draft_model_changes_no_token(tiny, sampling):
    expected = asked(Engine(tiny.model, tiny.renderer), prompts(tiny), sampling)
    drafter = DraftModel(language(), BYTES, BYTES, slots=2)  # fewer than conversations
    requests = asked(Engine(tiny.model, tiny.renderer, drafter=drafter), prompts(tiny), sampling)
    assert [request.ids for request in requests] == [request.ids for request in expected]
    assert all(request.drafted > request.right for request in requests)
    assert not drafter.decoder.active


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_model_that_is_the_model_is_right_where_there_is_no_picture(tiny, monkeypatch, sampling):
    samples = prompts(tiny)
    expected = asked(Engine(tiny.model, tiny.renderer), samples, sampling)
    drafter = DraftModel(tiny.model, BYTES, BYTES, tokens=4)
    requests = asked(Engine(tiny.model, tiny.renderer, drafter=drafter), samples, sampling)
    assert [request.ids for request in requests] == [request.ids for request in expected]
    words = requests[0]
    if sampling.temperature == 0:
        assert words.right == words.drafted == 15  # 1 + 3 x (4 + 1) + 3 + 1 tokens
    assert requests[1].right < requests[1].drafted  # it does not see the picture
    drafter.rest()
    assert asked(Engine(tiny.model, tiny.renderer, drafter=drafter), samples, sampling)[0].ids == words.ids


def test_a_draft_model_reads_what_is_new_alone(tiny, monkeypatch):
    """What it held of a conversation is read on where it stands: nothing is copied, nothing read twice."""
    counts, copies = [], []
    drafter = DraftModel(language(), BYTES, BYTES, tokens=3)
    engine = Engine(tiny.model, tiny.renderer, drafter=drafter)
    decoder = drafter.decoder
    enter, fork = decoder.enter, decoder.cache.fork

    def entered(requests):
        enter(requests)
        counts.extend(len(request.rest) for request in requests)

    monkeypatch.setattr(decoder, "enter", entered)
    monkeypatch.setattr(decoder.cache, "fork", lambda *of: copies.append(of) or fork(*of))
    [request] = asked(engine, [Sample(tiny.ask("a b", 1))], Sampling(max_tokens=24))
    assert sum(counts) <= len(request.words) + 24
    assert len(counts) > 4
    assert max(counts[1:]) <= 4
    assert copies == []


def test_more_tokens_than_the_draft_model_has_places_for_are_not_guessed(tiny):
    sample = Sample(tiny.ask("how long is this?"))
    places = len(tiny.renderer.render(sample, generate=True)) + 9
    learned = language().config.backbone.replace(rope=None, positions=places)
    drafter = DraftModel(strong(Fused.Config(backbone=learned)), BYTES, BYTES, tokens=4)
    [request] = asked(Engine(tiny.model, tiny.renderer, drafter=drafter), [sample], Sampling(max_tokens=20))
    [plain] = asked(Engine(tiny.model, tiny.renderer), [sample], Sampling(max_tokens=20))
    assert request.ids == plain.ids
    assert 4 <= request.drafted < 30


def test_a_vocabulary_may_go_on_where_the_other_ends(tiny):
    """Marks of the model that the draft model has no words for are left out of what it reads, and the other way."""
    more = BYTES.add_special(("<image>",))
    wide = strong(Fused.Config(backbone=llama(vocab=300, width=32, depth=1, heads=2, kv_heads=1, hidden=32)))
    for model, own, target in ((language(), BYTES, more), (wide, more, BYTES)):
        drafter = DraftModel(model, own, target)
        request = Engine(tiny.model, tiny.renderer).open(Sample(tiny.ask("hi")), Sampling(max_tokens=9))
        request.words = [*request.words, 259, 104]
        [ids] = drafter.draft([request])
        assert all(id < 259 for id in ids)


def test_what_cannot_draft_is_refused(tiny):
    other = Tokenizer.bytes(("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    with pytest.raises(UserError, match=r"token 256 is '<\|im_end\|>' and the model's '<\|endoftext\|>'"):
        DraftModel(language(), other, BYTES)
    with pytest.raises(UserError, match="causal language model"):
        DraftModel(strong(config(rule=AttentionRule("full"))), BYTES, BYTES)
    with pytest.raises(ValueError, match="at least 1"):
        DraftModel(language(), BYTES, BYTES, tokens=0)
