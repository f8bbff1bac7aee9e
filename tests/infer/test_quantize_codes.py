"""Weights as codes: what is lost, where they lie, and products with them in C, in plain C and in torch."""

import ctypes
import subprocess

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from sensorium.infer.kernels import build, codes
from sensorium.infer.kernels import quantize as layers
from sensorium.infer.kernels.codes import GROUP, decode, decode_rows, encode
from sensorium.infer.kernels.quantize import QuantWeight

KINDS = ("int8", "int4")
PUBLISHED = {"int8": Type.Q8_0, "int4": Type.Q4_1}


def weight(rows=37, inputs=200, seed=0):
    """Normal numbers, of which some are far out, as in trained weights."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, inputs, generator=generator) * 0.05
    made[::5, ::11] *= 4
    return made


def published(made, kind):
    """What llama.cpp's reference makes of a weight."""
    stored = quantize(made.numpy(), PUBLISHED[kind])
    return torch.from_numpy(dequantize(stored, PUBLISHED[kind]).copy()).view_as(made)


def error(found, made):
    return float((found - made).double().square().sum())


def without_kernels(monkeypatch):
    monkeypatch.setattr(codes, "library", lambda: None)
    monkeypatch.setattr(layers, "library", lambda: None)


def test_bytes_are_the_nearest_codes():
    made = weight()
    found = QuantWeight(made, "int8").values()
    padded = torch.nn.functional.pad(made, (0, -made.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scale = (padded.abs().amax(2, keepdim=True) / 127).half().float()
    off = torch.nn.functional.pad(found - made, (0, -made.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    # a scale that was rounded down leaves the largest of a group beyond the last code
    assert bool((off.abs() <= scale * (0.5 + 127 * 2**-11)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [True, False])
def test_less_is_lost_than_in_llama_cpp(kind, kernels, monkeypatch):
    if not kernels:
        without_kernels(monkeypatch)
    made = weight(256, 320)
    lost, theirs = error(QuantWeight(made, kind).values(), made), error(published(made, kind), made)
    assert 0 < lost <= theirs * (1.0 if kind == "int8" else 0.9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [True, False])
def test_what_was_written_by_llama_cpp_is_found_again(kind, kernels, monkeypatch):
    if not kernels:
        without_kernels(monkeypatch)
    made = published(weight(64, 96), kind)
    torch.testing.assert_close(QuantWeight(made, kind).values(), made, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_what_was_written_by_llama_cpp_is_found_again_where_it_was_stored_in_16_bits(dtype):
    made = published(weight(64, 96), "int4")
    assert torch.equal(encode(made.to(dtype), "int4")[0], encode(made, "int4")[0])


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("size", [0.0004, 0.002])  # a thirtieth of a step, and a sixth
def test_what_was_trained_since_is_not_undone(size, kernels, monkeypatch):
    """The part of small changes to weights of 4 bits that is left in 4 bits again, and what nearest codes leave."""
    if not kernels:
        without_kernels(monkeypatch)
    base = published(weight(512, 320), "int4")
    change = torch.randn(base.shape, generator=torch.Generator().manual_seed(1)) * size
    found = QuantWeight(base + change, "int4").values() - base
    monkeypatch.setattr(codes, "_kept_apart", lambda groups, *searched: searched[:3])
    nearest = QuantWeight(base + change, "int4").values() - base

    def left(found):
        return float((found * change).sum() / change.square().sum())

    assert left(found) == pytest.approx(1, abs=0.1)
    assert left(nearest) < 0.3


def test_both_searches_lose_the_same():
    groups = weight(400, GROUP)
    kernels = codes.library()
    assert kernels is not None
    lost = []
    for found, scale, least, said in (codes._searched(groups), codes._searched_in_c(kernels, groups)):
        lost.append(error(found.float() * scale.float() + least.float(), groups))
        assert float(said.sum()) == pytest.approx(lost[-1], rel=1e-4)
    assert lost[0] == pytest.approx(lost[1], rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_panels_lie_where_they_are_looked_for(kind):
    held = QuantWeight(weight(), kind)
    whole = decode(held.codes, held.scales)
    assert whole.shape == (48, 224)
    assert not whole[37:].any()
    assert not whole[:37, 200:].any() or kind == "int4"  # nothing is read there: inputs beyond the last are zeros
    rows = torch.tensor([36, 0, 17, 17])
    assert torch.equal(decode_rows(held.codes, held.scales, rows), whole[rows])
    assert torch.equal(held.rows(rows.view(2, 2)), held.values()[rows].view(2, 2, 200))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(held._transposed(16, 37, dtype), held.values()[16:].T.to(dtype))


def test_sizes_are_those_of_llama_cpp():
    made = weight(64, 320)
    for kind, bits in (("int8", 8.5), ("int4", 5.0)):
        assert QuantWeight(made, kind).nbytes == made.numel() * bits / 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("lost", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_no_numbers_are_refused(kind, kernels, lost, monkeypatch):
    if not kernels:
        without_kernels(monkeypatch)
    made = weight()
    made[3, 7] = lost
    with pytest.raises(ValueError, match="not finite, or too large"):
        encode(made, kind)


# ---- products


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 17, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_weights(kind, rows, dtype):
    held = QuantWeight(weight(), kind)
    x = torch.randn(rows, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double() @ held.values().double().T
    found = held.product(x)
    assert found.dtype == dtype
    close = 1e-4 if dtype == torch.float32 else 1e-2
    assert float((found - exact).norm() / exact.norm()) < close


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_among_others(kind):
    held = QuantWeight(weight(100, 96), kind)
    x = torch.randn(32, 96, generator=torch.Generator().manual_seed(1))
    among = held.product(x)
    for count in (1, 2, 3, 5, 11):
        assert torch.equal(torch.cat([held.product(part) for part in x.split(count)]), among)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_products_without_kernels(kind, rows, monkeypatch):
    held = QuantWeight(weight(600, 96), kind)
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(1))
    with_them = held.product(x)
    without_kernels(monkeypatch)
    monkeypatch.setattr(layers, "TILE", 1 << 14)  # several tiles
    torch.testing.assert_close(held.product(x), with_them, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_c_is_what_the_vectors_are(kind, tmp_path):
    vectors = codes.library()
    assert vectors is not None
    command = [build.compiler(), "-O2", "-std=gnu11", "-fPIC", "-fopenmp", "-shared", "-DQUANT_PLAIN"]
    subprocess.run([*command, str(build.FOLDER / "quantize.c"), "-o", str(tmp_path / "plain.so"), "-lm"], check=True)
    plain = ctypes.CDLL(str(tmp_path / "plain.so"))
    plain.quant_product.argtypes = vectors.quant_product.argtypes
    held = QuantWeight(weight(), kind)
    x = torch.randn(7, 200, generator=torch.Generator().manual_seed(1))
    out = torch.zeros(2, 7, 37)
    for number, found in enumerate((vectors, plain)):
        place = held.codes.data_ptr(), held.scales.data_ptr(), 37, 200, x.data_ptr(), 7, out[number].data_ptr(), 1
        assert found.quant_product(held.bits, *place) == 0
    torch.testing.assert_close(out[0], out[1], rtol=1e-5, atol=1e-6)  # one fuses products and sums


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_no_number_gives_none(kind, lost):
    x = torch.ones(2, 96)
    x[1, 40] = lost
    found = QuantWeight(weight(20, 96), kind).product(x)
    assert bool(found[0].isfinite().all())
    assert not bool(found[1].isfinite().any())


def test_gradients_reach_the_input():
    held = QuantWeight(weight(20, 96), "int8")
    x = torch.ones(2, 96, requires_grad=True)
    held.product(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], held.values().sum(0))


def test_codes_keep_their_type():
    held = QuantWeight(weight(20, 96), "int4").to(torch.float64)
    assert (held.codes.dtype, held.scales.dtype) == (torch.int16, torch.float16)
    assert held.product(torch.ones(0, 96)).shape == (0, 20)
