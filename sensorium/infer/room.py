"""Memory that is taken when it is written to, and given back."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys

import torch
from torch import Tensor

M_ARENA_MAX = -8
"""Of glibc's mallopt."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros. On a CPU the system lays down a page of them when it is touched first: what no token was written to costs
    nothing, where torch.zeros would write to all of it."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    alone = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, size, **alone), dtype=dtype).view(shape)


def grown(store: Tensor, capacity: int, lengths: list[int]) -> Tensor:
    """store (slots, old capacity, ...) -> (slots, capacity, ...) with the first lengths[i] places of slot i."""
    made = zeros((store.shape[0], capacity, *store.shape[2:]), store.dtype, store.device)
    for slot, length in enumerate(lengths):
        made[slot, :length] = store[slot, :length]
    return made


def swap(store: Tensor, one: int, other: int, length: int) -> None:
    """The first `length` places of two rows of store (rows, places, ...) change places."""
    left = store[one, :length].clone()
    store[one, :length] = store[other, :length]
    store[other, :length] = left


def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library can be told so (glibc): it would keep what
    was needed on the way, tens of megabytes after a tokenizer was read."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def one_arena() -> None:
    """All threads take memory from one place. To be called before they begin.

    glibc gives each thread an arena of its own, keeps what is free at the end of each, and `malloc_trim` does not reach
    it: after one large request that every thread once saw, their number times its size would stay. Elsewhere than with
    glibc nothing is done.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, 1)


def _libc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None)
    return found if hasattr(found, "malloc_trim") and hasattr(found, "mallopt") else None
