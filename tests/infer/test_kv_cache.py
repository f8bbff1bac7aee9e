"""What is read through a cache must be what one full forward pass computes."""

from dataclasses import replace

import pytest
import torch

from sensorium.infer.cache import Cache
from sensorium.infer.cutting import tail
from sensorium.mask import AttentionRule, compile_layout
from sensorium.sequence import Sample, Sequence


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def documents(tiny, *texts, pictures=()):
    return [tiny.renderer.render(Sample(tiny.ask(text, *pictures))) for text in texts]


def full(model, sequence):
    return model(sequence).logits(torch.arange(len(sequence)))


def read(model, cache, parts, slots):
    packed = Sequence.pack(parts)
    layout = compile_layout(packed, model.config.rule)
    with cache.step(slots, layout):
        outputs = model(packed, cache, layout)
    return outputs.logits(torch.arange(len(packed))).split([len(part) for part in parts])


def cut(sequence, *places):
    ends = [*places, len(sequence)]
    rest, pieces, start = sequence, [], 0
    for end in ends:
        length = end - start
        names = ("ids", "modality", "position", "doc", "branch", "weight")
        spans = [span for span in rest.spans if span.start + span.length <= length]
        items = {span.kind: rest.items[span.kind][: len(spans)] for span in spans}
        pieces.append(Sequence(**{name: getattr(rest, name)[:length] for name in names}, spans=spans, items=items))
        if end < len(sequence):
            rest = tail(rest, length)
        start = end
    return pieces


def test_packed_prefill_then_tokens_one_by_one(tiny):
    short, long = documents(tiny, "hi there", "a much longer question?", pictures=(1,))
    expected = [full(tiny.model, document) for document in (short, long)]
    cache = Cache.of(tiny.model.backbone, slots=3, capacity=96)
    lengths = [len(short) - 5, len(long) - 5]
    pieces = [cut(document, *range(length, length + 5)) for document, length in zip((short, long), lengths)]
    logits = read(tiny.model, cache, [piece[0] for piece in pieces], [2, 0])
    for step in range(6):
        for row in range(2):
            place = slice(0, lengths[row]) if step == 0 else slice(lengths[row] + step - 1, lengths[row] + step)
            torch.testing.assert_close(logits[row], expected[row][place], atol=1e-4, rtol=0)
        if step < 5:
            logits = read(tiny.model, cache, [piece[step + 1] for piece in pieces], [2, 0])
    assert cache.lengths == [len(long), 0, len(short)]


def test_turns_appended_of_different_lengths(tiny):
    one, two = documents(tiny, "first document here", "and the second, longer one", pictures=(1, 2))
    expected = [full(tiny.model, document) for document in (one, two)]
    cache = Cache.of(tiny.model.backbone, slots=2, capacity=96)
    parts = [cut(one, 20, 30), cut(two, 25, 26)]  # the second step appends ten tokens here and one there
    got = [read(tiny.model, cache, [part[step] for part in parts], [0, 1]) for step in range(3)]
    for row in range(2):
        torch.testing.assert_close(torch.cat([step[row] for step in got]), expected[row], atol=1e-4, rtol=0)


def test_a_turn_on_top_beside_a_fresh_prompt(tiny):
    one, two = documents(tiny, "the earlier conversation", "a new prompt")
    first, second = cut(one, 15)
    cache = Cache.of(tiny.model.backbone, slots=4, capacity=64)
    read(tiny.model, cache, [first], [3])
    got = read(tiny.model, cache, [second, two], [3, 1])
    torch.testing.assert_close(got[0], full(tiny.model, one)[15:], atol=1e-4, rtol=0)
    torch.testing.assert_close(got[1], full(tiny.model, two), atol=1e-4, rtol=0)


def test_a_picture_that_sees_both_ways_inside_an_appended_turn(build):
    from tiny_fused import ask

    model, renderer = build(rule=AttentionRule(bidirectional=("image",)))
    sample = Sample((*ask("first", 1), *ask("reply", role="assistant"), *ask("second", 2, 3)))
    document = renderer.render(sample)
    place = document.spans[1].start - 3
    first, second = cut(document, place)
    cache = Cache.of(model.backbone, slots=1, capacity=96)
    got = torch.cat([read(model, cache, [part], [0])[0] for part in (first, second)])
    torch.testing.assert_close(got, full(model, document), atol=1e-4, rtol=0)


def test_a_fork_continues_on_its_own(tiny):
    left, right = documents(tiny, "shared left", "shared right")
    shared = int((left.ids[: min(len(left), len(right))] != right.ids[: min(len(left), len(right))]).nonzero()[0])
    cache = Cache.of(tiny.model.backbone, slots=2, capacity=64)
    read(tiny.model, cache, [cut(left, shared)[0]], [0])
    cache.fork(0, 1)
    read(tiny.model, cache, [cut(left, shared)[1]], [0])
    got = read(tiny.model, cache, [cut(right, shared)[1]], [1])[0]
    torch.testing.assert_close(got, full(tiny.model, right)[shared:], atol=1e-4, rtol=0)


