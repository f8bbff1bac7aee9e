import math

import pytest
import torch

from sensorium.encoders.positions import located, sincos2d


def test_values_worked_out_by_hand():
    # width 8: two frequencies, 1 and 1/100; cell 5 of a 2 x 3 grid is row 1, column 2
    cell = sincos2d(2, 3, 8, period=10_000.0)[5]
    expected = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01), math.sin(2), math.sin(0.02), math.cos(2),
                math.cos(0.02)]  # fmt: skip
    assert cell.tolist() == pytest.approx(expected, abs=1e-6)


def test_every_cell_is_distinct_and_equally_strong():
    positions = sincos2d(7, 7, 64, period=100.0)
    assert torch.cdist(positions, positions).fill_diagonal_(9.0).min() > 0.3
    assert torch.allclose(positions.square().mean(1), torch.full((49,), 0.5))


def test_width_must_hold_sin_and_cos_of_both_axes():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos2d(2, 2, 6)


def test_positions_are_as_strong_as_each_views_own_features():
    torch.manual_seed(0)
    features = torch.randn(2, 6, 16) * torch.tensor([1.0, 10.0])[:, None, None]
    added = located(features, 2, 3) - features
    assert torch.allclose(added.square().mean((1, 2)), features.square().mean((1, 2)), rtol=1e-4)
    assert torch.allclose(located(features[1:], 2, 3), located(features, 2, 3)[1:])
