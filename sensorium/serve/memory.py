"""What a server that has nothing to do gives back to its machine."""

from __future__ import annotations

import ctypes
import gc
import sys

M_ARENA_MAX = -8
"""Of glibc's mallopt."""


def one_arena() -> None:
    """All threads take memory from one place. To be called before they begin.

    glibc gives each thread an arena of its own, keeps what is free at the end of each, and `malloc_trim` does not reach
    it: after one large request that every thread once saw, their number times its size would stay. Elsewhere than with
    glibc nothing is done.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """What nobody holds any more, and what was kept in case that it would be needed."""
    gc.collect()
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None)
    return found if hasattr(found, "malloc_trim") and hasattr(found, "mallopt") else None
