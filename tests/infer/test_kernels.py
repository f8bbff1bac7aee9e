"""The decode step in C computes what the backbone computes, for every setting that has operations."""

import pytest
import torch
from tiny_fused import ask
from torch import nn

from sensorium.infer.cache import Cache
from sensorium.infer.engine import Engine
from sensorium.infer.kernels import build
from sensorium.infer.kernels.program import Newest, Program
from sensorium.infer.kernels.quantize import QuantLinear, QuantWeight
from sensorium.infer.sampling import Sampling
from sensorium.mask import Layout
from sensorium.nn.backbone import Backbone, Local, bert, llama, opt, t5
from sensorium.nn.lora import LoRA, add_lora
from sensorium.nn.modulation import Modulation
from sensorium.nn.moe import MixtureOfExperts
from sensorium.nn.norm import Norm
from sensorium.nn.readout import Readout
from sensorium.nn.relative import LinearBias
from sensorium.nn.rope import Rope, Scaling
from sensorium.nn.sinusoid import Sinusoid
from sensorium.sequence import Sample

PLAIN = llama(vocab=61, width=40, depth=2, heads=4, kv_heads=2, hidden=50, tied=True)


def changed(block=None, attention=None, ffn=None, **changes):
    """PLAIN with other settings of its parts."""
    value = PLAIN.block
    value = value.replace(
        attention=value.attention.replace(**{"head_width": 12, **(attention or {})}),
        ffn=value.ffn.replace(**(ffn or {})),
    )
    return PLAIN.replace(block=value.replace(**(block or {})), **changes)


LAYER = Norm.Config(kind="layer", eps=1e-3)
CASES = {
    "llama": PLAIN,
    "own head": changed(tied=False),
    "one kv head": changed(attention={"kv_heads": 1}),
    "opt": opt(vocab=53, width=32, depth=2, heads=4, hidden=44, positions=80).replace(unused_positions=2),
    "gpt-2": changed({"norm": LAYER}, {"bias": True}, {"gated": False, "activation": "gelu", "bias": True}, rope=None,
                     positions=80),
    "post": bert(vocab=40, width=24, depth=2, heads=3, hidden=40, positions=90).replace(
        types=2, readout=Readout.Config(dense="gelu", bias=True)),
    "gemma 2": changed({"norm": Norm.Config(zero_centered=True), "place": "both"},
                       {"soft_cap": 2.0, "scale_width": 7.0},
                       {"activation": "gelu_tanh"}, scaled_embed=True, soft_cap=3.0,
                       local=Local(window=5, layers=(0,))),
    "gemma 3": changed({"norm": Norm.Config(zero_centered=True), "place": "both"},
                       {"qk_norm": Norm.Config(zero_centered=True)}, {"activation": "gelu_tanh"},
                       local=Local(window=4, layers=(1,), rope=Rope.Config(theta=50.0))),
    "behind": changed({"place": "behind", "layer_scale": 0.7, "norm": LAYER}),
    "both, scaled": changed({"place": "both", "layer_scale": 0.7}),
    "pre, scaled": changed({"layer_scale": 0.3}),
    "two norms": changed({"norm2": LAYER.replace(zero_centered=True)}),
    "no norm weights": changed({"norm": LAYER.replace(affine=False), "norm2": Norm.Config(affine=False)}),
    "qwen 2": changed(attention={"bias": True, "out_bias": False}),
    "no key bias": changed(attention={"bias": True, "key_bias": False}),
    "qwen 3": changed(attention={"qk_norm": True}),
    "chameleon": changed(attention={"qk_norm": LAYER, "qk_norm_by_head": True}),
    "rms by head": changed(attention={"qk_norm": True, "qk_norm_by_head": True}),
    "persimmon": changed({"norm": LAYER}, {"qk_norm": LAYER, "bias": True},
                         {"gated": False, "activation": "relu2", "bias": True}, rope=Rope.Config(share=0.5)),
    "sub-norm": changed({"norm": LAYER}, {"inner_norm": LAYER}, {"inner_norm": LAYER, "gated": False}, rope=None,
                        sinusoid=Sinusoid.Config(first=2)),
    "quick gelu": changed(ffn={"activation": "quick_gelu"}),
    "relu": changed(ffn={"activation": "relu"}),
    "unscaled": changed(attention={"scaled": False}),
    "m-rope": changed(rope=Rope.Config(sections=(1, 2, 3))),
    "llama 3": changed(rope=Rope.Config(scaling=Scaling(kind="llama3", factor=8.0, original=32))),
    "yarn": changed(rope=Rope.Config(scaling=Scaling(kind="yarn", factor=4.0, original=16, low=1, high=32))),
    "embed norm": changed(embed_norm=True, final_norm=False),
    "readout": changed(readout=Readout.Config(scale=0.4, bias=True)),
    "no vocabulary": changed(vocab=0, tied=True),
    "no blocks": PLAIN.replace(depth=0),
}  # fmt: skip


