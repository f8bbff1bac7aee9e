import pytest
import torch

from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import Adjacent, AveragePool, PixelShuffle
from sensorium.connectors.tiles_first import TilesFirst
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


def identity(config: Connector.Config, width: int, merged: int):
    """The connector with an inner linear layer that changes nothing."""
    connector = config.replace(inner=MLP.Config(depth=1, bias=False)).build(width, merged)
    with torch.no_grad():
        connector.inner.layers[0].weight.copy_(torch.eye(merged))
    return connector


# a 2 x 4 grid of features (n, -n): n = 0 1 2 3 / 4 5 6 7
VALUES = torch.tensor([[float(n), -float(n)] for n in range(8)])


def test_average_pool_takes_the_mean_of_squares():
    tokens = identity(AveragePool.Config(factor=2), 2, 2)(Features(VALUES, [Grid(2, 4)]))
    assert tokens.tolist() == [[2.5, -2.5], [4.5, -4.5]]  # (0+1+4+5)/4, (2+3+6+7)/4


def test_pixel_shuffle_joins_squares_row_by_row():
    tokens = identity(PixelShuffle.Config(factor=2), 2, 8)(Features(VALUES, [Grid(2, 4)]))
    assert tokens.tolist() == [[0, 0, 1, -1, 4, -4, 5, -5], [2, -2, 3, -3, 6, -6, 7, -7]]


def test_adjacent_joins_neighbours_of_a_row():
    tokens = identity(Adjacent.Config(count=4), 2, 8)(Features(VALUES, [Grid(2, 4)]))
    assert tokens.tolist() == [[0, 0, 1, -1, 2, -2, 3, -3], [4, -4, 5, -5, 6, -6, 7, -7]]


def test_views_and_items_are_never_mixed():
    values = torch.arange(4 * 3 + 8).float()[:, None]
    grids = [Grid(2, 2, frames=3), Grid(2, 4)]
    tokens = identity(AveragePool.Config(factor=2), 1, 1)(Features(values, grids))
    assert tokens.flatten().tolist() == [1.5, 5.5, 9.5, 14.5, 16.5]


def test_tiles_may_stand_before_the_whole_picture():
    grids = [Grid(1, 2, tiles=(2, 1)), Grid(1, 2), Grid(1, 2, frames=2)]
    values = torch.arange(6 + 2 + 4).float()[:, None]
    connector = TilesFirst.Config(inner=MLP.Config(depth=1, bias=False)).build(1, 1)
    torch.nn.init.ones_(connector.inner.layers[0].weight)
    tokens = connector(Features(values, grids))
    assert tokens.flatten().tolist() == [2, 3, 4, 5, 0, 1, 6, 7, 8, 9, 10, 11]


def test_minigpt_v2_makes_256_tokens_of_448_pixels():
    assert Adjacent.Config(count=4).num_tokens(Grid(32, 32)) == 256


@pytest.mark.parametrize(
    ("config", "grid", "axis"),
    [
        (AveragePool.Config(factor=2), Grid(7, 8), "7 rows"),
        (PixelShuffle.Config(factor=3), Grid(3, 7), "7 columns"),
        (Adjacent.Config(count=4), Grid(8, 6), "6 columns"),
    ],
)
def test_grids_that_do_not_divide_are_refused(config, grid, axis):
    with pytest.raises(UserError, match=axis):
        config.num_tokens(grid)
    with pytest.raises(UserError, match=axis):
        config.build(2, 2)(Features(torch.zeros(grid.tokens, 2), [grid]))
