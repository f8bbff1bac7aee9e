"""Tasks of a model that paints: the judge and its control, and the galleries."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_denoiser import awake, config

import sensorium.evaluate.drawing as drawing
from sensorium.data.emoji import EmojiPicture
from sensorium.diffusion.sampler import Euler
from sensorium.errors import UserError
from sensorium.evaluate.painting import Gallery, Painted
from sensorium.evaluate.task import Subject
from sensorium.infer.painting import Painting
from sensorium.nn.backbone import bert
from sensorium.render import Renderer, Template
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader

PAINTING = Painting(sampler=Euler(steps=2))


@pytest.fixture(scope="module")
def subject():
    text = bert(vocab=259, width=16, depth=1, heads=2, hidden=32, positions=96)
    model = awake(config(text=text).build())
    renderer = Renderer(Tokenizer.bytes(), Template(), model.config.plan, item_loader(model))
    return Subject(model, renderer)


def test_galleries_show_guidance_sdedit_inpainting_and_clips(subject):
    task = Gallery(split="dev_artist", n=3, painting=PAINTING, size=(16, 16), clip=(8, 8, 8), holdout_dev=True)
    steps = []
    result = task.run(subject, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (9, 9)
    titles = [title for title, _ in result.pictures]
    assert [word for word, title in zip(("guidance", "SDEdit", "inpainting", "clips"), titles) if word in title] == [
        "guidance", "SDEdit", "inpainting", "clips",
    ]  # fmt: skip
    sizes = [picture.size for _, picture in result.pictures]
    assert sizes == [(208, 276), (208, 276), (208, 140), (548, 208)]  # 64 pixels and a gap of 4 a cell
    [table] = result.tables
    assert [title for title, _ in table.rows] == [
        "strength 0.3", "strength 0.5", "strength 0.7", "another real picture",
    ]  # fmt: skip


def test_pictures_are_judged_beside_their_control(subject, monkeypatch):
    """A judge that knows a picture by its colour, and a painter that makes the right one of each name."""
    task = Painted(split="dev_artist", n=8, size=(16, 16), painting=PAINTING, holdout_dev=True)
    names = [concept.captions["en"] for concept in task.concepts()]
    monkeypatch.setattr(Painted, "draw", lambda self, subject, asked, progress: [
        Image.new("RGB", (16, 16), (30 * asked.index(one), 0, 0)) for one in asked
    ])  # fmt: skip

    def scores(judge, made, said):
        assert said == names
        reds = torch.tensor([float(np.asarray(picture)[0, 0, 0]) for picture in made])
        return -(reds[:, None] - 30 * torch.arange(len(said))[None]).abs()

    monkeypatch.setattr(drawing, "_scores", scores)
    judged = SimpleNamespace(judge=object(), engine=subject.engine)
    result = task.run(judged)
    one, _ = result.evaluations
    assert (one.score, one.blind, one.chance) == (1.0, 0.0, 1 / 8)
    with pytest.raises(UserError, match="needs a judge"):
        task.run(subject)


def test_a_painter_is_asked_in_the_words_of_its_task(subject):
    task = Painted(split="dev_artist", n=2, size=(16, 8), painting=PAINTING)
    made = task.draw(subject, ["a cat", "a dog"], None)
    assert [picture.size for picture in made] == [(8, 16), (8, 16)]
    assert EmojiPicture("1F34E", "google").load().size == (64, 64)
