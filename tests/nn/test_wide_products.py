"""Products of bfloat16 where the CPU has none: computed in float32, rounded as a product of bfloat16 is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.mask import compile_layout
from sensorium.nn import wide as module
from sensorium.nn.attention import attend
from sensorium.nn.backbone import llama
from sensorium.nn.wide import ROWS, slow, wide
from sensorium.sequence import Sequence


def packed(*lengths: int) -> Sequence:
    """Documents of words that stand one after another."""
    count = sum(lengths)
    place, zeros = torch.cat([torch.arange(length) for length in lengths]), torch.zeros(count, dtype=torch.long)
    doc = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Sequence(ids=zeros, modality=zeros.to(torch.uint8), position=place[:, None].expand(-1, 3), doc=doc,
                    branch=zeros, weight=torch.zeros(count))  # fmt: skip


@pytest.fixture(params=(False, True), ids=("without", "native"))
def native(request, monkeypatch):
    """Both kinds of CPU, whichever this one is."""
    monkeypatch.setattr(module, "native_bfloat16", lambda: request.param)
    return request.param


def test_only_bfloat16_without_gradients_on_such_a_cpu_is_slow(native):
    x = torch.zeros(ROWS, 4, dtype=torch.bfloat16)
    assert not slow(x), "with gradients nothing changes"
    with torch.no_grad():
        assert slow(x) is not native
        assert not slow(x.float())


def test_a_product_is_that_of_float32_rounded(native):
    torch.manual_seed(0)
    layer = nn.Linear(96, 40).bfloat16()
    x = torch.randn(ROWS, 96).bfloat16()
    exact = F.linear(x.float(), layer.weight.float(), layer.bias.float())
    with torch.no_grad(), wide(x):
        made = layer(x)
        product = x @ layer.weight.T
    assert made.dtype == product.dtype == torch.bfloat16
    if native:
        torch.testing.assert_close(made.float(), exact, rtol=0.01, atol=0.01)
    else:
        assert torch.equal(made, exact.bfloat16())
        assert torch.equal(product, (x.float() @ layer.weight.float().T).bfloat16())


def test_float32_inside_is_untouched(native):
    x, weight = torch.randn(ROWS, 8), torch.randn(3, 8)
    with torch.no_grad(), wide(x.bfloat16()):
        assert torch.equal(F.linear(x, weight), F.linear(x, weight))
        assert F.linear(x, weight).dtype == torch.float32


@pytest.mark.parametrize("masked", ["causal", "allowed", "added"])
def test_attention_is_that_of_float32_rounded(masked, monkeypatch):
    monkeypatch.setattr(module, "native_bfloat16", lambda: False)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 40, heads, 16).bfloat16() for heads in (4, 2, 2))
    mask = {"causal": None, "allowed": torch.rand(2, 1, 40, 40) > 0.3, "added": torch.randn(2, 4, 40, 40).bfloat16()}
    given = mask[masked]
    whole = None if given is None else given | torch.eye(40, dtype=torch.bool) if masked == "allowed" else given
    with torch.no_grad():
        made = attend(q, k, v, whole, masked == "causal")
        wanted = attend(q.float(), k.float(), v.float(), whole.float() if masked == "added" else whole, whole is None)
    assert torch.equal(made, wanted.bfloat16())


def test_a_stack_rounds_as_it_does_with_hardware(monkeypatch):
    """Both paths are bfloat16 of the same numbers, and as far from float32 as that type is."""
    torch.manual_seed(0)
    stack = llama(vocab=50, width=64, depth=3, heads=4, hidden=96, kv_heads=2).build().eval()
    layout, x = compile_layout(packed(30, 17)), torch.randn(47, 64)
    with torch.no_grad():
        exact = stack.logits(stack(x, layout))
        stack.bfloat16()
        said = {}
        for native in (False, True):
            monkeypatch.setattr(module, "native_bfloat16", lambda native=native: native)
            said[native] = stack.logits(stack(x.bfloat16(), layout)).float()
    errors = {native: (one - exact).abs().max() for native, one in said.items()}
    assert 0 < errors[False] < 1.5 * errors[True]
    assert errors[False] < 0.05 * exact.abs().max()
