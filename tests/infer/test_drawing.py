"""Pictures that a model says: always whole, guided or not, and the same with a cache as without one."""

from __future__ import annotations

import pytest
import torch
from token_models import CODES, WORDS, Noise, document, engine_of, token_config, token_model

from sensorium.errors import UserError
from sensorium.infer.decoding import Decoder
from sensorium.infer.drawing import Drawing
from sensorium.infer.sampling import Sampling
from sensorium.nn.part import Grid
from sensorium.sequence import Sample, Segment, Sequence

OPEN, CLOSE, ROW = WORDS + CODES, WORDS + CODES + 1, WORDS + CODES + 2
HOT = Sampling(temperature=3.0, max_tokens=12)


@pytest.fixture(scope="module")
def model():
    return token_model()


def is_whole(ids) -> bool:
    """Open, two rows of two codes with their ends, close."""
    shape = [OPEN, None, None, ROW, None, None, ROW, CLOSE]
    pairs = zip(ids, shape, strict=True)
    return all(WORDS <= id < OPEN if mark is None else id == mark for id, mark in pairs)


def drawn(engine, samples, sampling, most=1, begin="image"):
    return engine.answered(samples, sampling, None, (most, begin))


def test_every_drawn_picture_has_its_rows_and_is_closed(model):
    engine = engine_of(model)
    requests = drawn(engine, [document(f"picture {n}") for n in range(20)], HOT)
    assert all(is_whole(request.ids) for request in requests)
    assert len({tuple(request.ids) for request in requests}) > 10
    assert all(request.text.text == "" for request in requests)


def test_several_pictures_are_drawn_one_after_another(model):
    [request] = drawn(engine_of(model), [document("two")], HOT, most=2)
    assert is_whole(request.ids[:8])
    assert is_whole(request.ids[8:])
    assert len(request.drawing.drawn) == 2


def test_words_alone_hold_no_code_however_hot(model):
    for request in drawn(engine_of(model), [document("say")] * 10, HOT, most=0, begin=None):
        assert max([*request.ids, 0]) < WORDS


def test_a_picture_among_words_is_whole_even_at_the_end_of_the_answer(model):
    engine = engine_of(model)
    samples = [document(f"say {n}") for n in range(60)]
    found = drawn(engine, samples, Sampling(temperature=6.0, max_tokens=30), most=1, begin=None)
    pictures = 0
    for request in found:
        ids = request.ids
        if OPEN in ids:
            at = ids.index(OPEN)
            assert is_whole(ids[at : at + 8])
            assert max([*ids[:at], *ids[at + 8 :], 0]) < WORDS
            pictures += 1
    assert pictures >= 2
    assert pictures == sum(len(request.drawing.drawn) for request in found)


def test_pictures_come_as_pictures(model):
    [[picture]] = engine_of(model).draw([document("a cat")], HOT)
    assert (picture.size, picture.mode) == ((8, 8), "RGB")
    plain = token_config().replace(codecs={}, tokens={}).build()
    with pytest.raises(UserError, match="says no image"):
        engine_of(plain).draw([document("a cat")])


def test_cached_decoding_equals_reading_everything_again(model):
    """Greedy codes are the likeliest ones that may follow, in one pass over the whole document."""
    engine = engine_of(model)
    sample = document(Noise(5), "a cat")
    [request] = drawn(engine, [sample], Sampling(max_tokens=1))
    [whole] = engine.prepare([engine.prompt(sample, Sampling())])
    ids = torch.cat([whole.ids, torch.tensor(request.ids)])
    extra = torch.zeros(8, dtype=torch.long)
    position = torch.arange(len(ids))[:, None].expand(-1, 3)
    kept = torch.cat([whole.modality, extra.to(torch.uint8) + 1])
    full = Sequence(ids, kept, position, torch.zeros(len(ids), dtype=torch.long), torch.zeros(len(ids)).long(),
                    torch.zeros(len(ids)), whole.spans, whole.items)  # fmt: skip
    with torch.no_grad():
        logits = model(full).logits(torch.arange(len(whole) - 1, len(ids) - 1))
    state = Drawing({"image": (model.config.tokens["image"], Grid(2, 2))}, 1, "image")
    for row, id in zip(logits, request.ids):
        assert int(state.allow(row).argmax()) == id
        state.take(id)
    assert state.complete


def test_pictures_do_not_depend_on_what_is_drawn_beside_them(model):
    samples = [document(f"picture {n}" * (1 + n % 3)) for n in range(7)]
    sampling = HOT.replace(guidance=2.5)
    many = [request.ids for request in drawn(engine_of(model), samples, sampling)]
    few = [request.ids for request in drawn(engine_of(model, slots=2), samples, sampling)]
    assert many == few


def _guided(model, scale):
    """Requests with an unconditional branch, whatever the scale, beside those without one."""
    engine = engine_of(model)
    sampling = Sampling(temperature=1.0, max_tokens=1, guidance=scale)
    decoder = Decoder(model, engine.cache(8))
    requests = []
    for seed in range(4):
        own = sampling.replace(seed=seed)
        request = engine.request(engine.prompt(document(f"picture {seed}"), own), own, drawn=(1, "image"))
        request.against = engine.request(engine.prompt(document(""), own), own)
        requests.append(request)
    decoder.admit(requests)
    while decoder.active:
        decoder.step()
    return [request.ids for request in requests]


def test_guidance_of_scale_1_is_no_guidance_and_of_scale_0_no_prompt(model):
    samples = [document(f"picture {seed}") for seed in range(4)]
    sampling = Sampling(temperature=1.0, max_tokens=1)
    assert _guided(model, 1.0) == [request.ids for request in drawn(engine_of(model), samples, sampling)]
    nothing = [request.ids for request in drawn(engine_of(model), [document("")] * 4, sampling)]
    assert _guided(model, 0.0) == nothing
    assert _guided(model, 4.0) != _guided(model, 1.0)


def test_a_guided_request_reads_its_words_and_its_turn_without_words(model):
    engine = engine_of(model, slots=4)
    sample = Sample((Segment("text", "Draw a cat.", "user"),))
    sampling = HOT.replace(guidance=2.0)
    [request] = drawn(engine, [sample], sampling)
    assert request.slots == 2
    assert request.against.ids == request.ids
    empty = engine.prompt(Sample((Segment("text", "", "user"),)), sampling)
    assert request.against.sequence.ids.tolist() == empty.ids.tolist()
    with pytest.raises(UserError, match="takes 2 slots"):
        engine_of(model, slots=1).draw([sample], sampling)
