"""Words and signals from the one generation loop, pictures from the generator, in one answer."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_fused import ask
from tiny_generator import SIGNALS, make, renderer_of
from torch.testing import assert_close

from sensorium.diffusion.guider import Guider
from sensorium.diffusion.sampler import Euler
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.handover import reply
from sensorium.infer.painting import Painting
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample

PAINTING = Painting(sampler=Euler(steps=3), guider=Guider(scale=2.0))


def eager(model, towards=40.0):
    """Signals that the model likes to say: rows of the head that agree with any state's sign of one number."""
    with torch.no_grad():
        model.backbone.head.weight[SIGNALS.first] *= towards
    return model


@pytest.fixture
def engine():
    model = eager(make())
    return Engine(model, renderer_of(model), slots=3)


SAMPLES = [Sample(ask(words)) for words in ("Draw a cat.", "Hi", "A long request for a picture.", "Now", "Then")]


def test_states_of_cached_decoding_are_those_of_a_full_forward(engine):
    sampling = Sampling(max_tokens=12)
    done = engine.answered(SAMPLES, sampling, None, drawn=(2, None))
    drawn = [(request, one) for request in done for one in request.drawing.drawn]
    assert drawn
    for request, one in drawn:
        assert request.ids[one.start : one.start + one.length] == list(SIGNALS.ids)
        place = next(index for index, other in enumerate(done) if other is request)
        prompt = engine.renderer.render(SAMPLES[place], generate=True)
        whole = torch.cat([prompt.ids, torch.tensor(request.ids)])
        full = _document(prompt, whole)
        seen, between = engine.model.watch({})
        x, *_ = engine.model.stream(full)
        from sensorium.mask import compile_layout

        with torch.inference_mode():
            layout = compile_layout(full, engine.model.config.rule)
            hidden = engine.model.backbone(x, layout, between=between)
            states = engine.model.signals(hidden, seen)["image"]
        first = len(prompt) + one.start
        assert_close(torch.stack(one.states), states[first : first + one.length], rtol=1e-4, atol=1e-4)


def _document(prompt, ids):
    from sensorium.sequence import Sequence

    zeros = torch.zeros(len(ids), dtype=torch.long)
    position = torch.arange(len(ids))[:, None].expand(-1, 3).contiguous()
    return Sequence(ids, zeros.to(torch.uint8), position, zeros, zeros, zeros.float())


def test_an_answer_is_words_and_pictures_in_order(engine):
    replies = reply(engine, SAMPLES, Sampling(max_tokens=10), PAINTING, most=2)
    assert len(replies) == len(SAMPLES)
    frames = [part for parts in replies for part in parts if not isinstance(part, str)]
    assert frames
    assert all(len(one) == 1 and isinstance(one[0], Image.Image) and one[0].size == (8, 8) for one in frames)
    for parts in replies:
        assert sum(not isinstance(part, str) for part in parts) <= 2
        assert "" not in parts
    words = [part for parts in replies for part in parts if isinstance(part, str)]
    assert words
    again = reply(engine, SAMPLES, Sampling(max_tokens=10), PAINTING, most=2)
    for one, other in zip(replies, again, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == b if isinstance(a, str) else np.array_equal(np.asarray(a[0]), np.asarray(b[0]))


def test_without_leave_to_draw_there_are_words_alone(engine):
    assert reply(engine, SAMPLES, Sampling(max_tokens=6), PAINTING, most=0) == [
        [text] for text in engine.generate(SAMPLES, Sampling(max_tokens=6))
    ]
    with pytest.raises(UserError, match="a generator makes it"):
        engine.draw(SAMPLES[:1])


def test_an_answer_that_is_full_still_reads_its_last_signal(engine):
    [request] = engine.answered(SAMPLES[:1], Sampling(max_tokens=1), None, drawn=(1, "image"))
    [one] = request.drawing.drawn
    assert request.done
    assert request.ids == list(SIGNALS.ids)
    assert len(one.states) == SIGNALS.count
    assert one.states[0].shape == (2, 32)


def test_what_a_picture_is_depends_on_what_was_asked(engine):
    two = [Sample(ask("a cat")), Sample(ask("something else"))]
    done = engine.answered(two, Sampling(max_tokens=1), None, drawn=(1, "image"))
    from sensorium.infer.handover import make as made

    drawn = [one for request in done for one in request.drawing.drawn]
    first, second = (made(engine, [one], PAINTING)[0][0] for one in drawn)  # with the same noise
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    both = made(engine, drawn, PAINTING)
    assert np.abs(np.asarray(both[0][0]).astype(int) - np.asarray(first).astype(int)).max() <= 1
