"""A model's shapes without its numbers, to be filled from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_RANDOM = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")


_MADE = ("randn", "rand")
_SCALED = ("mul", "__mul__", "__rmul__", "div", "__truediv__")


class _NotDrawn(TorchFunctionMode):
    """Random numbers are not drawn: of tensors without memory nothing would be kept, and torch would load its compiler
    for it (over a second, and 80 MB that stay)."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        if func.__name__ in _MADE:
            return torch.empty(*args, **{name: one for name, one in (kwargs or {}).items() if name != "generator"})
        if func.__name__ in _SCALED and args[0].is_floating_point() and isinstance(args[1], int | float):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def blank() -> Iterator[None]:
    """Modules that are made inside have parameters on the meta device."""
    with torch.device("meta"), _NotDrawn():
        yield
