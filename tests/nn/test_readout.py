"""What stands around a stack: token types before it, a readout between it and the head, a pooler beside it."""

import pytest
import torch
import torch.nn.functional as F

from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.backbone import bert, llama
from sensorium.nn.norm import Norm
from sensorium.nn.pooler import Pooler
from sensorium.nn.readout import Readout
from sensorium.sequence import Sequence

STACK = llama(vocab=11, width=8, depth=1, heads=2, hidden=12)


@pytest.mark.parametrize("tied", [True, False])
def test_a_readout_scales_transforms_and_shifts(tied):
    torch.manual_seed(0)
    hidden = torch.randn(5, 8)
    readout = Readout.Config(scale=0.25, dense="gelu", norm=Norm.Config(kind="layer", eps=1e-3), bias=True)
    stack = STACK.replace(tied=tied, readout=readout).build()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_()
    read = stack.readout
    made = F.gelu((hidden * 0.25) @ read.dense.weight.T + read.dense.bias)
    made = F.layer_norm(made, (8,), read.norm.weight, read.norm.bias, 1e-3)
    matrix = stack.embed.weight if tied else stack.head.weight
    torch.testing.assert_close(stack.logits(hidden), made @ matrix.T + read.bias)
    stack.logits(hidden).sum().backward()
    assert read.bias.grad.tolist() == [5.0] * 11
    assert all(parameter.grad is not None for parameter in read.parameters())


def test_a_readout_that_only_scales_has_no_parameters_and_without_one_nothing_changes():
    plain, scaled = STACK.build(), STACK.replace(readout=Readout.Config(scale=8**-0.5)).build()
    assert plain.state_dict().keys() == scaled.state_dict().keys()
    scaled.load_state_dict(plain.state_dict())
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(scaled.logits(hidden), plain.logits(hidden) * 8**-0.5)
    assert torch.equal(plain.logits(hidden), plain.head(hidden))


def test_every_token_takes_the_first_type():
    torch.manual_seed(0)
    config = bert(vocab=11, width=8, depth=1, heads=2, hidden=12, positions=6)
    plain, typed = config.build(), config.replace(types=3).build()
    state = plain.state_dict()
    assert typed.state_dict().keys() - state.keys() == {"types.weight"}
    table = torch.randn(3, 8)
    typed.load_state_dict({**state, "types.weight": table})
    zeros = torch.zeros(4, dtype=torch.long)
    position = torch.arange(4)[:, None].expand(-1, 3)
    text = Sequence(torch.tensor([3, 1, 4, 1]), zeros.to(torch.uint8), position, zeros, zeros, zeros.float())
    layout, x = compile_layout(text, AttentionRule("full")), plain.embed_tokens(text.ids)
    assert torch.equal(typed(x, layout), plain(x + table[0], layout))
    assert not torch.allclose(typed(x, layout), plain(x, layout), atol=1e-2)


def test_a_pooler_reads_first_states_and_may_tell_classes_apart():
    torch.manual_seed(0)
    pooler, first = Pooler.Config(classes=3).build(8), torch.randn(2, 8)
    made = (first @ pooler.dense.weight.T + pooler.dense.bias).tanh()
    torch.testing.assert_close(pooler(first), made)
    torch.testing.assert_close(pooler.logits(first), made @ pooler.classes.weight.T + pooler.classes.bias)
    with pytest.raises(ValueError, match="tells no classes apart"):
        Pooler.Config().build(8).logits(first)
