"""The structs of call.h as ctypes sees them, and how tensors are put into them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from sensorium.nn.norm import Norm

TYPES = {torch.float32: 0, torch.bfloat16: 1}
CODES = {"int8": 2, "int4": 3}
NORM, LINEAR, HEADS, ATTEND, CAP = range(5)
STORE, GATED, ADD = range(3)
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2")
OUT = -1
"""The register that is what a call gives back."""


class CNorm(ctypes.Structure):
    _fields_ = [
        ("weight", c_void_p), ("bias", c_void_p), ("kind", c_int32), ("weight_type", c_int32), ("bias_type", c_int32),
        ("centred", c_int32), ("by_head", c_int32), ("eps", c_float),
    ]  # fmt: skip


class CPart(ctypes.Structure):
    _fields_ = [
        ("weight", c_void_p), ("scales", c_void_p), ("bias", c_void_p), ("type", c_int32), ("bias_type", c_int32),
        ("outputs", c_int32), ("to", c_int32),
    ]  # fmt: skip


class COp(ctypes.Structure):
    _fields_ = [
        ("kind", c_int32), ("width", c_int32), ("from_", c_int32), ("to", c_int32), ("norm", CNorm), ("norm2", CNorm),
        ("parts", c_int32), ("out", c_int32), ("activation", c_int32), ("scale_type", c_int32), ("factor", c_float),
        ("scale", c_void_p), ("part", CPart * 3), ("heads", c_int32), ("kv_heads", c_int32), ("head_width", c_int32),
        ("window", c_int32), ("turned", c_int32), ("table", c_int32), ("layer", c_int32), ("third", c_int32),
        ("score_scale", c_float), ("cap", c_float),
    ]  # fmt: skip


class CTable(ctypes.Structure):
    _fields_ = [("cosine", c_void_p), ("sine", c_void_p), ("row", POINTER(c_int64))]


class CCall(ctypes.Structure):
    _fields_ = [
        ("ops", POINTER(COp)), ("count", c_int32), ("rows", c_int32), ("threads", c_int32), ("in_type", c_int32),
        ("out_type", c_int32), ("from_", c_int32), ("to", c_int32), ("in_width", c_int32), ("out_width", c_int32),
        ("many", c_int32), ("in_", c_void_p), ("out", c_void_p), ("registers", c_void_p), ("own", c_void_p),
        ("own_bytes", c_int64), ("capacity", c_int64), ("partial", c_void_p), ("slots", POINTER(c_int64)),
        ("places", POINTER(c_int64)), ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)),
        ("tables", CTable * 2), ("kept", POINTER(c_int32)), ("kept_rows", c_int32), ("last", c_int32),
        ("room", c_int32), ("kept_type", c_int32),
    ]  # fmt: skip


def checked(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with its signatures. Raises RuntimeError where its structs are not these."""
    library.run.argtypes, library.run.restype = [POINTER(CCall)], None
    library.size_of.argtypes, library.size_of.restype = [c_int32], c_int64
    library.own_bytes.argtypes, library.own_bytes.restype = [*[c_int32] * 3, c_int64], c_int64
    library.partial_floats.argtypes, library.partial_floats.restype = [c_int32] * 2, c_int64
    library.many_bytes.argtypes, library.many_bytes.restype = [c_int32] * 3, c_int64
    sizes = [library.size_of(which) for which in range(2)]
    if sizes != [ctypes.sizeof(COp), ctypes.sizeof(CCall)]:
        raise RuntimeError(f"call.h and layout.py say other structs: {sizes} bytes and "
                           f"{[ctypes.sizeof(COp), ctypes.sizeof(CCall)]}")  # fmt: skip
    return library


class Unsupported(Exception):
    """A part has no operation in C; the message says which."""


class Pointers:
    """Addresses of tensors, which are kept as long as this is."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __call__(self, tensor: Tensor, name: str) -> tuple[int, int]:
        """(address, type). Raises Unsupported for a tensor that C cannot read where it is."""
        if tensor.device.type != "cpu" or tensor.dtype not in TYPES:
            raise Unsupported(
                f"{name} is {tensor.dtype} on {tensor.device}: kernels read float32 and bfloat16 on a CPU"
            )
        return self.raw(tensor, name), TYPES[tensor.dtype]

    def raw(self, tensor: Tensor, name: str) -> int:
        """The address of a tensor of any type. Raises Unsupported."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unsupported(f"{name} is on {tensor.device}, or not contiguous: kernels read it where it is on a CPU")
        self.tensors.append(tensor.detach())
        return tensor.data_ptr()

    @property
    def addresses(self) -> list[tuple[int, torch.dtype]]:
        return [(tensor.data_ptr(), tensor.dtype) for tensor in self.tensors]

    def norm(self, norm: Norm | None, name: str) -> CNorm:
        told = CNorm(kind=0)
        if norm is None:
            return told
        told.kind, told.eps, told.centred = 1 + norm.layer, norm.eps, norm.zero_centered
        if norm.weight is not None:
            told.weight, told.weight_type = self(norm.weight, f"{name}.weight")
            told.by_head = norm.weight.dim() > 1
        if norm.bias is not None:
            told.bias, told.bias_type = self(norm.bias, f"{name}.bias")
        return told
