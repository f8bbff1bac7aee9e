"""The container of a GGUF file: header and tensors, read.

The header is parsed here, with every count and length checked against the size of the file, because a damaged or
hostile header must end in a clear error and not in a loop or in all of the memory. The `gguf` package knows the
quantised formats. Weights come one tensor at a time from a memory map.

Format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gguf
import numpy as np

from sensorium.errors import UserError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in the file; `shape` in the usual order, (out, in) for a projection."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int


class GGUFFile:
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
        self.stored: dict[str, Stored] = {}
        try:
            self._read_header()
        except UserError:
            self.close()
            raise
        except (struct.error, UnicodeDecodeError, RecursionError) as error:
            self.close()
            raise self.bad(f"its header is damaged near byte {self._at}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        # An array over the map may still be alive in the frames of an error; then the map goes with the array.
        with contextlib.suppress(BufferError):
            self._map.close()

    # ---- header

    def bad(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}. Fetch the file again, or convert the model again.")

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise self.bad("it is not a GGUF file, it does not begin with the letters GGUF")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise self.bad(f"its GGUF version is {version}, versions 2 and 3 can be read")
        tensors, pairs = self._count(24), self._count(13)
        for _ in range(pairs):
            key = self._string()
            if key in self.metadata:
                raise self.bad(f"its header has the key {key!r} twice")
            self.metadata[key] = self._value(self._scalar("I"))
        found = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise self.bad(f"its alignment is {alignment!r}, expected a power of two")
        base = -(-self._at // alignment) * alignment
        for info in found:
            end = base + info.start + info.size
            if end > len(self._map):
                raise self.bad(
                    f"it is cut short: tensor {info.name} ends at byte {end}, the file has {len(self._map)} bytes"
                )
            if info.name in self.stored:
                raise self.bad(f"it has the tensor {info.name} twice")
            self.stored[info.name] = Stored(info.name, info.shape, info.kind, base + info.start, info.size)

    def _take(self, size: int) -> int:
        start = self._at
        if size > len(self._map) - start:
            raise self.bad(
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
            raise self.bad(f"its header announces {count} entries at byte {self._at - 8}, more than the file can hold")
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
            raise self.bad(f"its header has a value of unknown type {kind} at byte {self._at}")
        inner = self._scalar("I")
        if inner == _STRING:
            return [self._string() for _ in range(self._count(8))]
        if inner not in _SCALARS:
            raise self.bad(f"its header has an array of type {inner} at byte {self._at}, which no model needs")
        count = self._count(struct.calcsize("<" + _SCALARS[inner]))
        layout = struct.Struct(f"<{count}{_SCALARS[inner]}")
        return list(layout.unpack_from(self._map, self._take(layout.size)))

    def _tensor_info(self) -> Stored:
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.bad(f"tensor {name} has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        number, offset = self._scalar("I"), self._scalar("Q")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise self.bad(f"tensor {name} has the unknown quantisation {number}") from error
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        elements = 1
        for extent in shape:
            elements *= extent
        if elements == 0 or shape[-1] % block:
            raise self.bad(f"tensor {name} of shape {shape} does not fill blocks of {block} numbers ({kind.name})")
        return Stored(name, shape, kind, offset, elements // block * block_bytes)

    # ---- tensors

    def read(self, stored: Stored) -> np.ndarray:
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
