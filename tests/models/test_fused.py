"""The fused wiring: items land where their spans are, in their order, and counts are checked with both numbers."""

import pytest
import torch
from torch import nn

from sensorium.connectors.global_pool import GlobalPool
from sensorium.connectors.mlp import MLP
from sensorium.encoders.vit import vit
from sensorium.models.fused import Fused
from sensorium.models.placing import place
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import llama
from sensorium.sequence import Item, Sequence, Span

BACKBONE = llama(vocab=40, width=16, depth=2, heads=2, hidden=32, tied=True)
EYE = vit(width=16, depth=1, heads=2, patch=8, size=16)


def config(**changes):
    parts = {"encoders": {"image": EYE}, "connectors": {"image": MLP.Config(depth=1)}, "backbone": BACKBONE}
    return Fused.Config(**{**parts, **changes})


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = config().build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def sequence_of(length, spans=(), items=(), seed=0):
    ids = torch.randint(0, 40, (length,), generator=torch.Generator().manual_seed(seed))
    return Sequence(
        ids=ids,
        modality=torch.zeros(length, dtype=torch.uint8),
        position=torch.arange(length)[:, None].expand(-1, 3).contiguous(),
        doc=torch.zeros(length, dtype=torch.long),
        branch=torch.zeros(length, dtype=torch.long),
        weight=torch.ones(length),
        spans=list(spans),
        items={"image": list(items)} if items else {},
    )


def picture(seed):
    return Item(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), (16, 16), str(seed))


def test_place_writes_each_item_over_its_span():
    x, tokens = torch.zeros(8, 2), torch.arange(1.0, 5.0)[:, None].expand(4, 2)
    spans = [Span("image", 5, 2, 0), Span("image", 1, 2, 1)]  # the second item stands first in the text
    placed = place(x, tokens, "image", sequence_of(8, spans))
    assert placed[:, 0].tolist() == [0, 3, 4, 0, 0, 1, 2, 0]
    assert x.abs().sum() == 0


def test_place_leaves_other_kinds_alone():
    spans = [Span("audio", 0, 3, 0), Span("image", 3, 1, 0)]
    placed = place(torch.zeros(4, 1), torch.ones(1, 1), "image", sequence_of(4, spans))
    assert placed[:, 0].tolist() == [0, 0, 0, 1]


def test_place_names_both_numbers_when_plan_and_connector_differ():
    with pytest.raises(ValueError, match=r"planned with 3 tokens, the connector made 4"):
        place(torch.zeros(8, 2), torch.ones(4, 2), "image", sequence_of(8, [Span("image", 1, 3, 0)]))


def test_the_number_of_tokens_has_one_owner(model):
    assert model.config.num_tokens("image", (16, 16)) == 4
    assert len(model.encoders["image"]([picture(0)]).values) == 4


def test_what_is_under_a_span_is_not_read(model):
    left = sequence_of(10, [Span("image", 2, 4, 0)], [picture(0)])
    right = sequence_of(10, [Span("image", 2, 4, 0)], [picture(0)])
    right.ids[2:6] = 7
    assert torch.equal(model(left).hidden, model(right).hidden)


def test_a_token_sees_a_picture_after_it_stands_and_not_before(model):
    one = model(sequence_of(10, [Span("image", 3, 4, 0)], [picture(0)])).hidden
    two = model(sequence_of(10, [Span("image", 3, 4, 0)], [picture(1)])).hidden
    assert torch.equal(one[:3], two[:3])
    assert (one[3:] != two[3:]).any(1).all()


def test_logits_at_chosen_tokens_only(model):
    outputs = model(sequence_of(6))
    index = torch.tensor([5, 0])
    assert outputs.logits(index).shape == (2, 40)
    assert torch.equal(outputs.logits(index), outputs.hidden[index] @ model.backbone.embed.weight.T)


def test_the_gradient_of_a_token_asked_many_times_repeats_to_the_last_bit(model):
    """Branches share the last token of their trunk: its gradients must be summed in the same order every time."""
    index = torch.arange(6000) % 3
    weights = torch.randn(6000, 40, generator=torch.Generator().manual_seed(0))
    gradients = []
    for _ in range(10):
        outputs = model(sequence_of(6))
        outputs.hidden.retain_grad()
        (outputs.logits(index) * weights).sum().backward()
        gradients.append(outputs.hidden.grad)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients)


def test_without_a_picture_every_parameter_still_gets_a_gradient(model):
    """So that on several machines every rank joins every collective."""
    model(sequence_of(6)).hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    eyes = [*model.encoders.parameters(), *model.connectors.parameters()]
    assert all(parameter.grad.abs().sum() == 0 for parameter in eyes)


def test_text_alone_is_what_the_backbone_says(model):
    text = sequence_of(6)
    from sensorium.mask import compile_layout

    alone = model.backbone(model.backbone.embed_tokens(text.ids), compile_layout(text))
    assert torch.equal(model(text).hidden, alone)


def test_an_encoder_without_a_connector_is_an_error():
    with pytest.raises(ValueError, match=r"every encoder needs its connector.*image.*\[\]"):
        config(connectors={}).build()


def test_an_encoder_by_itself_needs_no_connector_and_may_have_one_of_its_own_width():
    encoders = config().encoders
    assert not len(Wiring.Config(encoders=encoders).build().connectors)
    pooled = Wiring.Config(encoders=encoders, connectors={"image": GlobalPool.Config(by="mean", project=False)}).build()
    width = encoders["image"].width
    assert pooled.connectors["image"](pooled.encoders["image"]([picture(0)])).shape == (1, width)
    with pytest.raises(ValueError, match=r"every encoder needs its connector.*\[\].*image"):
        Wiring.Config(connectors={"image": GlobalPool.Config()}).build()


def test_checkpointing_changes_memory_and_not_the_gradient(model):
    text = sequence_of(10, [Span("image", 2, 4, 0)], [picture(0)])
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.backbone.checkpointing = checkpointing
        model(text).hidden.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
