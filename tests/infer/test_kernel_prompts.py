"""Prompts read by the kernels: what the backbone computes, to the last bit the same wherever they are cut."""

from itertools import pairwise

import pytest
import torch
from test_kernels import CASES, changed, close, full, made, positions_of

from sensorium.infer.cache import Cache
from sensorium.infer.kernels import program as module
from sensorium.infer.kernels.program import Program
from sensorium.infer.kernels.quantize import QuantLinear, QuantWeight


def read(program, cache, slot, x, position, *cuts):
    """x (T, D) read into a slot, cut at the given places -> (T, D)."""
    edges = [0, *cuts, len(x)]
    rows = []
    for first, end in pairwise(edges):
        at = list(range(first, end))
        rows.append(program.read(x[first:end], [slot] * len(at), at, position[first:end], cache))
    return torch.cat(rows)


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_one_pass_of_the_backbone(name):
    backbone = made(CASES[name])
    program, cache = Program(backbone), Cache.of(backbone, slots=2, capacity=64)
    x, position = torch.randn(45, backbone.config.width), positions_of(backbone, 45)
    whole = read(program, cache, 1, x, position)
    close(whole, full(backbone, x, position))
    assert torch.equal(read(program, cache, 0, x, position, 1, 8, 31), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 800, 1600])
def test_neither_company_nor_threads_nor_strips_change_a_bit(dtype, width, monkeypatch):
    """Widths that are no multiple of a vector, and those that take two panels and more, also where places are pairs."""
    backbone = made(CASES["llama"].replace(width=width)).to(dtype)
    program, cache = Program(backbone), Cache.of(backbone, slots=3, capacity=64)
    x, position = torch.randn(50, width).to(dtype), positions_of(backbone, 50)
    alone = read(program, cache, 0, x, position)
    threads = torch.get_num_threads()
    monkeypatch.setattr(module, "STRIP", 7)
    try:
        torch.set_num_threads(3)
        assert torch.equal(read(program, cache, 1, x, position), alone)
    finally:
        torch.set_num_threads(threads)
    others = torch.randn(20, width).to(dtype)
    slots, places = [2] * 20 + [1] * 50, [*range(20), *range(50)]
    together = program.read(torch.cat([others, x]), slots, places, torch.tensor(places), cache)
    assert torch.equal(together[20:], alone)
    assert program.read(x[:0], [], [], position[:0], cache).shape == (0, width)


@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_kept_are_those_of_a_whole_pass(name, monkeypatch):
    """And all tokens leave their keys and values behind: what is said next is the same."""
    backbone = made(CASES[name])
    program, cache = Program(backbone), Cache.of(backbone, slots=2, capacity=64)
    cache.exchange(0, 1)
    x, position = torch.randn(46, backbone.config.width), positions_of(backbone, 46)
    whole = read(program, cache, 1, x, position)
    monkeypatch.setattr(module, "STRIP", 20)
    for kept in ([], [44], [0, 7, 8, 19, 43], list(range(45))):
        got = program.read(x[:45], [0] * 45, list(range(45)), position[:45], cache, kept)
        assert torch.equal(got, whole[kept])
        assert torch.equal(program.read(x[45:], [0], [45], position[45:], cache), whole[45:])


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gemma 3"])
def test_long_prompts_are_read_over_several_blocks_of_keys(name):
    """Attention meets keys in blocks of 128, prompts pass in strips of 288, and some layers see a window."""
    backbone = made(CASES[name])
    program, cache = Program(backbone), Cache.of(backbone, slots=2, capacity=600)
    x, position = torch.randn(600, backbone.config.width), positions_of(backbone, 600)
    whole = read(program, cache, 1, x, position)
    close(whole, full(backbone, x, position))
    assert torch.equal(read(program, cache, 0, x, position, 127, 129, 400), whole)


