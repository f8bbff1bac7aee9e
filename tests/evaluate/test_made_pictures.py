"""Reconstruction of a codec, and made pictures before a judge: numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sensorium.codecs.base import Codec
from sensorium.data.emoji import EmojiPicture
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError
from sensorium.evaluate import drawing
from sensorium.evaluate.drawing import Judged, Made
from sensorium.evaluate.reconstruction import Reconstruction, picture_grid
from sensorium.models.wiring import CodecOutputs
from sensorium.objectives.reconstruction import Reconstruct
from sensorium.sequence import Item, Sequence


class Darker(Codec):
    """Gives every picture back, darker by a tenth of the range; its one code is whether the picture is dark."""

    class Config(Codec.Config):
        transform: ImageTransform = ImageTransform(size=8)

        @property
        def width(self) -> int:
            return 1

        @property
        def codes(self) -> int:
            return 4

        @property
        def spatial(self) -> int:
            return 8

    def __init__(self, config) -> None:
        super().__init__(config)
        self.by = torch.nn.Parameter(torch.tensor(0.2))
        self.seen = torch.zeros(0)

    def encode(self, pixels):
        self.seen = pixels
        return (pixels.mean(dim=(1, 2, 3, 4)) < 0).long().view(-1, 1, 1, 1, 1)

    def decode(self, values, frames=1):
        return self.seen - self.by


def subject_with(codec=None, judge=None):
    return SimpleNamespace(model=SimpleNamespace(codec=lambda kind: codec), judge=judge)


def test_psnr_and_usage_of_a_codec_that_is_off_by_a_tenth():
    result = Reconstruction(split="dev_artist", n=12, holdout_dev=True).run(subject_with(Darker.Config().build()))
    table = result.tables[0]
    # white backgrounds: 1 becomes 0.9 exactly, so the squared error is 0.01 wherever nothing is clamped at 0
    psnr = float(table.rows[0][0].removesuffix(" dB"))
    assert 20.0 <= psnr < 20.5
    usage = next(one for one in result.evaluations if one.task == "codebook_usage")
    assert (usage.n, usage.score) in ((4, 0.25), (4, 0.5))
    first = result.evaluations[0]
    assert first.score > first.blind
    assert len(result.pictures) == 1


def test_a_grid_shows_every_picture():
    rows = [[Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")], [Image.new("RGB", (16, 8), "green")]]
    grid = picture_grid(rows, side=16, gap=2)
    assert grid.size == (2 * 18 + 2, 2 * 18 + 2)
    assert grid.getpixel((10, 10)) == (255, 0, 0)
    assert grid.getpixel((28, 10)) == (0, 0, 255)
    assert grid.getpixel((10, 24)) == (0, 128, 0)
    assert grid.getpixel((10, 34)) == (255, 255, 255)  # a wide picture leaves room below


class Copied(Judged):
    """Shows the real picture of the first half of the names, and grey for the others."""

    def draw(self, subject, asked, progress):
        real = self._real(self.concepts())
        return [one if index < len(real) // 2 else Image.new("RGB", (8, 8), "grey") for index, one in enumerate(real)]


def test_the_judge_finds_the_name_of_a_made_picture_among_all(monkeypatch):
    task = Copied(split="dev_artist", n=10, holdout_dev=True)
    names = [concept.captions["en"] for concept in task.concepts()]
    real = [one.tobytes() for one in task._real(task.concepts())]
    assert len(set(names)) == 10

    def vectors(judge, media, **_):
        rows = torch.zeros(len(media), 1, 11)
        for row, one in zip(rows, media):
            data = one.load().tobytes()
            row[0, real.index(data) if data in real else 10] = 1
        return rows

    monkeypatch.setattr(drawing, "picture_vectors", vectors)
    monkeypatch.setattr(drawing, "text_vectors", lambda judge, texts: torch.eye(11)[:10])
    result = task.run(subject_with(judge=object()))
    one, fit = result.evaluations
    assert one.score == 0.5
    assert one.blind == 0.0
    assert one.chance == pytest.approx(0.1)
    assert (fit.task, fit.score, fit.blind) == ("picture_from_name_CLIP_score", 0.5, 0.0)
    assert [row[-1] for row in result.tables[0].rows] == ["0.500", "0.000", "1.000"]
    assert [row[1] for row in result.tables[0].rows] == ["50.0%", "0.0%", "100.0%"]
    assert result.examples[0].question.startswith("Draw ")


def test_without_a_judge_the_task_says_what_is_missing():
    with pytest.raises(UserError, match="needs a judge"):
        Copied(split="dev_artist", n=3, holdout_dev=True).run(subject_with())


def test_made_pictures_are_media_with_a_key_of_their_content():
    one, same, other = (Made(Image.new("RGB", (8, 4), colour)) for colour in ("red", "red", "blue"))
    assert one.key() == same.key() != other.key()
    assert one.shape() == (4, 8)


def sequence_of(*media) -> Sequence:
    zeros = torch.zeros(2, dtype=torch.long)
    items = [Item(torch.zeros(1, 3, 8, 8), one.shape(), one.key()) for one in media]
    return Sequence(zeros, zeros.to(torch.uint8), zeros[:, None].expand(-1, 3), zeros, zeros, zeros.float(), [],
                    {"image": items})  # fmt: skip


def test_the_loss_of_a_reconstruction_counts_items():
    media = [EmojiPicture("1F600", artist) for artist in ("google", "fluent")]
    sequence = sequence_of(*media)
    pixels = torch.zeros(2, 3, 1, 8, 8)
    coded = SimpleNamespace(pixels=pixels + 0.5, losses={"commitment": torch.tensor([1.0, 3.0])}, report={})
    outputs = CodecOutputs({"image": [(pixels, coded)]})
    objective = Reconstruct(absolute=2.0, weights={"commitment": 0.25})
    loss = objective(outputs, sequence)
    assert objective.count(sequence) == float(loss.count) == 2
    assert float(loss.sum) == pytest.approx(2 * 0.25 + 2 * 2.0 * 0.5 + 0.25 * 4)
    assert {name: float(total / count) for name, (total, count) in loss.report.items()} == {
        "squared": 0.25, "absolute": 0.5, "commitment": 2.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="weights of"):
        Reconstruct(weights={"divergence": 1.0})(outputs, sequence)
    with pytest.raises(ValueError, match="nothing here reconstructs"):
        objective(object(), sequence)
    assert math.isfinite(float(loss.sum))
