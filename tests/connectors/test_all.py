"""What holds for every connector, over random grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.config import from_json
from sensorium.connectors.anyres import AnyRes
from sensorium.connectors.base import Connector
from sensorium.connectors.global_pool import GlobalPool
from sensorium.connectors.latents import LatentReader
from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import Adjacent, AveragePool, PixelShuffle
from sensorium.connectors.qformer import QFormer
from sensorium.connectors.resampler import Resampler
from sensorium.connectors.tiles_first import TilesFirst
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid

IN, OUT = 6, 8
SMALL_BERT = {"vocab": 20, "width": 8, "depth": 3, "heads": 2, "hidden": 12, "positions": 8}
TINY = Resampler.Config(latents=3, depth=2, heads=2, head_width=4, frames=3)
CONFIGS = {
    "linear": MLP.Config(depth=1),
    "mlp": MLP.Config(depth=3, hidden=5, norm=True),
    "pool": AveragePool.Config(factor=2),
    "shuffle": PixelShuffle.Config(factor=2, inner=MLP.Config(depth=2)),
    "adjacent": Adjacent.Config(count=2),
    "tiles first": TilesFirst.Config(inner=PixelShuffle.Config(factor=2)),
    "resampler": TINY,
    "resampled pool": AveragePool.Config(factor=2, inner=TINY),
    "q-former": QFormer.Config(queries=3, **SMALL_BERT),
    "instructed q-former": QFormer.Config(queries=3, instructed=True, norm=True, **SMALL_BERT),
    "latents": LatentReader.Config(latents=3, heads=2, unit=True, scaled=True),
    "anyres": AnyRes.Config(),
    "mean": GlobalPool.Config(by="mean", norm=Norm.Config(kind="layer")),
    "attention": GlobalPool.Config(by="attention", heads=2, hidden=5),
    "anyres pool": AnyRes.Config(inner=PixelShuffle.Config(factor=2)),
}

plain = st.builds(Grid, rows=st.sampled_from([2, 4]), cols=st.sampled_from([2, 4, 6]), frames=st.integers(1, 3))
tiled = st.builds(
    lambda side, tiles, size: Grid(side, side, tiles=tiles, size=size),
    st.sampled_from([2, 4]),
    st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3)]),
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
)
grids = st.lists(plain | tiled, max_size=4)
every = pytest.mark.parametrize("name", CONFIGS)


def make(name: str) -> Connector:
    torch.manual_seed(0)
    return CONFIGS[name].build(IN, OUT)


def features(layout: list[Grid], seed: int = 1) -> Features:
    torch.manual_seed(seed)
    return Features(torch.randn(sum(grid.tokens for grid in layout), IN), layout)


@every
@given(grids)
@settings(max_examples=25, deadline=None)
def test_tokens_are_as_many_as_planned_and_packed_equals_separate(name, layout):
    connector, packed = make(name), features(layout)
    tokens = connector(packed)
    counts = [connector.config.num_tokens(grid) for grid in layout]
    assert tokens.shape == (sum(counts), OUT)
    apart = packed.values.split(packed.lengths) if layout else []
    for grid, values, together in zip(layout, apart, tokens.split(counts)):
        assert torch.allclose(connector(Features(values, [grid])), together, atol=1e-5)


@every
@pytest.mark.parametrize("layout", [[], [Grid(2, 2)], [Grid(4, 4, tiles=(1, 2), size=(300, 500)), Grid(2, 2)]])
def test_every_parameter_and_the_encoder_have_gradients(name, layout):
    connector, packed = make(name), features(layout)
    packed.values.requires_grad_()
    connector(packed).square().sum().backward()
    for parameter in [packed.values, *connector.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@every
def test_value_round_trips(name):
    assert from_json(CONFIGS[name].to_json(), Connector.Config) == CONFIGS[name]
