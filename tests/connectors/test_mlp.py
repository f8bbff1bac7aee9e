import pytest
import torch
from pydantic import ValidationError

from sensorium.config import from_json
from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.nn.part import Features, Grid


def test_depth_one_is_a_plain_linear_layer():
    connector = MLP.Config(depth=1).build(3, 2)
    with torch.no_grad():
        connector.layers[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]]))
        connector.layers[0].bias.copy_(torch.tensor([0.5, 0.0]))
    tokens = connector(Features(torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, -1.0]]), [Grid(1, 2)]))
    assert tokens.tolist() == [[6.5, 0.0], [-0.5, -1.0]]


def test_depth_two_has_one_gelu_between():
    connector = MLP.Config(depth=2, hidden=1, bias=False).build(1, 1)
    with torch.no_grad():
        connector.layers[0].weight.fill_(1.0)
        connector.layers[1].weight.fill_(2.0)
    out = connector(Features(torch.tensor([[1.0], [-1.0]]), [Grid(1, 2)]))
    # exact GELU: x * Phi(x), Phi(1) = 0.8413447
    assert out.flatten().tolist() == pytest.approx([2 * 0.8413447, -2 * 0.1586553], abs=1e-5)


def test_published_parameter_counts():
    def count(config, width, out):
        with torch.device("meta"):
            return sum(p.numel() for p in config.build(width, out).parameters())

    assert count(MLP.Config(depth=1), 1024, 4096) == 1024 * 4096 + 4096
    assert count(MLP.Config(depth=2), 1024, 4096) == 20_979_712  # LLaVA-1.5-7B's mm_projector
    yi = 1280 * 4096 + 4096 + 4096 * 4096 + 4096 + 2 * 2 * 4096
    assert count(MLP.Config(depth=2, norm=True), 1280, 4096) == yi


def test_norms_follow_every_linear_layer():
    tokens = MLP.Config(depth=2, norm=True).build(6, 16)(Features(torch.randn(5, 6), [Grid(1, 5)]))
    assert tokens.mean(1).abs().max() < 1e-5
    assert torch.allclose(tokens.square().mean(1), torch.ones(5), atol=1e-2)


def test_value_round_trips_and_is_checked():
    config = MLP.Config(depth=3, hidden=64, norm=True)
    assert from_json(config.to_json(), Connector.Config) == config
    with pytest.raises(ValidationError):
        MLP.Config(depth=0)
