"""How codes stand among words: worked out by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sensorium.codecs.tokens import CodeTokens, Size
from sensorium.nn.part import Grid


def test_rows_end_with_a_mark_and_come_back():
    tokens = CodeTokens.after(10, 4, rows=True)
    assert (tokens.first, tokens.open, tokens.close, tokens.row) == (10, 14, 15, 16)
    ids = tokens.write(torch.tensor([0, 1, 2, 3, 3, 0]), Grid(2, 3))
    assert ids.tolist() == [14, 10, 11, 12, 16, 13, 13, 10, 16, 15]
    assert len(ids) == tokens.length(Grid(2, 3))
    assert tokens.read(ids.tolist()).tolist() == [0, 1, 2, 3, 3, 0]


def test_frames_end_with_a_mark_of_their_own():
    tokens = CodeTokens.after(10, 4, rows=True, frames=True)
    grid = Grid(1, 2, frames=2)
    assert tokens.write(torch.tensor([0, 1, 2, 3]), grid).tolist() == [14, 10, 11, 16, 17, 12, 13, 16, 17, 15]
    assert tokens.length(grid) == 10


def test_a_chameleon_picture_is_1024_codes_between_two_marks():
    assert CodeTokens.after(0, 8192, rows=False).length(Grid(32, 32)) == 1026


def test_an_emu3_picture_is_4096_codes_and_64_row_ends():
    tokens = CodeTokens.after(0, 32_768, rows=True, frames=True)
    places = list(tokens.places(Grid(64, 64)))
    assert places.count(None) == 4096
    assert places.count(tokens.row) == 64
    assert places.count(tokens.frame) == 1


def test_marks_and_codes_must_be_apart_and_codes_must_fill_the_grid():
    with pytest.raises(ValidationError, match="must differ"):
        CodeTokens(first=10, codes=4, open=13, close=20)
    with pytest.raises(ValueError, match="3 codes were given for a grid of 4"):
        CodeTokens.after(10, 4).write(torch.tensor([0, 1, 2]), Grid(2, 2))


def test_of_the_codes_alone_a_share_is_read_as_other_ones_while_a_model_learns():
    tokens = CodeTokens.after(10, 100, rows=True, keep=0.75)
    ids = torch.cat([torch.arange(10), torch.arange(10, 110).repeat(40), torch.tensor(tokens.marks)])
    torch.manual_seed(0)
    said = torch.ones_like(ids, dtype=torch.bool)
    read = tokens.doubted(ids, said)
    code = (ids >= 10) & (ids < 110)
    assert torch.equal(read[~code], ids[~code])
    assert read[code].min() >= 10
    assert read[code].max() < 110
    assert (read[code] != ids[code]).float().mean() == pytest.approx(0.25 * 0.99, abs=0.02)
    assert torch.equal(tokens.doubted(ids, ~said), ids)  # what is only read is read as it is
    assert torch.equal(CodeTokens.after(10, 100).doubted(ids, said), ids)


def test_codes_may_stand_anywhere_in_the_vocabulary():
    tokens = CodeTokens(first=7, codes=4, table=(7, 3, 9, 2), open=5, close=6, filler=8, keep=0.5)
    ids = tokens.write(torch.tensor([0, 1, 2, 3]), Grid(2, 2))
    assert ids.tolist() == [5, 7, 3, 9, 2, 6]
    assert tokens.read(ids.tolist()).tolist() == [0, 1, 2, 3]
    assert set(tokens.ids) == {7, 3, 9, 2, 5, 6}
    assert [tokens.is_code(id) for id in (7, 8, 2, 5)] == [True, False, True, False]
    logits = torch.zeros(10)
    logits[tokens.index] = 1
    assert logits.nonzero()[:, 0].tolist() == [2, 3, 7, 9]
    torch.manual_seed(0)
    many = torch.tensor([8, 7, 3, 9, 2] * 200)
    read = tokens.doubted(many, torch.ones(1000, dtype=torch.bool))
    assert set(read.tolist()) == {8, 7, 3, 9, 2}
    assert (read[many == 8] == 8).all()
    assert 0.25 < (read != many)[many != 8].float().mean() < 0.5  # half of them, of which a quarter is what it was
    for table in ((7, 3, 9), (3, 7, 9, 2), (7, 3, 3, 2), (7, 5, 9, 2)):
        with pytest.raises(ValidationError, match="table"):
            CodeTokens(first=7, codes=4, table=table, open=5, close=6)


def test_the_size_of_a_picture_may_be_said_before_its_codes():
    size = Size(digits=tuple(range(20, 30)), by=30, then=31)
    tokens = CodeTokens(first=0, codes=4, open=10, close=11, row=12, frame=13, size=size)
    grid = Grid(1, 12)
    assert tokens.write(torch.zeros(12), grid).tolist() == [10, 21, 30, 21, 22, 31, *[0] * 12, 12, 13, 11]
    assert tokens.length(grid) == 21
    assert tokens.marks == (10, 11, 12, 13, 31)
    assert tokens.read([10, 21, 30, 21, 22, 31, 2, 3]).tolist() == [2, 3]
