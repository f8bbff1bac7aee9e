"""Tiny GGUF files written by the format's own package, and the same files damaged."""

import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from sensorium.convert.gguf import GGUF, half_split, read_gguf
from sensorium.errors import UserError
from sensorium.tokenizer import byte_symbols

WIDTH, HIDDEN, HEADS, KV_HEADS, DEPTH = 64, 96, 4, 2, 2
TOKENS = [*byte_symbols().values(), "Ġ1", "th", "the", "<|im_start|>", "<|im_end|>"]
VOCAB = len(TOKENS)
QUANTISED = gguf.GGMLQuantizationType.Q4_1


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"token_embd": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    for index in range(DEPTH):
        kv_width = WIDTH // HEADS * KV_HEADS
        shapes |= {
            f"blk.{index}.{name}": shape
            for name, shape in {
                "attn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (kv_width, WIDTH),
                "attn_v": (kv_width, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_norm": (WIDTH,),
                "ffn_gate": (HIDDEN, WIDTH),
                "ffn_up": (HIDDEN, WIDTH),
                "ffn_down": (WIDTH, HIDDEN),
            }.items()
        }
    return {name + ".weight": generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, tensors: dict[str, np.ndarray], quantised: str = "", arch: str = "llama", **extra) -> Path:
    """A GGUF file; tensors whose name contains `quantised` are stored as Q4_1."""
    writer = gguf.GGUFWriter(path, arch)
    facts = {
        "block_count": DEPTH,
        "context_length": 128,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }
    for key, value in (facts | extra).items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in TOKENS])
    writer.add_token_merges(["Ġ 1", "t h", "th e"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_chat_template("{{ messages }}")
    for name, value in tensors.items():
        if quantised and quantised in name:
            writer.add_tensor(name, gguf.quants.quantize(value, QUANTISED), raw_dtype=QUANTISED)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", weights())


def test_facts(tiny: Path) -> None:
    with GGUF(tiny) as file:
        facts = file.architecture()
    assert {key: value for key, value in facts.items() if key != "name"} == {
        "vocab": VOCAB,
        "width": 64,
        "depth": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_width": 16,
        "hidden": 96,
        "theta": 100_000.0,
        "eps": 1e-5,
        "tied": True,
        "context": 128,
    }


def test_weights_have_backbone_names_and_values(tiny: Path) -> None:
    _, state, _ = read_gguf(tiny)
    stored = weights()
    assert len(state) == 2 + 9 * DEPTH
    for name, source in (
        ("embed.weight", "token_embd.weight"),
        ("norm.weight", "output_norm.weight"),
        ("blocks.1.norm1.weight", "blk.1.attn_norm.weight"),
        ("blocks.1.attention.v.weight", "blk.1.attn_v.weight"),
        ("blocks.0.attention.o.weight", "blk.0.attn_output.weight"),
        ("blocks.0.norm2.weight", "blk.0.ffn_norm.weight"),
        ("blocks.1.ffn.gate.weight", "blk.1.ffn_gate.weight"),
        ("blocks.1.ffn.up.weight", "blk.1.ffn_up.weight"),
        ("blocks.1.ffn.down.weight", "blk.1.ffn_down.weight"),
    ):
        torch.testing.assert_close(state[name], torch.from_numpy(stored[source]), rtol=0, atol=0)


def test_half_split_by_hand() -> None:
    rows = torch.arange(8.0)[:, None]  # two heads of four numbers, x0 y0 x1 y1 each
    assert half_split(rows, heads=2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_half_split_keeps_attention_scores() -> None:
    """Interleaved rotation of the stored q, k and half-split rotation of the converted ones give equal scores."""
    torch.manual_seed(0)
    heads, width = 2, 8
    query, key = torch.randn(heads * width, 5), torch.randn(heads * width, 5)
    x = torch.randn(5, dtype=torch.float64)
    angle = torch.arange(1, width // 2 + 1, dtype=torch.float64)

    def interleaved(weight: torch.Tensor, place: int) -> torch.Tensor:
        pairs = torch.view_as_complex((weight.double() @ x).reshape(heads, width // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle * place)).flatten(1)

    def halves(weight: torch.Tensor, place: int) -> torch.Tensor:
        first, second = (half_split(weight, heads).double() @ x).reshape(heads, 2, width // 2).unbind(1)
        cos, sin = torch.cos(angle * place), torch.sin(angle * place)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], 1)

    expected = (interleaved(query, 7) * interleaved(key, 3)).sum(1)
    torch.testing.assert_close((halves(query, 7) * halves(key, 3)).sum(1), expected)


def test_quantised_weights_and_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "q.gguf", weights(), quantised="ffn_up")
    with GGUF(path) as file:
        full = dict(file.tensors())
        small = dict(file.tensors(torch.bfloat16))
    original = weights()["blk.0.ffn_up.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(original, QUANTISED), QUANTISED)
    assert full["blocks.0.ffn.up.weight"].dtype == torch.float32
    torch.testing.assert_close(full["blocks.0.ffn.up.weight"], torch.from_numpy(expected), rtol=0, atol=0)
    assert np.abs(expected - original).max() < 0.25  # 4 bits over about 5 standard deviations
    assert all(tensor.dtype == torch.bfloat16 for tensor in small.values())


def test_weights_own_their_memory(tiny: Path) -> None:
    with GGUF(tiny) as file:
        name, tensor = next(file.tensors())
    tensor += 1  # the file is closed and was mapped read-only
    assert name == "embed.weight"


def test_untied_head(tmp_path: Path) -> None:
    tensors = weights() | {"output.weight": np.ones((VOCAB, WIDTH), np.float32)}
    facts, state, _ = read_gguf(write(tmp_path / "untied.gguf", tensors))
    assert facts["tied"] is False
    assert state["head.weight"].sum() == VOCAB * WIDTH


def test_tokenizer(tiny: Path) -> None:
    _, _, tokenizer = read_gguf(tiny)
    assert tokenizer.special == {"<|im_start|>": VOCAB - 2, "<|im_end|>": VOCAB - 1}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (None, VOCAB - 1, None)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.encode("the") == [258]
    assert tokenizer.encode(" 12") == [32, 49, 50], "digits are cut off before merging"
    assert tokenizer.encode_trusted("the<|im_end|>") == [258, VOCAB - 1]
    assert VOCAB - 1 not in tokenizer.encode("the<|im_end|>")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("blk.1.attn_k.weight"), "missing .'blocks.1.attention.k.weight'"),
        (lambda t: t.update({"blk.0.attn_q.bias": t["output_norm.weight"]}), "unexpected .'blk.0.attn_q.bias'"),
        (lambda t: t.update({"blk.2.attn_norm.weight": t["output_norm.weight"]}), "unexpected .'blk.2.attn_norm"),
        (lambda t: t.update({"blk.0.attn_v.weight": t["blk.0.attn_q.weight"]}), r"has shape \(64, 64\), expected"),
        (lambda t: t.pop("token_embd.weight"), "no token embedding"),
        (lambda t: t.update({"rope_freqs.weight": t["output_norm.weight"]}), "scales its rotary positions"),
    ],
)
def test_weights_that_are_not_a_llamas(tmp_path: Path, change, expected: str) -> None:
    tensors = weights()
    change(tensors)
    with pytest.raises(UserError, match=expected):
        read_gguf(write(tmp_path / "odd.gguf", tensors))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"arch": "falcon"}, "architecture 'falcon'"),
        ({"attention.head_count": 5}, "5 heads of 12"),
        ({"attention.head_count_kv": 3}, "cannot share 3 key-value heads"),
        ({"block_count": 10**9}, "announces 1000000000 blocks"),
        ({"embedding_length": 0}, "embedding_length is 0"),
    ],
)
def test_facts_that_cannot_be(tmp_path: Path, extra: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read_gguf(write(tmp_path / "odd.gguf", weights(), **extra))


def test_a_file_cut_anywhere_is_an_error(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    cuts = [*range(0, 64), *range(64, len(whole), len(whole) // 150), len(whole) - 1]
    for cut in cuts:
        part = tmp_path / "part.gguf"
        part.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"part\.gguf"):
            read_gguf(part)


def test_a_damaged_header_is_read_or_refused(tiny: Path, tmp_path: Path) -> None:
    """No byte of the header can bring anything but a result or a UserError."""
    whole = tiny.read_bytes()
    header = whole.index(b"blk.1.ffn_down.weight")
    dice = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 4])):
            damaged[dice.randrange(header)] = dice.choice([0, 1, 9, 0x7F, 0xFF])
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            read_gguf(path)
        except UserError:
            refused += 1
    assert refused > 50


def test_announced_billions_are_refused_at_once(tmp_path: Path) -> None:
    key = struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 0, 2**62)
    headers = {
        "array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + array,
        "pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        "tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        "string": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63),
    }
    began = time.monotonic()
    for name, header in headers.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(header + bytes(64))
        with pytest.raises(UserError, match=r"hold|cut short"):
            GGUF(path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read as a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "does not begin with the letters GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version is 9"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        GGUF(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        GGUF(tmp_path / "none.gguf")
