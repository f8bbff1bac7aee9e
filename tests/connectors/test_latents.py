import pytest
import torch

from sensorium.connectors.latents import LatentReader
from sensorium.nn.part import Features, Grid


def test_latents_read_features_of_length_one_and_themselves():
    """softmax over both, no norm, no residual; the outcome times the root of its width."""
    torch.manual_seed(0)
    connector, x = LatentReader.Config(latents=3, heads=2, unit=True, scaled=True).build(5, 8), torch.randn(4, 5)
    entered = connector.enter(x / x.square().sum(1, keepdim=True).sqrt())
    both = torch.cat([entered, connector.latents])
    q, k, v = (part.view(-1, 2, 4) for part in (connector.q(connector.latents), connector.k(both), connector.v(both)))
    share = (torch.einsum("qhw,khw->hqk", q, k) / 2).softmax(-1)
    expected = connector.o(torch.einsum("hqk,khw->qhw", share, v).flatten(1)) * 8**0.5
    torch.testing.assert_close(connector(Features(x, [Grid(2, 2)])), expected, atol=1e-5, rtol=1e-4)
    plain = LatentReader.Config(latents=3, heads=2).build(5, 8)
    plain.load_state_dict(connector.state_dict())
    longer = plain(Features(3 * x, [Grid(2, 2)]))
    assert not torch.allclose(longer, expected / 8**0.5, atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="8 is not divisible by 3 heads"):
        LatentReader.Config(heads=3).build(5, 8)
