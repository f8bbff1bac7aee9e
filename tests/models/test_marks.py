"""Ids of the vocabulary among the tokens of an item: planned, written, and left alone by what is placed."""

import pytest
import torch
from tiny_fused import Picture, TinyEye

from sensorium.connectors.as_is import AsIs
from sensorium.connectors.mlp import MLP
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.models.marks import Marks, TileMarks
from sensorium.nn.backbone import llama
from sensorium.nn.part import Grid
from sensorium.render import Renderer, Template
from sensorium.sequence import Item, Sample, Segment
from sensorium.tokenizer import Tokenizer

BACKBONE = llama(vocab=262, width=8, depth=1, heads=2, hidden=16)
MARKS = Marks(open=(259,), row=260, close=(261, 258), filler=7)


def config(**changes):
    parts = {"encoders": {"image": TinyEye.Config()}, "connectors": {"image": AsIs.Config()}, "backbone": BACKBONE,
             "marks": {"image": MARKS}}  # fmt: skip
    return Fused.Config(**{**parts, **changes})


def test_where_they_stand():
    assert list(MARKS.places(Grid(2, 3))) == [259, None, None, None, 260, None, None, None, 260, 261, 258]
    assert list(Marks(open=(1,)).places(Grid(1, 2, extra=1))) == [1, None, None, None]
    with pytest.raises(UserError, match="plain grid"):
        list(MARKS.places(Grid(2, 3, extra=1)))


def test_where_those_of_tiles_stand():
    tiles = TileMarks(tile=(((1, 11), (1, 12)), ((1, 21), (1, 22))), row=(3,), whole=(4, 5))
    marks = Marks(open=(6,), close=(7,), tiles=tiles)
    view = [None, None]
    assert list(marks.places(Grid(1, 2))) == [6, *view, 7]
    rows = [1, 11, *view, 1, 12, *view, 3, 1, 21, *view, 1, 22, *view]
    assert list(marks.places(Grid(1, 2, tiles=(2, 2)))) == [*rows, 4, 5, *view, 7]
    assert list(Marks(open=(6,)).places(Grid(1, 2, tiles=(1, 1)))) == [6, *view, *view]
    with pytest.raises(UserError, match="1 rows of 3 tiles was given, and there are marks of 2 rows of 2"):
        list(marks.places(Grid(1, 2, tiles=(1, 3))))
    with pytest.raises(UserError, match="3 rows of 1"):
        list(marks.places(Grid(1, 2, tiles=(3, 1))))


def test_an_item_takes_them_and_its_tokens_stand_between_them():
    torch.manual_seed(0)
    model = config().build().eval()
    eye = model.encoder("image")
    renderer = Renderer(Tokenizer.bytes(), Template(begin=""), model.config.plan,
                        lambda kind, media: Item(eye.preprocess(media.load()), media.shape(), media.key()))  # fmt: skip
    sample = Sample((Segment("text", "a"), Segment("image", Picture(1)), Segment("image", Picture(2))))
    sequence = renderer.render(sample, generate=True)
    own = [259, 7, 7, 260, 7, 7, 260, 261, 258]
    assert sequence.ids.tolist() == [97, *own, *own]
    assert model.config.num_tokens("image", (8, 8)) == 9
    assert [span.marks for span in sequence.spans] == [(0, 3, 6, 7, 8)] * 2
    placed, _, _ = model.stream(sequence)
    features = model.connect("image", sequence, placed.dtype)
    free = [at for at, id in enumerate(sequence.ids.tolist()) if id == 7]
    torch.testing.assert_close(placed[free], features, rtol=0, atol=0)
    kept = [at for at in range(19) if at not in free]
    torch.testing.assert_close(placed[kept], model.embed(sequence.ids)[kept], rtol=0, atol=0)


def test_they_stand_in_the_stream_alone():
    with pytest.raises(ValueError, match="marks names"):
        config(marks={"audio": MARKS})
    with pytest.raises(ValueError, match="one line of the stream"):
        config(spread=("image",), connectors={"image": MLP.Config()})


def test_features_as_they_are_need_the_width_of_the_stream():
    with pytest.raises(UserError, match="8 wide and tokens 16"):
        config(backbone=BACKBONE.replace(width=16)).build()
