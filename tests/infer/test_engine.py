"""Answers and likelihoods: equal to the plain full forward pass, whatever is asked beside them."""

from types import SimpleNamespace

import pytest
import torch
from tiny_fused import ask, plain_greedy

from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack
from sensorium.errors import UserError
from sensorium.infer.cache import Cache
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.mask import AttentionRule
from sensorium.objectives.language import log_likelihood
from sensorium.render import Renderer
from sensorium.sequence import Sample, Segment


def samples(tiny, count=7):
    texts = ["hi", "what is this?", "a" * 30, "两只猫", "count them", "x", "why?"]
    return [Sample(tiny.ask(texts[index], *range(index % 3))) for index in range(count)]


def test_greedy_answers_are_those_of_the_full_forward_pass(tiny):
    expected = [plain_greedy(tiny, sample, 12) for sample in samples(tiny)]
    assert len(set(expected)) > 3
    assert tiny.engine.generate(samples(tiny), Sampling(max_tokens=12)) == expected


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=10),
    Sampling(max_tokens=10, temperature=0.9, top_p=0.9, seed=5),
    Sampling(max_tokens=10, temperature=1.5, top_k=20, repetition_penalty=1.3),
])  # fmt: skip
def test_answers_do_not_depend_on_how_many_are_made_at_once(tiny, sampling):
    expected = tiny.engine.generate(samples(tiny), sampling)
    for slots, tokens in ((1, 2048), (3, 50), (5, 1), (7, 2048)):
        engine = Engine(tiny.model, tiny.renderer, slots=slots, tokens=tokens)
        assert engine.generate(samples(tiny), sampling) == expected


def test_the_seed_decides(tiny):
    one, same, other = (
        tiny.engine.generate(samples(tiny, 3), Sampling(max_tokens=10, temperature=1.0, seed=seed))
        for seed in (1, 1, 100)
    )
    assert one == same != other


def test_a_stream_is_the_answer_in_pieces(tiny):
    for sample in samples(tiny, 3):
        [whole] = tiny.engine.generate([sample], Sampling(max_tokens=15))
        pieces = list(tiny.engine.stream(sample, Sampling(max_tokens=15)))
        assert "".join(pieces) == whole
        assert "" not in pieces


def test_an_ordinary_token_may_end_an_answer(tiny):
    sample, tokenizer = samples(tiny)[1], tiny.renderer.tokenizer
    [whole] = tiny.engine.generate([sample], Sampling(max_tokens=15))
    last = tokenizer.encode(whole)[4]
    template = tiny.renderer.template.replace(ends=(tokenizer.token(last),))
    engine = Engine(tiny.model, Renderer(tokenizer, template, tiny.renderer.plan, tiny.renderer.load))
    assert last in engine.stops
    [answer] = engine.generate([sample], Sampling(max_tokens=15))
    assert len(answer) < len(whole)
    assert answer == plain_greedy(SimpleNamespace(model=tiny.model, renderer=tiny.renderer, engine=engine), sample, 15)


def test_long_answers_grow_the_cache(tiny, monkeypatch):
    engine = Engine(tiny.model, tiny.renderer)
    engine.stops = frozenset()
    monkeypatch.setattr(engine, "cache", lambda slots: Cache.of(tiny.model.backbone, slots, 16))
    request = engine.open(samples(tiny)[0], Sampling(max_tokens=300))
    for _ in engine.run(request):
        pass
    assert len(request.ids) == 300


def test_a_closed_stream_frees_its_slot_and_the_model_keeps_its_mode(tiny):
    engine = Engine(tiny.model, tiny.renderer, slots=1)
    engine.stops = frozenset()
    tiny.model.train()
    tiny.model.encoders.eval()  # frozen while the rest learns
    stream = engine.stream(samples(tiny)[0])
    next(stream)
    assert not tiny.model.training
    stream.close()
    assert engine.scheduler.decoder.free == 1
    assert engine.scheduler.idle
    assert tiny.model.training
    assert not tiny.model.encoders["image"].training
    tiny.model.eval()


def test_likelihoods_are_those_of_each_option_alone(tiny):
    questions = [
        (tiny.ask("which?", 1), ["cat", "dog house", "日本", ""]),
        (tiny.ask("and this one here?"), ["yes", "no"]),
        ((Segment("image", tiny.Picture(3)), Segment("text", "a picture of")), [" a cat", " two dogs"]),
    ]
    results = tiny.engine.log_likelihoods(questions)
    for (prompt, options), result in zip(questions, results):
        role = "assistant" if prompt[0].role else None
        for option, total, count in zip(options, result.sums, result.counts):
            answer = Segment("text", option, role=role, train=True)
            prompt = tuple(Segment(s.kind, s.data, role=s.role, train=False) for s in prompt)
            sequence = tiny.renderer.render(Sample((*prompt, answer)))
            if role:  # the option's bytes and the stop token
                assert count == len(option.encode()) + 1
            with torch.no_grad():
                sums, counts = log_likelihood(tiny.model(sequence), sequence)
            assert total == pytest.approx(float(sums[0, 0]), abs=1e-4)
            assert count == float(counts[0, 0])
    assert results[0].best == max(range(4), key=lambda i: results[0].sums[i])
    assert results[0].best_per_token == max(range(4), key=lambda i: results[0].sums[i] / results[0].counts[i])