def made(config: Backbone.Config) -> Backbone:
    """Weights strong enough that nothing is nearly alike; norms, biases and scales are not what they begin as."""
    torch.manual_seed(0)
    backbone = config.build().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.25)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def positions_of(backbone, count, start=0):
    """(count, 3), the columns different where the model tells them apart."""
    at = torch.arange(start, start + count)[:, None].expand(-1, 3).clone()
    if backbone.rope is not None and backbone.rope.config.sections is not None:
        at[:, 1] //= 2
        at[3:, 2] += 5
    return at


@torch.no_grad()
def full(backbone, x, position):
    """One document x (T, D) in one pass of torch."""
    count = len(x)
    return backbone(x, Layout(torch.arange(count)[None], None, None, True, position, lengths=[count]))


def close(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    scale = expected.abs().max()
    assert scale > 0.01
    assert (got - expected).abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", CASES)
def test_token_by_token_is_one_pass(name):
    backbone = made(CASES[name])
    program, cache = Program(backbone), Cache.of(backbone, slots=2, capacity=8)
    x, position = torch.randn(21, backbone.config.width), positions_of(backbone, 21)
    rows = []
    for at in range(21):
        cache.lengths[1] = at
        cache.reserve(at + 1)  # grows from 8 to 32
        rows.append(program.step(x[at : at + 1], [1], [at], position[at : at + 1], cache))
    expected = full(backbone, x, position)
    close(torch.cat(rows), expected)
    if backbone.config.vocab:
        close(program.logits(expected), backbone.logits(expected).detach())
    else:
        with pytest.raises(ValueError, match="no logits"):
            program.logits(expected)


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gemma 3", "m-rope", "opt"])
def test_several_tokens_of_some_slots_in_one_call(name):
    """Documents of other lengths in slots 3, 0 and 2: each piece of each is what one pass of it makes."""
    backbone = made(CASES[name])
    program, cache = Program(backbone), Cache.of(backbone, slots=4, capacity=64)
    lengths, steps = {3: 40, 0: 13, 2: 26}, 13
    documents = {slot: torch.randn(length, backbone.config.width) for slot, length in lengths.items()}
    at = {slot: positions_of(backbone, length, start=slot) for slot, length in lengths.items()}
    got = {slot: [] for slot in lengths}
    for step in range(steps):
        taken = {slot: range(step * length // steps, (step + 1) * length // steps) for slot, length in lengths.items()}
        slots = [slot for slot, places in taken.items() for _ in places]
        places = [place for places in taken.values() for place in places]
        x = torch.cat([documents[slot][list(places)] for slot, places in taken.items()])
        position = torch.cat([at[slot][list(places)] for slot, places in taken.items()])
        made_rows = program.step(x, slots, places, position, cache)
        for slot, rows in zip(taken, made_rows.split([len(places) for places in taken.values()])):
            got[slot].append(rows)
    for slot, document in documents.items():
        close(torch.cat(got[slot]), full(backbone, document, at[slot]))


@torch.no_grad()
def test_a_prompt_read_by_torch_is_read_on():
    backbone = made(CASES["gemma 3"])
    program, cache = Program(backbone), Cache.of(backbone, slots=3, capacity=16)
    x, position = torch.randn(9, 40), positions_of(backbone, 9)
    layout = Layout(torch.arange(6)[None], None, None, True, position[:6], lengths=[6])
    with cache.step([2], layout):
        backbone(x[:6], layout, cache)
    got = program.step(x[6:], [2] * 3, [6, 7, 8], position[6:, 0], cache)
    close(got, full(backbone, x, position)[6:])


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gpt-2", "chameleon", "behind"])
def test_bfloat16_is_nearer_to_the_truth_than_torch(name):
    """The same rounded weights in float32 are the truth: torch rounds after every operation, this before products."""
    backbone = made(CASES[name]).bfloat16()
    exact = made(CASES[name])
    exact.load_state_dict({key: value.float() for key, value in backbone.state_dict().items()})
    x, position = torch.randn(12, backbone.config.width).bfloat16(), positions_of(backbone, 12)
    expected = full(exact, x.float(), position)
    usual = (full(backbone, x, position).float() - expected).pow(2).mean().sqrt()
    program, cache = Program(backbone), Cache.of(backbone, slots=1, capacity=16)
    got = program.step(x, [0] * 12, list(range(12)), position, cache)
    assert got.dtype == torch.bfloat16
    error = (got.float() - expected).pow(2).mean().sqrt()
    assert 0 < error <= usual
    hidden = expected.bfloat16()
    logits = program.logits(hidden)
    assert logits.dtype == torch.float32
    close(logits, exact.logits(hidden.float()).detach(), 1e-2 if backbone.readout else 1e-5)


WIDER = llama(vocab=203, width=104, depth=2, heads=4, kv_heads=2, hidden=141, tied=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [PLAIN, WIDER], ids=["40", "104"])
def test_a_row_is_the_same_whatever_stands_beside_it(dtype, config):
    backbone = made(config).to(dtype)
    program, cache = Program(backbone), Cache.of(backbone, slots=17, capacity=300)
    for layer in range(2):
        cache.layer(layer).keys.normal_()
        cache.layer(layer).values.normal_()
    x = torch.randn(17, config.width).to(dtype)
    places = [3 + 17 * row for row in range(17)]
    position = torch.tensor(places)
    alone = [program.step(x[row : row + 1], [row], [places[row]], position[row : row + 1], cache) for row in range(17)]
    single = [program.logits(one) for one in alone]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for count in range(1, 18):
                some = list(range(count))[::-1]
                got = program.step(x[some], some, [places[row] for row in some], position[some], cache)
                assert torch.equal(got, torch.cat([alone[row] for row in some]))
                assert torch.equal(program.logits(got), torch.cat([single[row] for row in some]))
    finally:
        torch.set_num_threads(before)


def test_long_texts_are_read_in_pieces():
    """More than 16 pieces of 64 keys, so that pieces grow; a window in one of the layers."""
    backbone = made(changed(local=Local(window=150, layers=(1,))))
    program, cache = Program(backbone), Cache.of(backbone, slots=1, capacity=2600)
    x, position = torch.randn(2600, 40), positions_of(backbone, 2600)
    expected = full(backbone, x, position)
    got = [program.step(part, [0] * len(part), at.tolist(), at, cache)
           for part, at in zip(x.split(100), torch.arange(2600).split(100))]  # fmt: skip
    close(torch.cat(got), expected, 3e-5)


def test_positions_beyond_the_kept_table():
    backbone = made(PLAIN)
    program = Program(backbone)
    x, far = torch.randn(3, 40), torch.tensor([70_000, 70_001, 70_002])
    got = program.step(x, [0] * 3, [0, 1, 2], far, Cache.of(backbone, slots=1, capacity=4))
    close(got, full(backbone, x, far[:, None].expand(-1, 3)))


RELATIVE = LinearBias.Config()
NOTHING = {
    "a bias of scores": changed(relative=RELATIVE, rope=None),
    "cross-attention": t5(vocab=9, width=8, depth=1, heads=2, hidden=8, decoder=True).replace(relative=None),
    "modulation": changed({"modulation": Modulation.Config()}),
    "routes": changed({"routes": 2}),
    "MixtureOfExperts": changed({"ffn": MixtureOfExperts.Config(hidden=8, experts=2, top=1)}),
}


@pytest.mark.parametrize("words", NOTHING)
def test_what_has_no_operation_is_said(words):
    backbone = NOTHING[words].build()
    assert words in str(Program.missing(backbone))
    assert Program.of(backbone) is None


def test_other_layers_and_types_are_said_and_found():
    backbone = made(PLAIN)
    newest = Newest(backbone)
    program = newest.program()
    assert program is not None
    assert Program.missing(backbone) is None
    assert newest.program() is program
    backbone.bfloat16()
    moved = newest.program()
    assert moved is not None
    assert moved is not program
    assert newest.program() is moved
    add_lora(backbone, {"blocks.1.ffn.up": LoRA(rank=2)})
    assert newest.program() is None
    assert "blocks.1.ffn.up is a LoRALinear" in str(Program.missing(backbone))
    assert "float64" in str(Program.missing(made(PLAIN).double()))
    assert "meta" in str(Program.missing(PLAIN.build().to("meta")))


def test_input_that_does_not_fit_is_refused():
    backbone = made(PLAIN)
    program, cache, x, at = (
        Program(backbone),
        Cache.of(backbone, slots=2, capacity=4),
        torch.randn(1, 40),
        torch.zeros(1),
    )
    for slots, places in (([2], [0]), ([0], [4]), ([0, 1], [0]), ([-1], [0])):
        with pytest.raises(ValueError):
            program.step(x, slots, places, at, cache)
    with pytest.raises(ValueError, match="expected float32 or bfloat16"):
        program.step(x.double(), [0], [0], at, cache)
    with pytest.raises(ValueError, match="the cache holds heads"):
        program.step(x, [0], [0], at, Cache(2, 1, 4, 4, 9))
    with pytest.raises(ValueError, match="float32"):
        program.step(x, [0], [0], at, Cache(2, 1, 4, 2, 10, torch.float16))
    assert program.step(x[:0], [], [], at[:0], cache).shape == (0, 40)


def test_without_a_compiler_it_is_said_once_and_torch_decodes(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    build._found.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no-such-compiler.*install gcc or clang"):
            assert Program.of(made(PLAIN)) is None
        assert "C compiler" in str(Program.missing(made(PLAIN)))
    finally:
        build._found.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    (tmp_path / "broken.c").write_text("int one = two;")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(build.Unavailable, match=r"(?s)could not build the decode kernels.*broken\.c"):
        build._built()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-DSENSORIUM_WIDE",), ("-O2",)], ids=str)
def test_other_widths_of_vectors_agree(monkeypatch, tmp_path, flags):
    """Vectors of 16, and those of a CPU of which nothing is known, whatever this one has."""
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, *flags))
    if flags == ("-O2",):
        monkeypatch.setattr(build, "NATIVE", ("",))
    build._found.cache_clear()
    try:
        for name in ("llama", "gemma 2", "chameleon", "gpt-2"):
            test_token_by_token_is_one_pass(name)
            test_bfloat16_is_nearer_to_the_truth_than_torch(name)
        test_a_row_is_the_same_whatever_stands_beside_it(torch.bfloat16, WIDER)
    finally:
        build._found.cache_clear()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_layers_of_codes(kind):
    """Beside the same weights in float32, which lose nothing to the rounding of inputs that codes are multiplied by;
    rows are alone what they are together. Some layers are codes, some are not."""
    exact, coded = (made(changed(attention={"bias": True}, ffn={"hidden": 72}, tied=False)) for _ in range(2))
    for name in ("attention.q", "attention.v", "attention.o", "ffn.gate", "ffn.up", "ffn.down"):
        for index in range(2):
            parent, _, leaf = f"blocks.{index}.{name}".rpartition(".")
            linear = coded.get_submodule(f"{parent}.{leaf}")
            weight = QuantWeight(linear.weight, kind)
            setattr(coded.get_submodule(parent), leaf, QuantLinear(weight, linear.bias))
            exact.get_submodule(f"{parent}.{leaf}").weight.data.copy_(weight.values())
    weight = QuantWeight(coded.head.weight, "int8")
    coded.head = QuantLinear(weight)
    exact.head.weight.data.copy_(weight.values())
    program, cache = Program(coded), Cache.of(coded, slots=9, capacity=8)
    x, position = torch.randn(9, 40), positions_of(coded, 9)
    got = program.step(x[:8], [0] * 8, list(range(8)), position[:8], cache)
    expected = full(exact, x[:8], position[:8])
    close(got, expected, 1e-4)
    close(program.logits(expected), exact.logits(expected).detach(), 1e-4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        all_at_once = program.step(x, list(range(9)), [0] * 9, torch.zeros(9).long(), cache)
    finally:
        torch.set_num_threads(before)
    for row in range(9):
        alone = program.step(x[row : row + 1], [row], [0], torch.zeros(1).long(), cache)
        assert torch.equal(alone, all_at_once[row : row + 1])
        assert torch.equal(program.logits(alone), program.logits(all_at_once)[row : row + 1])


def test_an_engine_asks_once_whether_a_model_has_a_program(build, monkeypatch):
    """And again when its weights have moved."""
    of, asked = Program.of, []
    monkeypatch.setattr("sensorium.infer.decoding.Program.of", lambda stack: asked.append(stack) or of(stack))
    plain = llama(vocab=259, width=32, depth=2, heads=4, kv_heads=2, hidden=64)
    for backbone, has in ((plain, True), (plain.replace(block=plain.block.replace(routes=2)), False)):
        model, renderer = build(backbone=backbone)
        engine = Engine(model, renderer)
        asked.clear()
        for _ in range(3):
            engine.generate([Sample(ask("hi"))], Sampling(max_tokens=3))
        assert len(asked) == 1
        assert (engine.scheduler.decoder.program is not None) == has
        model.bfloat16()
        engine.rest()
        engine.generate([Sample(ask("hi"))], Sampling(max_tokens=3))
        assert len(asked) == 2
