"""A mixture of experts against its definition written out, and against the reference."""

import pytest
import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from sensorium.mask import Layout
from sensorium.nn.backbone import Backbone, llama
from sensorium.nn.ffn import FeedForward
from sensorium.nn.moe import MixtureOfExperts, Routing


def mixture(width=16, **changes):
    torch.manual_seed(0)
    return MixtureOfExperts.Config(**{"hidden": 24, "experts": 5, "top": 2, **changes}).build(width)


def written_out(part, x):
    """Every expert on every token; shares of all but the largest are left out."""
    share = (x @ part.router.weight.T).softmax(-1)
    rank = share.argsort(-1, descending=True).argsort(-1)
    kept = share * (rank < part.top)
    kept = kept / kept.sum(-1, keepdim=True)
    return sum(kept[:, number, None] * expert(x) for number, expert in enumerate(part.experts))


@pytest.mark.parametrize("changes", [{}, {"top": 1}, {"top": 5}, {"gated": False, "activation": "relu", "bias": True}])
def test_tokens_take_their_experts(changes):
    part, x = mixture(**changes), torch.randn(13, 16)
    torch.testing.assert_close(part(x), written_out(part, x))
    with torch.no_grad():
        torch.testing.assert_close(part(x[:1]), written_out(part, x[:1]))
        assert part(x[:0]).shape == (0, 16)


def test_gradients_are_those_of_the_definition_and_every_expert_has_one():
    part, x = mixture(experts=9), torch.randn(3, 16, requires_grad=True)
    part(x).square().sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in part.named_parameters()}
    assert len(found) == 1 + 9 * 3
    part.zero_grad()
    written_out(part, x).square().sum().backward()
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert any(not grad.any() for grad in found.values())


def test_it_is_the_references_block():
    config = transformers.MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=5)
    part, theirs = mixture(), MixtralSparseMoeBlock(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(part.router.weight)
        for number, expert in enumerate(part.experts):
            theirs.experts.gate_up_proj[number] = torch.cat([expert.gate.weight, expert.up.weight])
            theirs.experts.down_proj[number] = expert.down.weight
    x = torch.randn(7, 16)
    torch.testing.assert_close(part(x), theirs(x[None])[0])


def test_balance_is_the_references_and_least_where_all_are_used_alike():
    part, x = mixture(), torch.randn(11, 16)
    part(x)
    expected = load_balancing_loss_func((part.router(x),), 5, 2)
    torch.testing.assert_close(part.routing.balance(), expected)
    even = Routing(torch.full((10, 5), 0.2), torch.arange(20).view(10, 2) % 5)
    assert even.balance().item() == pytest.approx(2.0)
    one = Routing(torch.eye(5)[:1].expand(10, 5), torch.tensor([[0, 1]]).expand(10, 2))
    assert one.balance().item() == pytest.approx(5.0)


def test_routing_is_kept_in_training_alone():
    config = llama(vocab=8, width=16, depth=2, heads=2, hidden=24)
    block = config.block.replace(ffn=MixtureOfExperts.Config(hidden=24, experts=3, top=1))
    backbone = config.replace(block=block).build()
    assert isinstance(Backbone.Config.model_validate(backbone.config.model_dump()).block.ffn, MixtureOfExperts.Config)
    layout = Layout(torch.arange(4)[None], None, None, True, torch.arange(4)[:, None].expand(-1, 3), lengths=[4])
    backbone(torch.randn(4, 16), layout)
    assert [one.chosen.shape for one in backbone.routings()] == [(4, 1), (4, 1)]
    backbone.eval()(torch.randn(4, 16), layout)
    assert backbone.routings() == []


def test_more_experts_than_there_are():
    with pytest.raises(ValueError, match="cannot take 3 of 2 experts"):
        MixtureOfExperts.Config(hidden=8, experts=2, top=3)
    assert FeedForward.Config(hidden=8).tag() == "nn.ffn.FeedForward"


def test_costs_spread_tokens_evenly():
    part = MixtureOfExperts.Config(hidden=24, experts=5, top=2)
    with torch.device("meta"):
        made = part.build(16)
        assert made(torch.empty(7, 16)).shape == (7, 16)
