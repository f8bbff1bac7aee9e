"""Painting: guidance, SDEdit and inpainting are one loop over one model."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_denoiser import awake, config
from torch.testing import assert_close

from sensorium.diffusion.guider import Guider
from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import DDIM, DDPM, DPMSolver, Euler
from sensorium.diffusion.schedule import Diffusion
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.painting import Painting, canvas, paint
from sensorium.nn.backbone import bert
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader

EULER = Euler(steps=4)


class Picture:
    """A picture in memory (Media)."""

    def __init__(self, image):
        self.image = image

    def key(self):
        return str(hash(self.image.tobytes()))

    def shape(self):
        return self.image.height, self.image.width

    def load(self):
        return self.image


def engine(tokens=4096, **changes):
    text = bert(vocab=259, width=16, depth=1, heads=2, hidden=32, positions=64)
    model = awake(config(text=text, **changes).build())
    return Engine(model, Renderer(Tokenizer.bytes(), Template(), model.config.plan, item_loader(model)), tokens=tokens)


def photo(seed=0, height=16, width=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def wanted(text, image):
    return Sample((Segment("image", Picture(image)), Segment("text", text)))


def same(one, other):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


def test_sizes_lengths_and_what_is_painted_together():
    asked = [canvas("a cat", 16, 16), canvas("a moving dog", 8, 8, 16), canvas("a bus", 4, 16), canvas("a cat", 16, 16)]
    together = paint(engine(), asked, Painting(sampler=EULER))
    assert [len(frames) for frames in together] == [1, 8, 1, 1]
    assert [frames[0].size for frames in together] == [(16, 16), (16, 8), (16, 4), (16, 16)]
    alone = paint(engine(tokens=1), asked, Painting(sampler=EULER))
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1
    assert not same(together[0], together[3])  # each has noise of its own


def test_guidance():
    asked = [canvas("a cat", 16, 16), canvas("two dogs", 16, 8)]
    made = {scale: paint(engine(), asked, Painting(sampler=EULER, guider=Guider(scale=scale))) for scale in (0, 1, 4)}
    outside = Guider(scale=4, interval=(2.0, 3.0))
    assert all(same(a, b) for a, b in zip(made[1], paint(engine(), asked, Painting(sampler=EULER, guider=outside))))
    others = [canvas("a bus", 16, 16), canvas("no dogs", 16, 8)]  # without guidance's condition, words do not matter
    nothing = paint(engine(), others, Painting(sampler=EULER, guider=Guider(scale=0)))
    assert all(same(a, b) for a, b in zip(made[0], nothing))
    assert not same(made[4][0], made[1][0])
    conditional, unconditional = torch.randn(3, 2), torch.randn(3, 2)
    assert_close(Guider(scale=1).join(conditional, unconditional), conditional)


def test_sdedit_keeps_the_picture_at_strength_zero_and_forgets_it_at_one():
    asked = [wanted("a cat", photo())]
    assert same(paint(engine(), asked, Painting(sampler=EULER, strength=0))[0], [photo()])
    half = paint(engine(), asked, Painting(sampler=EULER, strength=0.5))[0]
    other = paint(engine(), [wanted("a cat", photo(1))], Painting(sampler=EULER, strength=0.5))[0]
    assert not same(half, [photo()])
    assert not same(half, other)
    one = paint(engine(), asked, Painting(sampler=EULER))[0]
    assert same(one, paint(engine(), [canvas("a cat", 16, 16)], Painting(sampler=EULER))[0])


@pytest.mark.parametrize("sampler", [EULER, DDPM(steps=4)])
def test_inpainting_keeps_what_is_kept(sampler):
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, :7] = 255
    image = photo()
    [made] = paint(engine(), [wanted("a cat", image)], Painting(sampler=sampler), keep=[Image.fromarray(mask)])
    found, before = np.asarray(made[0]), np.asarray(image)
    assert np.array_equal(found[:, :7], before[:, :7])
    assert (found[:, 7:] != before[:, 7:]).mean() > 0.5
    [whole] = paint(engine(), [wanted("a cat", image)], Painting(sampler=sampler), keep=[Image.new("L", (16, 16), 255)])
    assert same(whole, [image])


@pytest.mark.parametrize("sampler", [DDIM(steps=4, eta=0.5), DDPM(steps=4), DPMSolver(steps=4), EULER])
@pytest.mark.parametrize("kind", ["noise", "velocity", "clean"])
def test_every_sampler_over_a_diffusion(sampler, kind):
    painter = engine(schedule=Diffusion(), predictor=Predictor(kind=kind))
    asked = [canvas("a cat", 16, 16)]
    [made] = paint(painter, asked, Painting(sampler=sampler))
    assert same(made, paint(painter, asked, Painting(sampler=sampler))[0])
    assert not same(made, paint(painter, asked, Painting(sampler=sampler, seed=1))[0])


def test_what_cannot_be_painted_is_refused():
    with pytest.raises(UserError, match="one picture or clip"):
        paint(engine(), [Sample((Segment("text", "a cat"),))])
    with pytest.raises(ValueError, match="what is kept of 2"):
        paint(engine(), [canvas("a cat", 16, 16)], keep=[None, None])
