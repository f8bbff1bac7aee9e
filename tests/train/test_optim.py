"""AdamW over fp32 masters: schedules by hand, small updates, clipping, decay, gradients over micro-batches."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import tiny_stage
from torch import nn

from sensorium.errors import UserError
from sensorium.train.optim import Optimizer, learning_rate


def stage_of(**changes):
    return tiny_stage(train=("*",), **{"schedule": "constant", "warmup": 0.0, "clip": None, **changes})


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        # 10 steps, 2 of warm-up: 1/2, 1, then (step - 2) / 8 of the way from 1 to the floor
        ("constant", 0.0, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("linear", 0.2, [0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ("cosine", 0.0, [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_schedules_by_hand(schedule, floor, expected):
    stage = stage_of(schedule=schedule, floor=floor, warmup=0.2)
    assert [learning_rate(stage, step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-4)


def test_seven_hundredths_of_a_hundred_steps_are_seven():
    assert [learning_rate(stage_of(warmup=0.07), step, 100) for step in (5, 6)] == [6 / 7, 1.0]


def test_a_single_step_and_warm_up_alone():
    assert learning_rate(stage_of(warmup=0.0, schedule="cosine"), 0, 1) == 1.0
    assert [learning_rate(stage_of(warmup=0.99), step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_a_thousand_updates_too_small_for_bfloat16_are_not_lost():
    """1e-5 a step on a weight of 1, whose next bfloat16 below is 0.996: at the end it is 0.99."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizer = Optimizer(layer, stage_of(lr=1e-5, weight_decay=0.0), 1000)
    for step in range(1000):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(step)
    assert float(optimizer.masters["weight"].detach()) == pytest.approx(0.99, abs=1e-4)
    assert float(layer.weight.detach()) == float(torch.tensor(0.99).bfloat16())


def test_gradients_of_micro_batches_are_summed_in_fp32():
    """256 + 1 + 1 is 256 in bfloat16 and 258 in fp32."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizer = Optimizer(layer, stage_of(), 1)
    for value in (256.0, 1.0, 1.0):
        layer(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
    assert optimizer.masters["weight"].grad.item() == 258.0
    assert optimizer.step(0)["grad_norm"] == 258.0


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 11), max_size=4), seed=st.integers(0, 100))
def test_accumulation_is_the_gradient_of_the_big_batch(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)
    torch.manual_seed(seed)
    layer = nn.Linear(5, 3)
    whole = torch.autograd.grad(((layer(x) - y) ** 2).sum() / 12, list(layer.parameters()))
    optimizer = Optimizer(layer, stage_of(), 1)
    edges = [0, *sorted(cuts), 12]
    for start, stop in pairwise(edges):
        ((layer(x[start:stop]) - y[start:stop]) ** 2).sum().backward()
    for master, expected in zip(optimizer.masters.values(), whole):
        torch.testing.assert_close(master.grad / 12, expected, rtol=1e-6, atol=1e-6)
    optimizer.close()


def test_clipping_scales_the_whole_gradient_to_the_bound():
    """Gradient (3, 4) and a norm of 5, clipped at 1: (0.6, 0.8). Plain descent through beta 0 shows it in exp_avg."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = Optimizer(layer, stage_of(clip=1.0, betas=(0.0, 0.0)), 1)
    layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert optimizer.step(0)["grad_norm"] == pytest.approx(5.0)
    torch.testing.assert_close(optimizer.state()["exp_avg.weight"], torch.tensor([[0.6, 0.8]]))


def test_a_gradient_within_the_bound_is_left_alone():
    layer = nn.Linear(2, 1, bias=False)
    optimizer = Optimizer(layer, stage_of(clip=10.0, betas=(0.0, 0.0)), 1)
    layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    optimizer.step(0)
    assert torch.equal(optimizer.state()["exp_avg.weight"], torch.tensor([[3.0, 4.0]]))


def test_weight_decay_is_for_matrices_only():
    """A zero gradient: AdamW moves nothing but what decays, by lr x decay = 0.1 x 0.5 of itself."""
    layer = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = Optimizer(layer, stage_of(lr=0.1, weight_decay=0.5), 1)
    (layer(torch.randn(3, 2)).sum() * 0.0).backward()
    optimizer.step(0)
    for name, parameter in layer.named_parameters():
        expected = before[name] * (0.95 if name == "0.weight" else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_rate_for_each_glob():
    layer = nn.ModuleDict({"slow": nn.Linear(1, 1, bias=False), "fast": nn.Linear(1, 1, bias=False)})
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = Optimizer(layer, stage_of(lr={"slow.*": 0.01, "*": 0.3}), 1)
    (layer["slow"](torch.ones(1, 1)) + layer["fast"](torch.ones(1, 1))).sum().backward()
    taken = optimizer.step(0)
    assert layer["slow"].weight.item() == pytest.approx(-0.01, rel=1e-4)  # Adam's first step is the rate itself
    assert layer["fast"].weight.item() == pytest.approx(-0.3, rel=1e-4)
    assert taken["lr"] == {"slow.*": 0.01, "*": 0.3}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(poison):
    layer = nn.Linear(2, 1)
    optimizer = Optimizer(layer, stage_of(), 3)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step(0)
    weights = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    layer(torch.tensor([[1.0, poison]])).sum().backward()
    taken = optimizer.step(1)
    assert taken["lr"] == 0.0
    assert str(taken["grad_norm"]) in ("nan", "inf")
    assert all(torch.equal(weights[name], parameter) for name, parameter in layer.named_parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in optimizer.state().items())
    layer(torch.ones(1, 2)).sum().backward()  # and the poison is gone
    assert optimizer.step(2)["grad_norm"] == pytest.approx(3**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_taken_and_given_back_continues_to_the_same_bits(dtype):
    def run(layer, optimizer, steps):
        for step in steps:
            layer(torch.full((1, 3), 0.1 * (step + 1), dtype=dtype)).square().sum().backward()
            optimizer.step(step)

    torch.manual_seed(0)
    layer = nn.Linear(3, 2, dtype=dtype)
    optimizer = Optimizer(layer, stage_of(weight_decay=0.1), 6)
    run(layer, optimizer, range(3))
    other = nn.Linear(3, 2, dtype=dtype)
    other.load_state_dict(layer.state_dict())
    resumed = Optimizer(other, stage_of(weight_decay=0.1), 6)
    resumed.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    run(layer, optimizer, range(3, 6))
    run(other, resumed, range(3, 6))
    assert torch.equal(layer.weight, other.weight)
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in optimizer.state().items())


def test_the_state_of_other_parameters_is_an_error():
    optimizer = Optimizer(nn.Linear(2, 2), stage_of(), 1)
    with pytest.raises(UserError, match=r"does not train: gate\.weight"):
        optimizer.load({"exp_avg.gate.weight": torch.zeros(2, 2)})


def test_closed_it_no_longer_collects():
    layer = nn.Linear(1, 1)
    Optimizer(layer, stage_of(), 1).close()
    layer(torch.ones(1, 1)).sum().backward()
    assert layer.weight.grad is not None
