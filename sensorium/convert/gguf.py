"""Read a Llama-architecture GGUF file: facts, weights under the Backbone's names, tokenizer.

The header is parsed here, with every count and length checked against the size of the file, because a damaged or
hostile header must end in a clear error and not in a loop or in all of the memory. The `gguf` package knows the
quantised formats. Weights come one tensor at a time from a memory map.

Format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from sensorium.errors import UserError
from sensorium.tokenizer import Tokenizer

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4

_OUTSIDE = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight", "output.weight": "head.weight"}
_INSIDE = {
    "attn_norm": "norm1",
    "attn_q": "attention.q",
    "attn_k": "attention.k",
    "attn_v": "attention.v",
    "attn_output": "attention.o",
    "ffn_norm": "norm2",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor as it lies in the file; `shape` in the usual order, (out, in) for a projection."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int


class GGUF:
    """An opened file. `path` is read on demand; use `close` or `with` to let go of it.

    metadata  the header's key-value pairs, arrays as lists
    Raises UserError where the file is no GGUF, is cut short, or says what cannot be true.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise UserError(f"{self.path} cannot be read as a GGUF file: {error}") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self._stored: dict[str, _Stored] = {}
        try:
            self._read_header()
        except UserError:
            self.close()
            raise
        except (struct.error, UnicodeDecodeError, RecursionError) as error:
            self.close()
            raise self._bad(f"its header is damaged near byte {self._at}: {error}") from error

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        # An array over the map may still be alive in the frames of an error; then the map goes with the array.
        with contextlib.suppress(BufferError):
            self._map.close()

    # ---- header

    def _bad(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}. Fetch the file again, or convert the model again.")

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise self._bad("it is not a GGUF file, it does not begin with the letters GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise self._bad(f"its GGUF version is {version}, versions 2 and 3 can be read")
        tensors, pairs = self._count(24), self._count(13)
        for _ in range(pairs):
            key = self._string()
            if key in self.metadata:
                raise self._bad(f"its header has the key {key!r} twice")
            self.metadata[key] = self._value(self._scalar("I"))
        found = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self._bad(f"its alignment is {alignment!r}, expected a power of two")
        base = -(-self._at // alignment) * alignment
        for info in found:
            end = base + info.start + info.size
            if end > len(self._map):
                raise self._bad(
                    f"it is cut short: tensor {info.name} ends at byte {end}, the file has {len(self._map)} bytes"
                )
            if info.name in self._stored:
                raise self._bad(f"it has the tensor {info.name} twice")
            self._stored[info.name] = _Stored(info.name, info.shape, info.kind, base + info.start, info.size)

    def _take(self, size: int) -> int:
        start = self._at
        if size > len(self._map) - start:
            raise self._bad(
                f"it is cut short: {size} bytes are announced at byte {start}, {len(self._map) - start} follow"
            )
        self._at = start + size
        return start

    def _scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self._map, self._take(layout.size))[0]

    def _count(self, least: int) -> int:
        """A number of things of at least `least` bytes each: more than the file can hold is refused at once."""
        count = self._scalar("Q")
        if count * least > len(self._map) - self._at:
            raise self._bad(f"its header announces {count} entries at byte {self._at - 8}, more than the file can hold")
        return count

    def _string(self) -> str:
        size = self._scalar("Q")
        start = self._take(size)
        return self._map[start : start + size].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._bad(f"its header has a value of unknown type {kind} at byte {self._at}")
        inner = self._scalar("I")
        if inner == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if inner not in _SCALARS:
            raise self._bad(f"its header has an array of type {inner} at byte {self._at}, which no model needs")
        count = self._count(struct.calcsize("<" + _SCALARS[inner]))
        layout = struct.Struct(f"<{count}{_SCALARS[inner]}")
        return list(layout.unpack_from(self._map, self._take(layout.size)))

    def _tensor_info(self) -> _Stored:
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._bad(f"tensor {name} has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        number, offset = self._scalar("I"), self._scalar("Q")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise self._bad(f"tensor {name} has the unknown quantisation {number}") from error
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        elements = 1
        for extent in shape:
            elements *= extent
        if elements == 0 or shape[-1] % block:
            raise self._bad(f"tensor {name} of shape {shape} does not fill blocks of {block} numbers ({kind.name})")
        return _Stored(name, shape, kind, offset, elements // block * block_bytes)

    # ---- architecture

    def _fact(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.metadata.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind or (kind in (int, float) and value <= 0):
            raise self._bad(f"its header says {key} = {value!r}, expected a positive {kind.__name__}")
        return value

    def architecture(self) -> dict[str, Any]:
        """The facts a Backbone is built from.

        vocab, width, depth, heads, kv_heads, head_width, hidden (of the feed-forward), theta (RoPE), eps (RMSNorm),
        tied (the head is the embedding), context (trained length in tokens), name. Raises UserError for any other
        architecture than Llama's, and for RoPE scaling.
        """
        name = self.metadata.get("general.architecture")
        if name != "llama":
            raise UserError(f"{self.path} holds the architecture {name!r}; only 'llama' can be read")
        scaling = self.metadata.get("llama.rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self._stored:
            raise UserError(f"{self.path} scales its rotary positions ({scaling}), which the Backbone cannot do")
        heads = self._fact("llama.attention.head_count", int)
        width = self._fact("llama.embedding_length", int)
        head_width = self._fact("llama.rope.dimension_count", int, width // heads)
        if head_width * heads != width or head_width % 2:
            raise self._bad(f"its width {width} is not {heads} heads of {head_width} numbers, or that is odd")
        kv_heads = self._fact("llama.attention.head_count_kv", int, heads)
        if heads % kv_heads:
            raise self._bad(f"its {heads} attention heads cannot share {kv_heads} key-value heads evenly")
        if "token_embd.weight" not in self._stored:
            raise self._bad("it has no token embedding (token_embd.weight)")
        return {
            "name": str(self.metadata.get("general.name", self.path.stem)),
            "vocab": self._stored["token_embd.weight"].shape[0],
            "width": width,
            "depth": self._fact("llama.block_count", int),
            "heads": heads,
            "kv_heads": kv_heads,
            "head_width": head_width,
            "hidden": self._fact("llama.feed_forward_length", int),
            "theta": _shortest(self._fact("llama.rope.freq_base", float, 10_000.0)),
            "eps": _shortest(self._fact("llama.attention.layer_norm_rms_epsilon", float)),
            "tied": "output.weight" not in self._stored,
            "context": self._fact("llama.context_length", int),
        }

    # ---- weights

    def tensors(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
        """(name in a Backbone, tensor) one by one, dequantised in float32 and then cast to `dtype`.

        Each tensor owns its memory. Names and shapes are checked against the facts before the first one is read.
        """
        facts = self.architecture()
        if facts["depth"] * 9 > len(self._stored):
            raise self._bad(f"its header announces {facts['depth']} blocks, but it has {len(self._stored)} tensors")
        plan = self._plan(_expected(facts))
        heads = {"q": facts["heads"], "k": facts["kv_heads"]}
        for stored, name in plan:
            tensor = torch.from_numpy(self._dequantised(stored))
            parts = name.split(".")
            if parts[-2] in heads and parts[-3] == "attention":
                tensor = half_split(tensor, heads[parts[-2]])
            yield name, tensor.to(dtype)

    def _plan(self, shapes: dict[str, tuple[int, ...]]) -> list[tuple[_Stored, str]]:
        """Each stored tensor with its name in a Backbone; missing, surplus and misshapen ones are errors."""
        names = {stored: _backbone_name(stored) for stored in self._stored}
        missing = sorted(shapes.keys() - set(names.values()))
        surplus = sorted(stored for stored, name in names.items() if name not in shapes)
        if missing or surplus:
            raise self._bad(f"its weights are not a Llama's: missing {missing[:3]}, unexpected {surplus[:3]}")
        plan = [(self._stored[stored], name) for stored, name in names.items() if name is not None]
        for stored, name in plan:
            if stored.shape != shapes[name]:
                raise self._bad(f"tensor {stored.name} has shape {stored.shape}, expected {shapes[name]}")
        return plan

    def _dequantised(self, stored: _Stored) -> np.ndarray:
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored.kind]
        raw = np.frombuffer(self._map, np.uint8, stored.size, stored.start)
        rows = raw.reshape(*stored.shape[:-1], stored.shape[-1] // block * block_bytes)
        try:
            values = gguf.quants.dequantize(rows, stored.kind)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: tensor {stored.name} is quantised as {stored.kind.name}, which cannot be read"
            ) from error
        if not values.flags.writeable:  # unquantised numbers are still a view of the file
            values = values.copy()
        return values.astype(np.float32, copy=False).reshape(stored.shape)

    # ---- tokenizer

    def tokenizer(self) -> Tokenizer:
        """The file's byte-level BPE tokenizer with its chat template. Raises UserError for other kinds.

        A byte without a symbol in the vocabulary is left out of the text, as the published tokenizers do (SmolLM2 has
        no symbol for six control characters and for the lead bytes of unassigned planes).
        """
        data = self.metadata
        model, pre = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre")
        if model != "gpt2" or pre not in _PRE:
            raise UserError(
                f"{self.path} has a tokenizer of kind {model!r} with the text splitting {pre!r}; "
                f"only 'gpt2' with one of {sorted(_PRE)} can be read"
            )
        tokens, merges = self._strings("tokenizer.ggml.tokens"), self._strings("tokenizer.ggml.merges")
        kinds = data.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
        vocabulary = {token: id for id, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        known = all(
            len(pair) == 2 and pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary
            for pair in pairs
        )
        if len(vocabulary) != len(tokens) or len(kinds) != len(tokens) or not known:
            raise self._bad("its tokenizer contradicts itself: tokens, token types and merges do not fit together")
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))  # type: ignore[arg-type]
        backend.pre_tokenizer = _PRE[pre]()
        backend.decoder = decoders.ByteLevel()
        for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
            chosen = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
            backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in chosen])
        template = data.get("tokenizer.chat_template")
        return Tokenizer(
            backend,
            bos=self._token("bos_token_id", tokens),
            eos=self._token("eos_token_id", tokens),
            pad=self._token("padding_token_id", tokens),
            chat_template=template if isinstance(template, str) else None,
        )

    def _strings(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._bad(f"its header has no list of strings called {key}")
        return value

    def _token(self, key: str, tokens: list[str]) -> str | None:
        id = self.metadata.get(f"tokenizer.ggml.{key}")
        if id is None:
            return None
        if not isinstance(id, int) or not 0 <= id < len(tokens):
            raise self._bad(f"its tokenizer says {key} = {id!r}, but it has {len(tokens)} tokens")
        return tokens[id]


def read_gguf(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """(facts as `GGUF.architecture` gives them, state dict of a Backbone, tokenizer)."""
    with GGUF(path) as file:
        return file.architecture(), dict(file.tensors(dtype)), file.tokenizer()


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k (heads * d, D) from GGUF's interleaved RoPE (x0 y0 x1 y1 ..) to half-split (x0 x1 .. y0 y1 ..)."""
    head_width = weight.shape[0] // heads
    return weight.reshape(heads, head_width // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def _expected(facts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden = facts["width"], facts["hidden"]
    kv_width = facts["kv_heads"] * facts["head_width"]
    block = {
        "norm1": (width,),
        "attention.q": (width, width),
        "attention.k": (kv_width, width),
        "attention.v": (kv_width, width),
        "attention.o": (width, width),
        "norm2": (width,),
        "ffn.gate": (hidden, width),
        "ffn.up": (hidden, width),
        "ffn.down": (width, hidden),
    }
    shapes = {
        f"blocks.{index}.{name}.weight": shape for index in range(facts["depth"]) for name, shape in block.items()
    }
    shapes |= {"embed.weight": (facts["vocab"], width), "norm.weight": (width,)}
    return shapes if facts["tied"] else {**shapes, "head.weight": (facts["vocab"], width)}


def _backbone_name(stored: str) -> str | None:
    """`blk.3.attn_q.weight` -> `blocks.3.attention.q.weight`; None for what a Llama does not have."""
    if stored in _OUTSIDE:
        return _OUTSIDE[stored]
    parts = stored.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _INSIDE or parts[3] != "weight":
        return None
    return f"blocks.{parts[1]}.{_INSIDE[parts[2]]}.weight"


def _shortest(value: float) -> float:
    """The shortest decimal of a float32, as people write it: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


_PRE = {"smollm": _smollm, "gpt-2": _gpt2}