def test_likelihoods_do_not_depend_on_the_budget(tiny):
    questions = [(tiny.ask("q" * (5 * n), *range(n % 3)), ["a", "bb", "c" * n]) for n in range(1, 9)]
    seen = []
    expected = tiny.engine.log_likelihoods(questions, seen.append)
    assert seen == [8]
    for tokens, items in ((1, 32), (200, 32), (2048, 1)):
        engine = Engine(tiny.model, tiny.renderer, tokens=tokens, items=items)
        for one, other in zip(engine.log_likelihoods(questions), expected):
            assert one.sums == pytest.approx(other.sums, abs=1e-4)
            assert one.counts == other.counts


@pytest.fixture
def two_threads():
    """Where sums over rows are shared between threads, how many rows there are decides their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_likelihoods_are_the_same_bits_whatever_is_asked_beside(tiny, two_threads):
    questions = [(tiny.ask("q" * (5 * n), *range(n % 3)), ["a", "bb", "c" * n]) for n in range(1, 13)]
    expected = tiny.engine.log_likelihoods(questions)
    assert Engine(tiny.model, tiny.renderer).log_likelihoods(questions[::-1])[::-1] == expected
    for tokens, count in ((200, 12), (2048, 5), (2048, 1)):
        engine = Engine(tiny.model, tiny.renderer, tokens=tokens)
        assert engine.log_likelihoods(questions[:count]) == expected[:count]
    assert [tiny.engine.log_likelihoods([one])[0] for one in questions] == expected


def test_a_question_without_options_is_refused(tiny):
    with pytest.raises(UserError, match="question 1 has no options"):
        tiny.engine.log_likelihoods([(tiny.ask("a"), ["b"]), (tiny.ask("a"), [])])


def test_equal_pictures_are_encoded_once(tiny, monkeypatch):
    engine = Engine(tiny.model, tiny.renderer)
    counts = []
    encode = engine._encode
    monkeypatch.setattr(engine, "_encode", lambda kind, items: counts.append(len(items)) or encode(kind, items))
    engine.log_likelihoods([(tiny.ask("a", 1, 2), ["x"]), (tiny.ask("b", 2, 1, 3), ["y"])])
    assert sum(counts) == 3


def test_the_features_of_a_picture_do_not_depend_on_those_it_came_with(build, two_threads):
    eye = ViT.Config(transform=ImageTransform(size=24), backbone=stack(16, 3, 2), patch=8)
    model, renderer = build(encoders={"image": eye})
    rendered = [renderer.render(Sample(ask("a", n)), generate=True) for n in range(7)]
    together = Engine(model, renderer).prepare(rendered)
    for sequence, member in zip(rendered, together):
        [alone] = Engine(model, renderer).prepare([sequence])
        assert torch.equal(alone.members("image")[0].features, member.members("image")[0].features)


def test_embeddings_are_means_of_the_last_hidden_states(tiny):
    vectors = tiny.engine.embed(samples(tiny))
    assert vectors.shape == (7, 32)
    with torch.no_grad():
        hidden = tiny.model(tiny.renderer.render(samples(tiny)[4], generate=True)).hidden
    torch.testing.assert_close(vectors[4], hidden.mean(0), atol=1e-5, rtol=0)
    small = Engine(tiny.model, tiny.renderer, tokens=1)
    torch.testing.assert_close(small.embed(samples(tiny)), vectors, atol=1e-5, rtol=0)
    assert tiny.engine.embed([]).shape == (0, 32)


def test_logits_line_up_with_the_ids(tiny):
    sample = Sample((*tiny.ask("say", 1), *tiny.ask("ok", role="assistant")))
    ids, logits = tiny.engine.logits(sample)
    sequence = tiny.renderer.render(sample)
    assert ids.tolist() == sequence.ids.tolist()
    with torch.no_grad():
        expected = tiny.model(sequence).logits(torch.arange(len(sequence)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_a_context_drops_whole_earlier_turns(tiny):
    turns = []
    for number in range(6):
        turns += [*tiny.ask(f"question {number}"), *tiny.ask(f"answer {number}", role="assistant")]
    sample = Sample((*turns, *tiny.ask("last")))
    engine = Engine(tiny.model, tiny.renderer, context=100)
    prompt = engine.prompt(sample, Sampling(max_tokens=20))
    text = tiny.renderer.tokenizer.decode(prompt.ids.tolist())
    assert len(prompt) <= 80
    assert "question 5" in text
    assert "question 0" not in text
    with pytest.raises(UserError, match="no room"):
        engine.prompt(sample, Sampling(max_tokens=100))


def test_a_rule_that_looks_ahead_is_refused(build):
    model, renderer = build(rule=AttentionRule("full"))
    with pytest.raises(ValueError, match="left to right"):
        Engine(model, renderer).generate([Sample((Segment("text", "x", role="user"),))])
