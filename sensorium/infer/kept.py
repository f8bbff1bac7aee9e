"""Features of media, kept by what they were made of."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from torch import Tensor


class Kept:
    """Features by kind and content key, up to so many bytes; what was asked for longest ago goes first. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._held: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, kind: str, key: str) -> Tensor | None:
        with self._lock:
            found = self._held.get((kind, key))
            if found is not None:
                self._held.move_to_end((kind, key))
            return found

    def put(self, kind: str, key: str, features: Tensor) -> None:
        """Keep a copy of features that have a name, unless they alone are more than may be kept."""
        size = features.numel() * features.element_size()
        if not key or size > self.limit:
            return
        with self._lock:
            if (kind, key) in self._held:
                return
            self._held[kind, key] = features.clone()
            self.bytes += size
            while self.bytes > self.limit:
                _, old = self._held.popitem(last=False)
                self.bytes -= old.numel() * old.element_size()
