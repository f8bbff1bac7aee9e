"""Norms inside attention and feed-forward (Magneto), and fixed positions: against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from sensorium.mask import Layout
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.sinusoid import Sinusoid

NORM = Norm.Config(kind="layer", eps=1e-3)


def layout_of(count):
    position = torch.arange(count)[:, None].expand(-1, 3)
    return Layout(torch.arange(count)[None], None, None, True, position, lengths=[count])


def other(part):
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def test_what_all_heads_read_is_normalised_together_before_the_output_layer():
    torch.manual_seed(0)
    config = Attention.Config(heads=2, head_width=3, bias=True)
    part, x = other(config.replace(inner_norm=NORM).build(8)), torch.randn(4, 8)
    without = config.build(8)
    without.load_state_dict({name: t for name, t in part.state_dict().items() if "inner_norm" not in name})
    without.o = torch.nn.Identity()
    mixed = without(x, layout_of(4))
    normed = F.layer_norm(mixed, (6,), part.inner_norm.weight, part.inner_norm.bias, 1e-3)
    torch.testing.assert_close(part(x, layout_of(4)), part.o(normed))


@pytest.mark.parametrize("gated", [False, True])
def test_what_goes_down_is_normalised(gated):
    torch.manual_seed(0)
    part, x = other(FeedForward.Config(hidden=6, gated=gated, inner_norm=NORM).build(4)), torch.randn(5, 4)
    hidden = F.silu(part.gate(x)) * part.up(x) if gated else F.silu(part.up(x))
    normed = F.layer_norm(hidden, (6,), part.inner_norm.weight, part.inner_norm.bias, 1e-3)
    torch.testing.assert_close(part(x), part.down(normed))


@pytest.mark.parametrize("width", [6, 7])
def test_positions_are_sines_then_cosines_and_none_where_they_are_negative(width):
    made = Sinusoid.Config(first=2, theta=100.0).build(width)(torch.tensor([0, 3, -1]))
    frequencies = [1.0, 0.1, 0.01]
    for row, place in ((0, 2), (1, 5)):
        sines = [math.sin(place * one) for one in frequencies] + [math.cos(place * one) for one in frequencies]
        torch.testing.assert_close(made[row], torch.tensor([*sines, *[0.0] * (width - 6)]))
    assert made[2].abs().max() == 0


def test_a_stack_adds_them_to_its_embeddings():
    block = Block.Config(attention=Attention.Config(heads=2), ffn=FeedForward.Config(hidden=8))
    stack = Backbone.Config(width=8, depth=1, block=block, sinusoid=Sinusoid.Config(first=3)).build()
    seen = []
    x = torch.randn(4, 8)
    stack(x, layout_of(4), between={0: lambda state: (seen.append(state), state)[1]})
    torch.testing.assert_close(seen[0], x + Sinusoid.Config(first=3).build(8)(torch.arange(4)))
