"""A generator reads the states at signals and tells its denoiser what to make."""

import pytest
import tiny_generator
import torch
from tiny_fused import Picture
from tiny_generator import SIGNALS, asked, make, renderer_of, shown
from torch.testing import assert_close

from sensorium.models.generator import Generator
from sensorium.objectives.generation import ConditionDistance, GeneratedDenoising
from sensorium.objectives.language import NextToken
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer

SAMPLES = [asked("Draw.", "a cat", 1), shown(2, "What?", "a dog"), asked("Draw more.", "two", 3), asked("Hi.", "Hello")]


def rendered(model):
    return [renderer_of(model).render(sample) for sample in SAMPLES]


def test_a_picture_of_an_answer_is_signals_and_its_target():
    model = make()
    drawn, seen, _, plain = rendered(model)
    [span] = drawn.spans
    assert (span.kind, span.mode, span.length) == ("made.image", "signal", 3)
    assert drawn.ids[span.start : span.start + 3].tolist() == list(SIGNALS.ids)
    assert drawn.weight[span.start : span.start + 4].tolist() == [1, 1, 1, 1]  # and the token that ends the turn
    [item] = drawn.items["made.image"]
    begin, *words, plain_end = item.text.tolist()  # as the denoiser's own documents are written
    assert bytes(words) == b"a cat"
    assert [begin, plain_end] == Tokenizer.bytes().encode_trusted("<|im_start|><|im_end|>")
    assert item.data.shape == (1, 3, 8, 8)  # as the denoiser's codec reads it
    assert set(seen.items) == {"image"}
    assert not plain.spans
    again = next(iter(Sequence.pack([plain, drawn]).unpack()))
    assert again.items == {}
    document = Sample((Segment("text", "a cat"), Segment("image", Picture(1))))
    drawn = renderer_of(model).render(document)
    assert drawn.spans[0].kind == "made.image"
    assert drawn.items["made.image"][0].text.equal(item.text)
    said = replied = renderer_of(model).render(Sample((Segment("image", Picture(1)), Segment("text", "a cat"))))
    assert said.spans[0].kind == replied.spans[0].kind == "image"  # what is not learned is read


@pytest.mark.parametrize("length", [0, 5])
def test_packed_equals_separate(length):
    model = make(length=length)
    parts = rendered(model)
    together = model(Sequence.pack(parts)).generated["image"]()
    alone = [model(part).generated["image"]() for part in parts]
    assert together.condition.shape == (2, 5, 16)
    assert [len(one.items) for one in alone] == [1, 0, 1, 0]
    assert_close(together.condition, torch.cat([one.condition for one in alone]), rtol=1e-4, atol=1e-5)
    assert_close(together.distances(), torch.cat([one.distances() for one in alone]), rtol=1e-4, atol=1e-5)
    assert (together.distances() > 0).all()
    torch.manual_seed(3)
    errors = together.errors()
    assert errors.shape == (2,)
    assert torch.isfinite(errors).all()


def test_the_caption_itself_is_no_distance_away_and_is_denoised_as_the_denoiser_would():
    model = make(length=5)
    generator = model.generators["image"]
    made = model(Sequence.pack(rendered(model))).generated["image"]()
    made.condition = generator.captions(made.items)
    assert_close(made.distances(), torch.zeros(2))
    torch.manual_seed(5)
    ours = made.errors()
    torch.manual_seed(5)
    found = generator.denoiser(generator.documents(made.items))
    error = (found.output - found.target).square().mean(1)
    theirs = torch.stack([error[found.number == index].mean() for index in range(2)])
    assert_close(ours, theirs)


def test_gradients_reach_the_signals_and_stay_out_of_a_frozen_denoiser():
    model = make()
    model.generators["image"].denoiser.requires_grad_(False)
    packed = Sequence.pack(rendered(model))
    outputs = model(packed)
    for objective in (ConditionDistance(), GeneratedDenoising()):
        model.zero_grad()
        loss = objective(outputs, packed)
        assert objective.count(packed) == float(loss.count) == 2
        loss.sum.backward(retain_graph=True)
        assert all(part.grad is None for part in model.generators["image"].denoiser.parameters())
        for parameter in model.generators["image"].connector.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
        touched = model.backbone.embed.weight.grad.abs().sum(1)
        assert (touched[list(SIGNALS.ids)] > 0).all()
    assert NextToken()(outputs, packed).count > 0


def test_without_items_every_parameter_of_the_connector_takes_part():
    model = make()
    plain = rendered(model)[3]
    outputs = model(plain)
    losses = [one(outputs, plain) for one in (ConditionDistance(), GeneratedDenoising())]
    assert [loss.sum.item() for loss in losses] == [0, 0]
    sum(loss.sum for loss in losses).backward()
    assert all(part.grad is not None for part in model.generators["image"].connector.parameters())


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="texts have 7 tokens, the output connector makes 5"):
        tiny_generator.config(length=7)
    with pytest.raises(ValueError, match="more blocks than the backbone's 2"):
        tiny_generator.config(layers=(3,))
    good = tiny_generator.config()
    far = {"image": good.generators["image"].replace(signals=SIGNALS.replace(first=260))}
    with pytest.raises(ValueError, match="the vocabulary has 262"):
        good.replace(generators=far)
    assert isinstance(make().generator("image"), Generator)