def test_tokens_are_said_behind_a_prompt_that_was_read():
    backbone = made(CASES["gemma 2"])
    program, cache = Program(backbone), Cache.of(backbone, slots=1, capacity=64)
    x, position = torch.randn(30, backbone.config.width), positions_of(backbone, 30)
    rows = [read(program, cache, 0, x[:26], position[:26])]
    rows += [program.step(x[at : at + 1], [0], [at], position[at : at + 1], cache) for at in range(26, 30)]
    close(torch.cat(rows), full(backbone, x, position))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", [CASES["llama"], changed(ffn={"hidden": 71})], ids=["even", "odd"])
def test_bfloat16_is_rounded_where_the_backbone_rounds(config, half):
    """Whether the kernels keep keys and values, which the backbone's are, in bfloat16 or not, and whether a layer's
    inputs make pairs, which some CPUs multiply at once."""
    backbone = made(config).to(torch.bfloat16)
    program, cache = Program(backbone), Cache.of(backbone, slots=1, capacity=64, half=half)
    x, position = torch.randn(40, backbone.config.width).bfloat16(), positions_of(backbone, 40)
    got = read(program, cache, 0, x, position)
    assert got.dtype == torch.bfloat16
    exact = full(made(config).to(torch.bfloat16).float(), x.float(), position)
    own = (full(backbone, x, position).float() - exact).abs().max()
    assert (got.float() - exact).abs().max() <= 1.5 * own


@pytest.mark.parametrize("width", [12, 16, 24])
@pytest.mark.parametrize("heads", [2, 4, 6])
def test_keys_and_values_in_bfloat16_are_read_as_they_are(width, heads):
    """One token and many read from halves what they read from the same numbers in float32, to the last bit. The new
    tokens' own keys and values are zero, so that rounding does not tell them apart; their queries are biases."""
    backbone = made(changed(attention={"bias": True, "heads": heads, "head_width": width}, depth=1))
    for one in (backbone.blocks[0].attention.k, backbone.blocks[0].attention.v):
        one.bias.data.zero_()
    x, position = torch.randn(300, backbone.config.width), positions_of(backbone, 303)
    new, places, more = torch.zeros(3, backbone.config.width), [300, 301, 302], position[300:]
    wide, half = (Cache(1, 2, 320, 2, width, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    program = Program(backbone)
    for cache in (wide, half):
        read(program, cache, 1, x, position[:300])
    for mine, exact in zip(half._stores()[:2], wide._stores()[:2]):
        assert exact[1, :300].abs().amax() > 0.5
        assert torch.equal(mine, exact.bfloat16())
        exact.copy_(mine)
    for pass_ in (program.step, program.read):
        got, expected = (pass_(new, [1] * 3, places, more, cache) for cache in (half, wide))
        assert torch.equal(got, expected)
        assert expected.abs().max() > 0.1
        assert not torch.equal(expected[0], expected[2])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_layers_of_codes_read_prompts(kind):
    """As the same weights in float32; q is of codes beside others that are not, and outputs do not fill a panel."""
    exact, coded = (made(changed(ffn={"hidden": 72})) for _ in range(2))
    for name in ("attention.q", "attention.o", "ffn.gate", "ffn.up", "ffn.down"):
        for index in range(2):
            parent, _, leaf = f"blocks.{index}.{name}".rpartition(".")
            weight = QuantWeight(coded.get_submodule(f"{parent}.{leaf}").weight, kind)
            setattr(coded.get_submodule(parent), leaf, QuantLinear(weight))
            exact.get_submodule(f"{parent}.{leaf}").weight.data.copy_(weight.values())
    program, cache = Program(coded), Cache.of(coded, slots=2, capacity=64)
    x, position = torch.randn(45, 40), positions_of(coded, 45)
    whole = read(program, cache, 1, x, position)
    close(whole, full(exact, x, position), 1e-4)
    assert torch.equal(read(program, cache, 0, x, position, 1, 8, 31), whole)
