"""The balance of experts, through a whole model: what the reference adds to its loss, and that training lowers it."""

import pytest
import torch
from tiny_fused import ask, config, renderer_of, strong
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from sensorium.errors import UserError
from sensorium.nn.moe import MixtureOfExperts
from sensorium.objectives.balance import Balance
from sensorium.sequence import Sample, Sequence


def made(depth=1, **ffn):
    backbone = config().backbone.replace(depth=depth)
    if ffn:
        backbone = backbone.replace(block=backbone.block.replace(ffn=MixtureOfExperts.Config(hidden=24, **ffn)))
    return strong(config(backbone=backbone)).train()


def rendered(model):
    renderer = renderer_of(model)
    return Sequence.pack([renderer.render(Sample(ask(text, 1))) for text in ("what is this?", "and that, over there?")])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_the_references_and_reaches_the_routers(checkpointing):
    model = made(experts=4, top=2)
    model.backbone.checkpointing = checkpointing
    sequence = rendered(model)
    given = []
    model.backbone.blocks[0].ffn.router.register_forward_hook(lambda _, __, logits: given.append(logits))
    loss = Balance()(model(sequence), sequence)
    torch.testing.assert_close(loss.sum / loss.count, load_balancing_loss_func((given[0],), 4, 2))
    assert float(loss.count) == Balance().count(sequence) == len(sequence)
    loss.sum.backward()
    assert model.backbone.blocks[0].ffn.router.weight.grad.abs().max() > 0


def test_training_on_it_alone_evens_the_experts_out():
    model = made(depth=2, experts=4, top=1)
    sequence = rendered(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(30):
        loss = Balance()(model(sequence), sequence)
        mean = loss.sum / loss.count
        seen.append(mean.item())
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert seen[0] > 1.2
    assert seen[-1] < 1.1


def test_a_model_without_experts_says_so():
    model = made()
    sequence = rendered(model)
    with pytest.raises(UserError, match="mixture of experts"):
        Balance()(model(sequence), sequence)
