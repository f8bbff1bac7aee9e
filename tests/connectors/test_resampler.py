import pytest
import torch

from sensorium.connectors.resampler import Resampler
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid

TINY = Resampler.Config(latents=3, depth=2, heads=2, head_width=4, frames=4)


def make(config=TINY) -> Resampler:
    torch.manual_seed(0)
    return config.build(6, 8)


def test_any_picture_becomes_the_same_number_of_tokens():
    assert {TINY.num_tokens(Grid(rows, 3)) for rows in (1, 5, 40)} == {3}
    grids = [Grid(1, 2), Grid(5, 5), Grid(1, 2)]
    assert make()(Features(torch.randn(29, 6), grids)).shape == (9, 8)


def test_one_layer_written_out():
    """softmax over features and latents together, the latents' own norm for queries (A.1.1, figure 5)."""
    torch.manual_seed(0)
    connector = Resampler.Config(latents=2, depth=1, heads=1, head_width=4).build(6, 8)
    x = torch.randn(5, 6)
    layer = connector.layers[0]
    own, both = layer.norm_latents(connector.latents), layer.norm_features(x)
    both = torch.cat([both, own])
    scores = layer.q(own) @ layer.k(both).T / 4**0.5
    latents = connector.latents + layer.o(scores.softmax(-1) @ layer.v(both))
    latents = latents + layer.ffn(layer.norm_ffn(latents))
    expected = connector.out(connector.norm(latents))
    assert torch.allclose(connector(Features(x, [Grid(1, 5)])), expected, atol=1e-5)


def test_order_of_features_matters_only_between_frames():
    connector, x = make(), torch.randn(6, 6)
    with torch.no_grad():
        connector.times.normal_()
    one = connector(Features(x, [Grid(2, 3)]))
    assert torch.allclose(connector(Features(x.flip(0), [Grid(2, 3)])), one, atol=1e-5)
    two = connector(Features(x, [Grid(1, 3, frames=2)]))
    assert torch.allclose(connector(Features(x[[2, 1, 0, 5, 4, 3]], [Grid(1, 3, frames=2)])), two, atol=1e-5)
    assert not torch.allclose(connector(Features(x[[3, 4, 5, 0, 1, 2]], [Grid(1, 3, frames=2)])), two, atol=1e-3)


def test_more_frames_than_time_embeddings_are_refused():
    grid = Grid(2, 2, frames=5)
    with pytest.raises(UserError, match="5 frames"):
        TINY.num_tokens(grid)
    with pytest.raises(UserError, match="5 frames"):
        make()(Features(torch.zeros(20, 6), [grid]))


def test_latents_may_be_the_tokens_and_queries_and_keys_normalised():
    """Idefics: LayerNorm per head, ReLU, no last linear layer; against the formula."""
    torch.manual_seed(0)
    config = Resampler.Config(latents=2, depth=1, heads=2, head_width=4, activation="relu", qk_norm=True, project=False)
    connector, x = config.build(6, 6), torch.randn(5, 6)
    layer = connector.layers[0]
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    own = layer.norm_latents(connector.latents)
    both = torch.cat([layer.norm_features(x), own])
    q, k, v = (part.unflatten(1, (2, 4)) for part in (layer.q(own), layer.k(both), layer.v(both)))
    q, k = (norm(part) for norm, part in ((layer.q_norm, q), (layer.k_norm, k)))
    share = (torch.einsum("qhw,khw->hqk", q, k) / 4**0.5).softmax(-1)
    latents = connector.latents + layer.o(torch.einsum("hqk,khw->qhw", share, v).flatten(1))
    hidden = layer.ffn.up(layer.norm_ffn(latents)).relu()
    expected = connector.norm(latents + layer.ffn.down(hidden))
    torch.testing.assert_close(connector(Features(x, [Grid(1, 5)])), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="6 wide and tokens 8"):
        config.build(6, 8)
