"""Options of a codec's stage: a frozen encoder and a critic that learns, each moving only what it should."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.critic import Critic
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.config import from_json
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import vit
from sensorium.models.wiring import Wiring
from sensorium.objectives.critics import Adversarial, Perceptual
from sensorium.sequence import Item, Sequence


def wiring() -> Wiring.Config:
    conv = Convolutions(channels=4, multipliers=(1, 2), blocks=1, groups=2, attention=False)
    codec = VQ.Config(
        transform=ImageTransform(size=16), conv=conv, quantizer=Quantizer.Config(codes=8, width=4), wide=8
    )
    eye = vit(width=16, depth=1, heads=2, patch=8, size=16)
    return Wiring.Config(codecs={"image": codec}, critics={"perceptual": eye, "pieces": Critic.Config(channels=4)})


@pytest.fixture
def made():
    """The wiring, a packed sequence of three pictures, and what the codec made of them."""
    torch.manual_seed(0)
    model: Wiring = wiring().build()
    zeros = torch.zeros(3, dtype=torch.long)
    items = [Item(torch.rand(1, 3, 16, 16) * 2 - 1, (16, 16)) for _ in range(3)]
    sequence = Sequence(zeros, zeros.to(torch.uint8), zeros[:, None].expand(-1, 3), zeros, zeros, zeros.float(), [],
                        {"image": items})  # fmt: skip
    return model, sequence, model(sequence)


def moved(model, loss):
    """Names of rooms with a gradient that is not zero."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name.split(".")[0] + "." + name.split(".")[1] for name, parameter in model.named_parameters()
            if parameter.grad is not None and bool(parameter.grad.any())}  # fmt: skip


def test_critics_are_parts_of_the_wiring_and_survive_json(made):
    model, _, _ = made
    assert from_json(wiring().to_json(), Wiring.Config) == wiring()
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("critics")} == {
        "perceptual", "pieces",
    }  # fmt: skip
    with pytest.raises(ValidationError):
        Wiring.Config(critics={"pieces": 3})  # type: ignore[dict-item]


def test_the_codec_learns_to_look_alike_and_a_frozen_encoder_stays(made):
    model, sequence, outputs = made
    for parameter in model.get_submodule("critics.perceptual").parameters():
        parameter.requires_grad_(False)
    loss = Perceptual()(outputs, sequence)
    assert float(loss.count) == 3
    assert 0 < float(loss.sum.detach()) <= 3 * 4
    assert moved(model, loss.sum) == {"codecs.image"}
    [(pixels, coded)] = outputs.batches["image"]
    coded.pixels = pixels
    assert float(Perceptual()(outputs, sequence).sum) == 0


def test_the_critic_learns_by_its_own_loss_and_the_codec_by_fooling_it(made):
    model, sequence, outputs = made
    assert moved(model, Adversarial(codec=0.0)(outputs, sequence).sum) == {"critics.pieces"}
    loss = Adversarial(codec=1.0)(outputs, sequence)
    assert moved(model, loss.sum) == {"critics.pieces", "codecs.image"}
    critic = [parameter.grad.clone() for parameter in model.get_submodule("critics.pieces").parameters()]
    moved(model, Adversarial(codec=0.0)(outputs, sequence).sum)
    for before, parameter in zip(critic, model.get_submodule("critics.pieces").parameters()):
        torch.testing.assert_close(parameter.grad, before)  # what the codec learns does not move the critic
    torch.testing.assert_close(loss.sum, loss.report["critic"][0] + loss.report["fools"][0])


def test_a_missing_critic_is_named(made):
    _, sequence, outputs = made
    with pytest.raises(ValueError, match="no critic is called 'other': the stage's wiring has"):
        Adversarial(critic="other")(outputs, sequence)
