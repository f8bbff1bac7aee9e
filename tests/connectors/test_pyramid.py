"""Pyramid: averages worked out by hand, and tokens that depend on the picture's own size."""

from __future__ import annotations

import pytest
import torch

from sensorium.connectors.mlp import MLP
from sensorium.connectors.pyramid import Pyramid, pooled
from sensorium.nn.part import Features, Grid


def test_levels_are_averages_of_windows() -> None:
    x = torch.arange(16.0).view(1, 4, 4, 1)
    got = pooled(x, (2, 1))[0, :, 0].tolist()
    # windows of 2 x 2, row by row, then the whole
    assert got == [2.5, 4.5, 10.5, 12.5, 7.5]


def test_small_pictures_take_the_last_level_alone() -> None:
    config = Pyramid.Config(levels=(3, 1), full_from=160)
    assert config.num_tokens(Grid(7, 7, size=(224, 300))) == 10
    assert config.num_tokens(Grid(7, 7, size=(64, 300))) == 1
    assert config.num_tokens(Grid(7, 7, size=(160, 160))) == 10
    assert Pyramid.Config().num_tokens(Grid(7, 7)) == 10
    with pytest.raises(ValueError, match="size of the picture"):
        config.num_tokens(Grid(7, 7))


def test_forward_makes_what_was_planned_and_items_are_independent() -> None:
    torch.manual_seed(0)
    config = Pyramid.Config(levels=(2, 1), full_from=100, inner=MLP.Config(depth=1))
    connector = config.build(8, 6)
    grids = [Grid(4, 4, size=(64, 64)), Grid(4, 4, size=(128, 128)), Grid(3, 5, size=(200, 101))]
    values = [torch.randn(grid.tokens, 8) for grid in grids]
    together = connector(Features(torch.cat(values), grids))
    apart = [connector(Features(value, [grid])) for value, grid in zip(values, grids)]
    assert [len(part) for part in apart] == [config.num_tokens(grid) for grid in grids] == [1, 5, 5]
    torch.testing.assert_close(together, torch.cat(apart))


def test_no_items_still_touch_the_parameters() -> None:
    connector = Pyramid.Config().build(8, 6)
    tokens = connector(Features(torch.zeros(0, 8), []))
    assert tokens.shape == (0, 6)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
