"""Soft caps, norms on both sides, scales of 1 + weight, scaled embeddings, YaRN: each against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from sensorium.mask import Layout
from sensorium.nn.attention import Attention, attend
from sensorium.nn.backbone import Backbone, Local, llama
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.nn.relative import LinearBias
from sensorium.nn.rope import Rope, Scaling


def layout_of(count):
    position = torch.arange(count)[:, None].expand(-1, 3)
    return Layout(torch.arange(count)[None], None, None, True, position, lengths=[count])


@pytest.mark.parametrize("case", ["causal", "mask", "free"])
def test_scores_are_held_within_the_cap_before_the_mask(case):
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(2, 6, heads, 4) for heads in (6, 3, 3))
    mask = (torch.rand(2, 1, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool) if case == "mask" else None
    scores = torch.einsum("blhw,bshw->bhls", q, k.repeat_interleave(2, 2)) / 2
    assert scores.abs().max() > 4
    scores = 1.5 * torch.tanh(scores / 1.5)
    allowed = torch.ones(6, 6, dtype=torch.bool) if mask is None else mask
    scores = scores.masked_fill(~(allowed.tril() if case == "causal" else allowed), -torch.inf)
    expected = torch.einsum("bhls,bshw->blhw", scores.softmax(-1), v.repeat_interleave(2, 2))
    torch.testing.assert_close(attend(q, k, v, mask, case == "causal", 1.5), expected, atol=1e-5, rtol=1e-4)
    without = attend(q, k, v, mask, case == "causal")
    torch.testing.assert_close(attend(q, k, v, mask, case == "causal", 1e4), without, atol=1e-4, rtol=1e-3)


def test_scores_may_be_divided_by_the_root_of_another_width():
    torch.manual_seed(0)
    plain, other = (Attention.Config(heads=2, scale_width=width).build(8) for width in (None, 16.0))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(5, 8)
    plain.q.weight.data *= 0.5  # the root of 4 / 16
    torch.testing.assert_close(other(x, layout_of(5)), plain(x, layout_of(5)))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_scale_of_one_plus_weight(kind):
    torch.manual_seed(0)
    centred, plain = (Norm.Config(kind=kind, zero_centered=zero).build(6) for zero in (True, False))
    assert not centred.weight.any()
    weight = torch.randn(6)
    centred.weight.data.copy_(weight)
    plain.weight.data.copy_(1 + weight)
    x = torch.randn(3, 6, requires_grad=True)
    torch.testing.assert_close(centred(x), plain(x))
    given = torch.randn(3, 6)
    for norm in (centred, plain):
        (norm(x) * given).sum().backward()
    torch.testing.assert_close(centred.weight.grad, plain.weight.grad)


def test_norms_on_both_sides():
    torch.manual_seed(0)
    block = Block.Config(
        attention=Attention.Config(heads=2), ffn=FeedForward.Config(hidden=4), place="both", routes=2,
        routed=("norm1", "norm2", "after1", "after2", "attention", "ffn", "final"),
    ).build(8)  # fmt: skip
    norms = [block.norm1, block.after1, block.norm2, block.after2]
    for number, norm in enumerate(norms):
        norm.weight.data.fill_(1 + number / 4)
    x = torch.randn(3, 8)
    middle = x + block.after1(block.attention(block.norm1(x), layout_of(3)))
    expected = middle + block.after2(block.ffn(block.norm2(middle)))
    with torch.no_grad():
        torch.testing.assert_close(block(x, layout_of(3)), expected)
    assert {"after1", "after2"} <= {name.split(".")[0] for name, _ in block.routes["1"].named_parameters()}


def test_embeddings_times_the_root_of_the_width_and_capped_logits():
    config = llama(vocab=7, width=10, depth=0, heads=1, hidden=4, tied=True)
    backbone = config.replace(scaled_embed=True, soft_cap=0.5).build()
    ids, x = torch.tensor([3, 1]), 5 * torch.randn(2, 10)
    backbone.embed.weight.data.normal_()
    torch.testing.assert_close(backbone.embed_tokens(ids), 10**0.5 * backbone.embed.weight[ids])
    logits = backbone.logits(x)
    torch.testing.assert_close(logits, 0.5 * torch.tanh(F.linear(x, backbone.embed.weight) / 0.5))
    assert logits.abs().max() <= 0.5
    half = backbone.bfloat16()  # the root is rounded as the table is: 3.15625, not 3.16228
    assert half.embed.weight.dtype == torch.bfloat16
    expected = (3.15625 * half.embed.weight[ids].float()).bfloat16()
    torch.testing.assert_close(half.embed_tokens(ids), expected, rtol=0, atol=0)


def test_blocks_with_and_without_a_window_and_their_positions():
    """Two blocks, the second with a window of 3 and positions of its own: both written out."""
    torch.manual_seed(0)
    config = llama(vocab=0, width=8, depth=2, heads=2, hidden=12)
    config = config.replace(local=Local(window=3, layers=(1, 9), rope=Rope.Config(theta=7.0)))
    backbone, x, layout = config.build(), torch.randn(6, 8), layout_of(6)
    for parameter in backbone.parameters():
        parameter.data.normal_(std=0.5)

    def tables(theta):
        cos, sin = Rope.Config(theta=theta).build(4)(layout.position)
        return cos, torch.cat((-sin[:, :2], sin[:, 2:]), 1)

    near = layout_of(6)
    near.mask = torch.ones(6, 6, dtype=torch.bool).tril().triu(-2)[None, None]
    near.causal = False
    expected = backbone.norm(backbone.blocks[1](backbone.blocks[0](x, layout, tables(1e4)), near, tables(7.0)))
    torch.testing.assert_close(backbone(x, layout), expected)
    assert Backbone.Config.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="leave out `local`"):
        config.replace(relative=LinearBias.Config())


def test_yarn_keeps_fast_waves_and_lowers_slow_ones():
    """Of 8 waves those that turn more than 4 times within 64 tokens stay, those below 1 turn go by the factor."""
    theta, count = 100.0, 8
    frequency = theta ** -(torch.arange(count) / count)
    turns = 64 * frequency / (2 * math.pi)
    scaling = Scaling(kind="yarn", factor=4.0, low=1.0, high=4.0, original=64, whole=False)
    made = scaling(frequency, theta) / frequency
    assert int((turns > 4).sum()) == 2
    assert int((turns < 1).sum()) == 3
    torch.testing.assert_close(made[turns > 4], torch.ones(2))
    torch.testing.assert_close(made[turns < 1], torch.full((3,), 0.25))
    # between, the number of a wave decides: those of exactly 4 and 1 turns stand at these numbers
    first, last = (count * math.log(64 / (2 * math.pi * t)) / math.log(theta) for t in (4.0, 1.0))
    between = (turns < 4) & (turns > 1)
    share = (torch.arange(count) - first) / (last - first)
    torch.testing.assert_close(made[between], (1 - 0.75 * share)[between])
    assert scaling.grown == pytest.approx(0.1 * math.log(4) + 1)
    cos, sin = Rope.Config(theta=theta, scaling=scaling).build(16)(torch.tensor([[5, 0, 0]]))
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((1, 16), scaling.grown**2))
    assert scaling.replace(length=1.0).grown == 1.0
