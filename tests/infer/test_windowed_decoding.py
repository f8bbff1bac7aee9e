"""Windows, soft caps and rotary positions of their own through a cache: what one full forward pass computes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_kv_cache import cut, full, read
from tiny_fused import ask, config, plain_greedy, renderer_of, strong

from sensorium.infer.cache import Cache
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.backbone import Local
from sensorium.nn.rope import Rope
from sensorium.sequence import Sample

WINDOWS = {
    "all": {"local": Local(window=5)},
    "one of two": {"local": Local(window=7, layers=(0,)), "soft_cap": 3.0},
    "own positions": {"local": Local(window=4, layers=(1,), rope=Rope.Config(theta=50.0))},
    "wider than the text": {"local": Local(window=500)},
    "none": {},
}


def made(case: str, cap: float | None = None, **changes):
    backbone = config().backbone.replace(**WINDOWS[case])
    attention = backbone.block.attention.replace(soft_cap=cap, scale_width=None if cap is None else 3.0)
    return strong(config(backbone=backbone.replace(block=backbone.block.replace(attention=attention)), **changes))


@pytest.fixture(params=[(case, cap) for case in WINDOWS for cap in (None, 2.0)], ids=str)
def model(request):
    with torch.no_grad():
        yield made(*request.param)


def rendered(model, *texts, pictures=()):
    renderer = renderer_of(model)
    return [renderer.render(Sample(ask(text, *pictures))) for text in texts]


def test_packed_prefill_then_tokens_one_by_one(model):
    short, long = rendered(model, "hi there", "a much longer question?", pictures=(1,))
    expected = [full(model, document) for document in (short, long)]
    cache = Cache.of(model.backbone, slots=3, capacity=96)
    lengths = [len(short) - 5, len(long) - 5]
    pieces = [cut(document, *range(at, at + 5)) for document, at in zip((short, long), lengths)]
    for step in range(6):
        logits = read(model, cache, [piece[step] for piece in pieces], [2, 0])
        for row in range(2):
            place = slice(0, lengths[row]) if step == 0 else slice(lengths[row] + step - 1, lengths[row] + step)
            torch.testing.assert_close(logits[row], expected[row][place], atol=1e-4, rtol=0)


def test_one_document_token_by_token(model):
    [document] = rendered(model, "a question of some length")
    pieces = cut(document, *range(6, len(document)))
    cache = Cache.of(model.backbone, slots=1, capacity=64)
    got = torch.cat([read(model, cache, [piece], [0])[0] for piece in pieces])
    torch.testing.assert_close(got, full(model, document), atol=1e-4, rtol=0)


def test_turns_appended_of_different_lengths(model):
    one, two = rendered(model, "first document here", "and the second, longer one", pictures=(1, 2))
    expected = [full(model, document) for document in (one, two)]
    cache = Cache.of(model.backbone, slots=2, capacity=96)
    parts = [cut(one, 20, 30), cut(two, 25, 26)]
    got = [read(model, cache, [part[step] for part in parts], [0, 1]) for step in range(3)]
    for row in range(2):
        torch.testing.assert_close(torch.cat([step[row] for step in got]), expected[row], atol=1e-4, rtol=0)


@torch.no_grad()
def test_pictures_that_see_both_ways_and_latents_that_nobody_sees():
    model = made("all", rule=AttentionRule(bidirectional=("image",)))
    one, two = rendered(model, "what is this?", "and that one here?", pictures=(1,))
    shown = [one.spans[0], two.spans[0]]
    for visible in (True, False):
        one.spans, two.spans = [[replace(span, visible=visible)] for span in shown]
        expected = [full(model, document) for document in (one, two)]
        cache = Cache.of(model.backbone, slots=2, capacity=96)
        places = [span.start + span.length + 2 for span in shown]
        pieces = [cut(document, place) for document, place in zip((one, two), places)]
        read(model, cache, [piece[0] for piece in pieces], [1, 0])
        logits = read(model, cache, [piece[1] for piece in pieces], [1, 0])
        for row in range(2):
            torch.testing.assert_close(logits[row], expected[row][places[row] :], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_step_of_one_token_reads_no_key_outside_of_the_window():
    model = made("all")
    [document] = rendered(model, "a question of some length")
    first, second = cut(document, len(document) - 1)
    cache = Cache.of(model.backbone, slots=1, capacity=64)
    read(model, cache, [first], [0])
    with cache.step([0], compile_layout(second)):
        assert cache.current.near(5) == (len(document) - 5, None)
        assert cache.current.near(500) == (0, None)
    cache.truncate(0, len(first))
    for layer in (cache.layer(0), cache.layer(1)):
        layer.keys[:, : len(document) - 5] = float("nan")
    [got] = read(model, cache, [second], [0])
    torch.testing.assert_close(got, full(model, document)[-1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", WINDOWS)
def test_greedy_texts_of_several_requests_are_those_of_full_passes(case):
    model = made(case, 2.0)
    renderer = renderer_of(model)
    system = SimpleNamespace(model=model, renderer=renderer, engine=Engine(model, renderer))
    samples = [Sample(ask("short")), Sample(ask("what is in this picture?", 1)), Sample(ask("and what is not?"))]
    expected = [plain_greedy(system, sample, 12) for sample in samples]
    # two blocks that see 5 tokens reach 9 back, where the same words end all prompts
    assert len(set(expected)) == (1 if case == "all" else 3)
    assert system.engine.generate(samples, Sampling(max_tokens=12)) == expected
