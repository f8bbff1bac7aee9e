"""Swin: windows, what is shifted, sizes that nothing divides."""

import pytest
import torch
from pydantic import ValidationError

from sensorium.config import from_json
from sensorium.encoders.base import Encoder
from sensorium.encoders.head import Head
from sensorium.encoders.swin import Swin
from sensorium.encoders.transform import ImageTransform
from sensorium.sequence import Item


def small(size=32, **changes) -> Swin.Config:
    fields = {"dim": 8, "stages": ((2, 2), (2, 2)), "patch": 4, "window": 4, **changes}
    return Swin.Config(transform=ImageTransform(size=size, width=fields.pop("width", None)), **fields)


def made(config: Swin.Config) -> Swin:
    torch.manual_seed(0)
    return config.build().eval()


def test_published_parameter_counts():
    with torch.device("meta"):
        tiny = Swin.Config(transform=ImageTransform(size=224)).build()
    # Swin-T of the paper's code, whose classifier of 1000 has 769,000
    assert sum(parameter.numel() for parameter in tiny.parameters()) == 28_288_354 - 769_000


@torch.no_grad()
def test_without_a_shift_windows_know_nothing_of_each_other():
    views = torch.randn(1, 3, 32, 32)
    changed = views.clone()
    changed[:, :, :16, :16] += 1.0  # the first of two by two windows
    apart, shifted = (made(small(stages=((blocks, 2),))) for blocks in (1, 2))
    moved = [
        (network.encode(changed) - network.encode(views)).abs().amax(-1).view(8, 8) for network in (apart, shifted)
    ]
    assert moved[0][:4, :4].min() > 1e-4
    assert max(moved[0][4:].max(), moved[0][:, 4:].max()) == 0
    assert moved[1][4:6, 4:6].min() > 1e-6  # the shifted window over the middle
    assert moved[1][6:, 6:].max() == 0  # and the edges, that the move brings together, stay apart


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 50), (35, 31)])
def test_sizes_that_nothing_divides(height, width):
    network = made(small(height, width=width, window=3))
    rows, cols = network.config.cells
    assert (rows, cols) == (-(-height // 8), -(-width // 8))
    views = torch.randn(2, 3, height, width)
    together = network.encode(views)
    assert together.shape == (2, rows * cols, 16)
    torch.testing.assert_close(together[1:], network.encode(views[1:]), rtol=0, atol=1e-5)
    features = network([Item(views[:1], (9, 9)), Item(views[1:], (70, 5))])
    torch.testing.assert_close(features.values, together.flatten(0, 1), rtol=0, atol=1e-5)


def test_every_parameter_learns_also_from_no_picture():
    network = made(small(mask_token=True, positions=True, heads={"classifier": Head.Config(reads="mean", out=3)}))
    network([]).values.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.zero_grad()
    network([Item(torch.randn(1, 3, 32, 32), (32, 32))]).values.square().sum().backward()
    assert network.stages[0][1].relative.table.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 5},
        {"stages": ((2, 3),)},
        {"size": 33, "positions": True},
        {"heads": {"classifier": Head.Config(out=3)}},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        small(**wrong)


def test_its_value_round_trips():
    config = small(40, width=52, heads={"classifier": Head.Config(reads="mean", out=2, labels=("a", "b"))})
    assert from_json(config.to_json(), Encoder.Config) == config
