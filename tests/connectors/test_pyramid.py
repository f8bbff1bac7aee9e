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


def test_windows_that_cut_a_cell_share_it() -> None:
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1)
    assert pooled(x, (2,))[0, :, 0].tolist() == pytest.approx([4 / 3, 10 / 3, 4 / 3, 10 / 3])
    finer = pooled(x.transpose(1, 2), (6,))[0, :, 0].view(6, 6)
    assert finer[:, 0].tolist() == pytest.approx([1, 1, 2, 2, 4, 4])
    torch.testing.assert_close(pooled(x, (1,))[0, 0], x.mean((0, 1, 2)))


def test_a_place_is_added_where_all_levels_are_taken() -> None:
    torch.manual_seed(0)
    plain = Pyramid.Config(levels=(2, 1), full_from=100, inner=MLP.Config(depth=1))
    config = plain.replace(placed=True)
    connector, unplaced = config.build(8, 6), plain.build(8, 6)
    unplaced.inner.load_state_dict(connector.inner.state_dict())
    grids = [Grid(4, 4, size=(128, 128)), Grid(4, 4, size=(64, 64)), Grid(4, 4, tiles=(1, 2), size=(128, 256))]
    values = torch.randn(sum(grid.tokens for grid in grids), 8)
    features = Features(values, grids)
    torch.testing.assert_close(connector(features), unplaced(features))  # places start at nothing
    torch.nn.init.normal_(connector.place)
    places = torch.cat([connector.place, torch.zeros(1, 6), *[connector.place] * grids[2].views])
    torch.testing.assert_close(connector(features) - unplaced(features), places)
    with pytest.raises(ValueError, match="two levels"):
        Pyramid.Config(levels=(1,), placed=True).build(8, 6)


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
    connector = Pyramid.Config(placed=True).build(8, 6)
    tokens = connector(Features(torch.zeros(0, 8), []))
    assert tokens.shape == (0, 6)
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
