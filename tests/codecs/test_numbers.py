"""Actions and states: plain numbers in a sample, on one scale in the model, and back."""

import pytest
import torch

from sensorium.codecs.numbers import Numbers
from sensorium.errors import UserError
from sensorium.sequence import Item
from sensorium.sequence import Numbers as Media


def test_numbers_are_normalised_encoded_and_brought_back():
    codec = Numbers.Config(columns=2, mean=(1.0, -1.0), std=(2.0, 0.5)).build()
    media = Media.of([[1, 0], [3, -1], [5, -2]])
    assert media.shape() == (3, 2)
    data = codec.preprocess(media.load())
    assert data.tolist() == [[0, 2], [1, 0], [2, -2]]
    items = [Item(data, (3, 2)), Item(data[:1], (1, 2)), Item(data + 1, (3, 2))]
    made = codec.prepare_inference()(items)
    assert torch.equal(made.values, torch.cat([data, data[:1], data + 1]))
    assert made.lengths == [3, 1, 3]
    assert torch.equal(codec.numbers(made.values[:3]), media.load())
    pixels = data.T[None]
    assert torch.equal(codec.decode(codec.encode(pixels)), pixels)


def test_one_list_is_one_row():
    assert Media.of([0.5, 2]).rows == ((0.5, 2.0),)
    assert Media.of([0.5, 2]).key() == Media.of([[0.5, 2.0]]).key() != Media.of([[0.5], [2.0]]).key()


def test_other_things_are_refused():
    for wrong in ("left", [[1, 2], [3]], [], [[[1.0]]]):
        with pytest.raises(UserError, match="plain numbers are"):
            Media.of(wrong)
    with pytest.raises(UserError, match="expected 3 columns"):
        Numbers.Config(columns=3).grid((4, 2))
    with pytest.raises(ValueError, match="2 columns need as many"):
        Numbers.Config(columns=2, mean=(0.0,), std=(1.0,))