def test_growing_and_cutting_back_change_nothing(tiny):
    [document] = documents(tiny, "some words to read")
    first, second = cut(document, 12)
    cache = Cache.of(tiny.model.backbone, slots=1, capacity=12)
    read(tiny.model, cache, [first], [0])
    with pytest.raises(ValueError, match=rf"{len(document)} tokens, its capacity is 12"):
        read(tiny.model, cache, [second], [0])
    cache.reserve(13)
    assert cache.capacity == 24
    cache.reserve(len(document))
    read(tiny.model, cache, [second], [0])
    cache.truncate(0, 12)
    got = read(tiny.model, cache, [second], [0])[0]
    torch.testing.assert_close(got, full(tiny.model, document)[12:], atol=1e-4, rtol=0)


def test_a_step_that_fails_leaves_the_lengths(tiny):
    [document] = documents(tiny, "words")
    cache = Cache.of(tiny.model.backbone, slots=1, capacity=64)
    layout = compile_layout(document)
    with pytest.raises(KeyboardInterrupt), cache.step([0], layout):
        raise KeyboardInterrupt
    assert cache.lengths == [0]
    with pytest.raises(RuntimeError, match="inside"):
        _ = cache.current


def test_misuse_is_refused(tiny):
    [document] = documents(tiny, "words")
    cache = Cache.of(tiny.model.backbone, slots=2, capacity=64)
    with pytest.raises(ValueError, match="different slots"), cache.step([0, 0], compile_layout(document)):
        pass
    with pytest.raises(ValueError, match="causal"), cache.step([0], compile_layout(document, AttentionRule("full"))):
        pass
    with pytest.raises(ValueError, match="cannot be cut to 5"):
        cache.truncate(0, 5)


def test_half_precision_model_keeps_its_cache_in_float32_where_torch_reads_it_on_a_cpu(build):
    model, _ = build()
    assert Cache.of(model.backbone.to(torch.bfloat16), 1, 8).layer(0).keys.dtype == torch.float32
    assert Cache.of(model.backbone, 1, 8, half=True).layer(0).keys.dtype == torch.bfloat16
    assert Cache.of(model.backbone.double(), 1, 8).layer(0).keys.dtype == torch.float64


def test_what_is_not_visible_is_read_and_not_kept(tiny):
    """Tokens behind an invisible span find what they would find had it never been there."""
    one, two = documents(tiny, "what is this?", "and that one here?", pictures=(1,))
    shown = [one.spans[0], two.spans[0]]
    one.spans, two.spans = [replace(shown[0], visible=False)], [replace(shown[1], visible=False)]
    expected = [full(tiny.model, document) for document in (one, two)]
    cache = Cache.of(tiny.model.backbone, slots=2, capacity=96)
    places = [span.start + span.length + 2 for span in shown]
    pieces = [cut(document, place) for document, place in zip((one, two), places)]
    read(tiny.model, cache, [piece[0] for piece in pieces], [1, 0])
    assert [cache.lengths[1], cache.lengths[0]] == [place - span.length for place, span in zip(places, shown)]
    logits = read(tiny.model, cache, [piece[1] for piece in pieces], [1, 0])
    for row in range(2):
        torch.testing.assert_close(logits[row], expected[row][places[row] :], atol=1e-4, rtol=0)


def test_what_grew_inside_inference_mode_is_copied_and_moved_outside_it(tiny):
    [document] = documents(tiny, "words")
    cache = Cache.of(tiny.model.stack, 2, 8)
    with torch.inference_mode():
        cache.reserve(64)
    with torch.inference_mode(False), torch.enable_grad():
        cache.fork(0, 1)
        cache.exchange(0, 1)
    with torch.inference_mode():
        read(tiny.model, cache, [document], [0])
    assert cache.lengths == [len(document), 0]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2]])
def test_slots_that_were_exchanged_are_read_on_in_any_order(tiny, order):
    """Exchanging copies nothing; growing, forking and the next steps find each slot where it lies."""
    every = documents(tiny, "first words", "other ones", "and a third, longer prompt")
    held = [0, 1, 2]
    cache = Cache.of(tiny.model.backbone, slots=3, capacity=32)
    read(tiny.model, cache, [cut(document, 10)[0] for document in every], held)
    before = cache.layer(0).keys.clone()
    for one, other in ((0, 2), (1, 2)):
        cache.exchange(one, other)
        held[one], held[other] = held[other], held[one]
    assert torch.equal(cache.layer(0).keys, before)
    cache.reserve(96)
    for slot in order:
        got = read(tiny.model, cache, [cut(every[held[slot]], 10)[1]], [slot])[0]
        torch.testing.assert_close(got, full(tiny.model, every[held[slot]])[10:], atol=1e-4, rtol=0)
    cache.fork(order[0], order[-1], 10)
    got = read(tiny.model, cache, [cut(every[held[order[0]]], 10)[1]], [order[-1]])[0]
    torch.testing.assert_close(got, full(tiny.model, every[held[order[0]]])[10:], atol=1e-4, rtol=0)
