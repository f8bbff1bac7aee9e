"""The container of a GGUF file, written: header, then tensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
import torch
from torch import Tensor

from sensorium.errors import UserError, nearest

Numbers = Literal["f32", "f16", "bf16", "q8_0"]
NUMBERS = get_args(Numbers)
_KINDS = {one: gguf.GGMLQuantizationType[one.upper()] for one in NUMBERS}
_FILE_KINDS = {
    "f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip
_STORED = {torch.float16: "f16", torch.bfloat16: "bf16"}
_HALF = 65_504.0
"""The largest number of float16."""

Source = Callable[[], Iterator[tuple[str, Tensor]]]
"""Tensors one at a time under their names in the file; it is gone through twice."""


@dataclass(slots=True)
class Draft:
    """A file to be: what stands in its header, and its tensors.

    whole  names of matrices that llama.cpp reads in float32 alone
    """

    architecture: str
    keys: Mapping[str, Any]
    tensors: Source
    whole: tuple[str, ...] = ()

    def save(self, path: Path, numbers: Numbers) -> None:
        """Write the file. Raises UserError for numbers that the type cannot hold, or rows that do not fill its blocks.

        numbers  of matrices; norms and biases are float32. In q8_0, 32 numbers share a scale
        """
        writer = gguf.GGUFWriter(path, self.architecture)
        try:
            writer.add_file_type(_FILE_KINDS[numbers])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for name, value in self.keys.items():
                _add(writer, name, value)
            for name, tensor in self.tensors():
                kind = self._kind(name, tensor, numbers)
                shape = tuple(tensor.shape)
                writer.add_tensor_info(name, shape, np.dtype(np.float32), _size(name, shape, kind), kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in self.tensors():
                kind = self._kind(name, tensor, numbers)
                writer.write_tensor_data(_numbers(name, tensor, kind))
        finally:
            writer.close()

    def _kind(self, name: str, tensor: Tensor, numbers: Numbers) -> gguf.GGMLQuantizationType:
        return _KINDS["f32" if tensor.ndim == 1 or name in self.whole else numbers]


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)


def _size(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise UserError(f"{name} has rows of {shape[-1]} numbers, which do not fill blocks of {block}: the type "
                        f"{kind.name.lower()} cannot hold it, choose another")  # fmt: skip
    count = 1
    for extent in shape:
        count *= extent
    return count // block * block_bytes


def _numbers(name: str, tensor: Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    values = tensor.detach().cpu().float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > _HALF:
        raise UserError(f"{name} has the number {np.abs(values).max():.3g}, which float16 cannot hold: choose bf16")
    return gguf.quants.quantize(values, kind)


def numbers_of(model: torch.nn.Module, asked: str | None) -> Numbers:
    """The type that is asked for, or the one that the model has. Raises UserError for one that is not known."""
    if asked is None:
        return _STORED.get(next(model.parameters()).dtype, "f32")  # type: ignore[return-value]
    if asked not in NUMBERS:
        raise UserError(f"there is no type {asked!r}: {nearest(asked, NUMBERS)}")
    return asked  # type: ignore[return-value]
