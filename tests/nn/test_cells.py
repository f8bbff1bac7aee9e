"""What image encoders set in blocks: layer scale, keys without bias, a bias of cells, rope in two dimensions."""

import math

import pytest
import torch
from pydantic import ValidationError

from sensorium.encoders.vit import view_layout
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.modulation import Modulation
from sensorium.nn.relative import CellBias
from sensorium.nn.rope import Rope


def block(**changes) -> Block.Config:
    attention = Attention.Config(heads=2, bias=True)
    return Block.Config(attention=attention, ffn=FeedForward.Config(hidden=24, bias=True), **changes)


def layout(views: int, length: int):
    return view_layout(views, length, torch.device("cpu"))


@pytest.mark.parametrize("place", ["pre", "post"])
def test_layer_scale_multiplies_what_both_sublayers_add(place):
    torch.manual_seed(0)
    scaled = block(place=place, layer_scale=0.25).build(16)
    plain = block(place=place).build(16)
    plain.load_state_dict(scaled.state_dict(), strict=False)
    with torch.no_grad():
        scaled.scale2.mul_(3.0)
        for linear, by in ((plain.attention.o, 0.25), (plain.ffn.down, 0.75)):
            linear.weight.mul_(by)
            linear.bias.mul_(by)
    x = torch.randn(10, 16)
    torch.testing.assert_close(scaled(x, layout(2, 5)), plain(x, layout(2, 5)), rtol=0, atol=1e-5)
    assert {name for name, _ in scaled.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "scale1", "scale2"
    }  # fmt: skip


def test_a_modulated_block_has_gates_and_no_layer_scale():
    with pytest.raises(ValidationError, match="layer_scale"):
        block(layer_scale=1.0, modulation=Modulation.Config())


def test_softmax_cancels_a_bias_of_keys():
    torch.manual_seed(0)
    whole = Attention.Config(heads=2, bias=True).build(16)
    without = Attention.Config(heads=2, bias=True, key_bias=False).build(16)
    assert [one.bias is None for one in (without.q, without.k, without.v, without.o)] == [False, True, False, False]
    torch.nn.init.normal_(whole.k.bias)
    without.load_state_dict({name: value for name, value in whole.state_dict().items() if name != "k.bias"})
    x = torch.randn(6, 16)
    torch.testing.assert_close(whole(x, layout(1, 6)), without(x, layout(1, 6)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_cells_of_one_offset_have_one_bias(before):
    torch.manual_seed(0)
    rows, cols = 2, 3
    bias = CellBias.Config(rows=rows, cols=cols, before=before).build(4)
    length = before + rows * cols
    at = torch.arange(length)[None]
    made = bias(at, at, None, False)
    assert made.shape == (1, 4, length, length)
    for query in range(rows * cols):
        for key in range(rows * cols):
            down, across = query // cols - key // cols, query % cols - key % cols
            row = (down + rows - 1) * (2 * cols - 1) + across + cols - 1
            assert torch.equal(made[0, :, before + query, before + key], bias.table[row])
    count = (2 * rows - 1) * (2 * cols - 1)
    assert len(bias.table) == count + (3 if before else 0)
    if before:
        assert torch.equal(made[0, :, 0, before], bias.table[count])
        assert torch.equal(made[0, :, before, 0], bias.table[count + 1])
        assert torch.equal(made[0, :, 0, before - 1], bias.table[count + 2])
    with pytest.raises(ValueError, match=f"for {length}"):
        bias(at[:, 1:], at, None, False)


def test_a_block_has_a_bias_of_its_own_besides_that_of_all_blocks():
    torch.manual_seed(0)
    cells = CellBias.Config(rows=2, cols=2)
    both = Backbone.Config(width=16, depth=2, block=block(relative=cells), relative=cells).build()
    x = torch.randn(8, 16)
    made = both(x, layout(2, 4))
    with torch.no_grad():
        for one in both.blocks:
            one.relative.table.add_(both.relative.table)
        both.relative.table.zero_()
    torch.testing.assert_close(both(x, layout(2, 4)), made, rtol=0, atol=1e-5)
    with torch.no_grad():
        both.blocks[1].relative.table[4, 0] += 5.0
    assert (both(x, layout(2, 4)) - made).abs().max() > 1e-4


def test_frequencies_of_rows_and_columns_begin_again():
    rope = Rope.Config(theta=100.0, sections=(0, 2, 2), own=True).build(8)
    cos, sin = rope(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, -2.0]]))
    assert cos[0].tolist() == [1.0] * 8
    assert sin[0].tolist() == [0.0] * 8
    angles = [0.5, 0.5 * 0.1, -2.0, -2.0 * 0.1]
    assert cos[1].tolist() == pytest.approx([math.cos(angle) for angle in angles * 2])
    assert sin[1].tolist() == pytest.approx([math.sin(angle) for angle in angles * 2])
    shared = Rope.Config(theta=100.0, sections=(0, 2, 2)).build(8)(torch.tensor([[0.0, 0.5, -2.0]]))[1]
    assert shared[0, 2].item() == pytest.approx(math.sin(-2.0 * 0.1))
