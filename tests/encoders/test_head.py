"""What is read off a view: pooler and classifier."""

import pytest
import torch
from pydantic import ValidationError

from sensorium.encoders.head import Head
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, stack
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope
from sensorium.sequence import Item


def test_it_reads_the_class_token_the_cells_or_both():
    x = torch.randn(2, 6, 4)
    mean = x[:, 3:].mean(1)
    assert torch.equal(Head.Config().build(4)(x, 3), x[:, 0])
    assert torch.equal(Head.Config(reads="mean").build(4)(x, 3), mean)
    both = Head.Config(reads="both", out=5, activation="tanh").build(4)
    expected = torch.tanh(both.linear(torch.cat([x[:, 0], mean], -1)))
    torch.testing.assert_close(both(x, 3), expected)
    normed = Head.Config(reads="mean", norm=Norm.Config(kind="layer"), activation="relu").build(4)
    torch.testing.assert_close(normed(x, 3), torch.nn.functional.layer_norm(mean, (4,)).relu())


def test_labels_are_as_many_as_numbers():
    with pytest.raises(ValidationError, match="2 labels for 3 numbers"):
        Head.Config(out=3, labels=("a", "b"))


def vit(**changes) -> ViT.Config:
    return ViT.Config(
        **{"transform": ImageTransform(size=16, width=24), "patch": 8, "backbone": stack(16, 2, 2), **changes}
    )


@torch.no_grad()
def test_registers_stand_before_the_patches_of_an_oblong_view():
    torch.manual_seed(0)
    config = vit(registers=3)
    network = config.build()
    assert config.cells == (2, 3)
    assert network.place.shape == (7, 16)
    assert network.registers.shape == (3, 16)
    views = torch.randn(2, 3, 16, 24)
    assert network.encode(views).shape == (2, 6, 16)
    whole = config.replace(class_feature=True).build()
    whole.load_state_dict(network.state_dict())
    assert whole.encode(views).shape == (2, 4 + 6, 16)
    assert torch.equal(whole.encode(views)[:, 4:], network.encode(views))
    features = whole([Item(views[:1], (50, 9))])
    assert len(features.values) == features.grids[0].tokens == 10
    assert config.replace(registers=0).build().encode(views).shape == (2, 6, 16)


def test_what_features_do_not_depend_on_has_a_gradient():
    network = vit(mask_token=True, heads={"pooler": Head.Config(out=4)}).build()
    network([]).values.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_patches_are_turned_by_their_place_and_what_stands_before_is_not():
    torch.manual_seed(0)
    backbone = stack(16, 1, 2).replace(rope=Rope.Config(theta=100.0, sections=(0, 2, 2), own=True))
    for place, last in (("cells", [0.0, 1.0, 2.0]), ("centres", [0.0, torch.pi, 2 * torch.pi * 2 / 3])):
        config = vit(backbone=backbone, positions="none", place=place, registers=1)
        network = config.build()
        places = network._places()
        assert places.shape == (2 + 6, 3)
        assert places[:2].abs().max() == 0
        assert places[-1].tolist() == pytest.approx(last, abs=1e-6)
        views = torch.randn(1, 3, 16, 24)
        other = config.replace(place="order").build()
        other.load_state_dict(network.state_dict())
        assert (other.encode(views) - network.encode(views)).abs().max() > 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": {"classifier": Head.Config()}, "class_token": False},
        {"heads": {"classifier": Head.Config(reads="mean")}, "levels": (1,)},
        {"transform": ImageTransform(size=16, width=20)},
        {"trained_size": (16, 20)},
        {"transform": ImageTransform(size=16, width=4), "cut": True},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        vit(**wrong)
