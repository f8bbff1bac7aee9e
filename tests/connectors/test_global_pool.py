"""One vector for each item, by hand."""

import pytest
import torch

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid


def plain(by: str, **changes) -> GlobalPool:
    return GlobalPool.Config(by=by, project=False, **changes).build(2, 2)


def test_the_class_token_and_the_mean_of_cells_by_hand():
    one = Grid(1, 2, extra=1)
    two = Grid(1, 1, tiles=(1, 1), extra=1)  # two views: class, cell, class, cell
    values = torch.tensor([[1.0, 2], [3, 4], [5, 8], [10, 0], [20, 1], [30, 0], [40, 3]])
    features = Features(values, [one, two])
    assert plain("class")(features).tolist() == [[1, 2], [20, 0]]
    assert plain("mean")(features).tolist() == [[4, 6], [30, 2]]


def test_a_query_that_matches_no_feature_reads_their_mean():
    pool = plain("attention", heads=1)
    assert pool.query is not None
    with torch.no_grad():
        for name, parameter in pool.query.attention.named_parameters():
            parameter.copy_(torch.eye(2) if name in ("v.weight", "o.weight") else torch.zeros_like(parameter))
    values = torch.tensor([[1.0, 2], [3, 4], [5, 9]])
    torch.testing.assert_close(pool(Features(values, [Grid(1, 3)])), torch.tensor([[3.0, 5]]))


def test_the_feed_forward_behind_a_query_by_hand():
    pool = plain("attention", heads=1, hidden=1, activation="relu2", eps=3.0)
    with torch.no_grad():
        for name, parameter in pool.query.named_parameters():
            square = name.endswith(("v.weight", "o.weight"))
            parameter.copy_(torch.eye(2) if square else torch.zeros_like(parameter))
        pool.query.norm.weight.fill_(1.0)
        pool.query.ffn.up.weight.copy_(torch.tensor([[1.0, 0]]))
        pool.query.ffn.down.weight.copy_(torch.tensor([[0.0], [1]]))
    values = torch.tensor([[5.0, 3], [5, 3]])  # their norm: 1 / sqrt(variance 1 + eps 3) = 1/2, and relu2 of it is 1/4
    torch.testing.assert_close(pool(Features(values, [Grid(1, 2)])), torch.tensor([[5.0, 3.25]]))


def test_norm_comes_before_the_projection():
    pool = GlobalPool.Config(by="mean", norm=Norm.Config(kind="layer", eps=0.0)).build(2, 1)
    with torch.no_grad():
        pool.project.weight.copy_(torch.tensor([[2.0, 0]]))
    assert pool(Features(torch.tensor([[5.0, 9]]), [Grid(1, 1)])).item() == pytest.approx(-2.0)
    assert pool.project.bias is None


def test_without_a_class_token_the_encoder_is_named():
    with pytest.raises(UserError, match="class_feature"):
        plain("class")(Features(torch.zeros(1, 2), [Grid(1, 1)]))


def test_a_vector_of_another_width_needs_a_projection():
    with pytest.raises(ValueError, match="width 2 do not fit a space of width 3"):
        GlobalPool.Config(by="mean", project=False).build(2, 3)


def test_a_vit_gives_its_class_token_when_asked():
    from sensorium.sequence import Item

    config = vit(width=16, depth=2, heads=2, patch=8, size=16).replace(class_token=True, positions="learned")
    torch.manual_seed(0)
    without = config.build()
    give = config.replace(class_feature=True).build()
    give.load_state_dict(without.state_dict())
    item = Item(torch.randn(1, 3, 16, 16), (16, 16))
    assert give.config.grid((16, 16)).tokens == 5
    both = give([item]).values
    assert both.shape == (5, 16)
    assert torch.equal(both[1:], without([item]).values)
    with pytest.raises(ValueError, match="set class_token"):
        config.replace(class_token=False, class_feature=True)
