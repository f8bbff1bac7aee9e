"""How a denoiser is told the time, the place and the condition, beyond what the plain one is told."""

import math

import pytest
import torch
from tiny_denoiser import WIDTH, awake, config, document
from torch.testing import assert_close

from sensorium.mask import Layout
from sensorium.models.latents import positions
from sensorium.models.prompt import FREQUENCIES, TimeEmbedding
from sensorium.nn.backbone import dit
from sensorium.nn.modulation import Conditions
from sensorium.nn.norm import Norm
from sensorium.nn.part import Grid
from sensorium.objectives.diffusion import Denoising
from sensorium.sequence import Sequence


@pytest.mark.parametrize("closed", [False, True])
def test_the_waves_of_a_time_stop_before_the_longest_period_or_reach_it(closed):
    embed = TimeEmbedding(4, closed)
    waves = []
    embed.up.register_forward_pre_hook(lambda _, given: waves.append(given[0]))
    embed(torch.tensor([0.0, 1000.0]))
    half = FREQUENCIES // 2
    slowest = 1e-4 ** (1.0 if closed else (half - 1) / half)
    assert waves[0].shape == (2, FREQUENCIES)
    assert_close(waves[0][0], torch.tensor([1.0] * half + [0.0] * half))
    assert float(waves[0][1, half - 1]) == pytest.approx(math.cos(1000 * slowest), abs=1e-4)
    assert float(waves[0][1, half]) == pytest.approx(math.sin(1000.0), abs=1e-3)


def test_positions_say_the_column_first_and_are_spread_where_that_is_asked_for():
    grids, sections = [Grid(2, 4, frames=2)], (4, 8, 6)
    plain = positions(grids, sections)
    time, row, column = plain.split(sections, dim=1)
    assert_close(positions(grids, sections, columns_first=True), torch.cat([time, column, row], dim=1))
    spread = positions(grids, sections, stretch=4).split(sections, dim=1)
    assert_close(spread[0], time)
    assert_close(spread[2], column)  # four columns over four
    assert_close(spread[1][4:8], positions([Grid(3, 1)], (0, 8, 0))[2].expand(4, -1))  # two rows over four: the third
    assert_close(positions([Grid(4, 4)], sections, stretch=4), positions([Grid(4, 4)], sections))


def given(model, sequence, seed=0):
    latents = model.locate(sequence)
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(len(latents), model.config.channels, generator=draws), latents


def test_a_variance_is_said_beside_the_prediction_which_is_what_it_was():
    plain, both = awake(config().build()), config(variance=True).build().eval()
    packed = document((16, 8), 4)
    noise, latents = given(plain, packed)
    state = plain.state_dict()
    channels, cells = 3, 16
    split = both.leave.weight.view(cells, 2, channels, WIDTH)
    with torch.no_grad():
        both.load_state_dict({name: both.state_dict()[name] if "leave" in name else one for name, one in state.items()})
        split[:, 0], split[:, 1] = plain.leave.weight.view(cells, channels, WIDTH), 1.0
        both.leave.bias.view(cells, 2, channels)[:, 0] = plain.leave.bias.view(cells, channels)
        time, prompt = torch.tensor([300.0]), plain.read(packed)
        prediction, variance = both.said(noise, time, latents, prompt)
        assert_close(prediction, plain.predict(noise, time, latents, prompt))
        assert_close(both.predict(noise, time, latents, prompt), prediction, rtol=0, atol=0)
        assert variance.shape == prediction.shape
        assert_close(variance, variance[:, :1].expand_as(variance))  # rows of ones: all numbers of a token alike
        assert plain.said(noise, time, latents, prompt)[1] is None


def test_every_block_may_have_a_condition_of_its_own():
    block = dit(width=WIDTH, depth=2, heads=2)
    text = config().text.replace(width=2 * WIDTH)
    made = config(apart=True, project=False, text=text, backbone=block)
    model = awake(made.build())
    first, second = document((16, 16), 5, 0, made), document((8, 16), 3, 1, made)
    packed = Sequence.pack([first, second])
    noise, latents = given(model, packed)
    time, prompt = torch.tensor([300.0, 700.0]), model.read(packed)
    with torch.no_grad():
        told = model.conditions(time, prompt.pooled, latents.number)
        assert [tuple(one.values.shape) for one in told] == [(2, WIDTH)] * 2
        assert_close(told[0].values, model.time(time) + prompt.pooled[:, :WIDTH])
        assert_close(told[1].values, model.times[0](time) + prompt.pooled[:, WIDTH:])
        together = model.predict(noise, time, latents, prompt)
        length = len(model.locate(first))
        alone = model.predict(noise[:length], time[:1], model.locate(first), model.read(first))
    assert_close(together[:length], alone, rtol=1e-5, atol=1e-5)
    Denoising()(model(packed), packed).sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="labels of width 64 are added to a condition of 32"):
        config(project=False, text=text, backbone=block)


def test_conditions_of_blocks_go_to_their_blocks_and_the_first_to_the_last_norm():
    stack = awake(dit(width=WIDTH, depth=2, heads=2).build())
    index, x = torch.zeros(6, dtype=torch.long), torch.randn(6, WIDTH)
    one, two = (Conditions(torch.randn(1, WIDTH), index) for _ in range(2))
    layout = layout_of(6)
    with torch.no_grad():
        wanted = stack.blocks[1](stack.blocks[0](x, layout, conditions=one), layout, conditions=two)
        shift, scale = stack.modulation(one)
        wanted = stack.norm(wanted) * (1 + scale) + shift
        assert_close(stack(x, layout, conditions=[one, two]), wanted)
        assert_close(stack(x, layout, conditions=[one, one]), stack(x, layout, conditions=one), rtol=0, atol=0)


def layout_of(length):
    rows = torch.arange(length)[None]
    return Layout(rows, None, None, False, torch.zeros(length, 3, dtype=torch.long), lengths=[length])


def test_the_feed_forward_may_have_a_norm_of_another_kind():
    config = dit(width=WIDTH, depth=1, heads=2).block
    other = config.replace(norm2=Norm.Config(kind="layer", eps=0.5)).build(WIDTH)
    assert (other.norm1.eps, other.norm2.eps) == (1e-6, 0.5)
    assert (other.norm1.weight, other.norm2.weight.shape) == (None, (WIDTH,))
    assert config.build(WIDTH).norm2.eps == 1e-6
    routed = config.replace(modulation=None, norm2=Norm.Config(eps=0.25), routes=2, routed=("norm1", "norm2"))
    route = routed.build(WIDTH).routes["1"]
    assert (route["norm1"].eps, route["norm2"].eps) == (1e-6, 0.25)
