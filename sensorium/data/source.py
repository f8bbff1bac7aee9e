"""What every data source is: a typed value that builds an indexable list of samples."""

from __future__ import annotations

from typing import Protocol

from sensorium.config import Config
from sensorium.errors import UserError
from sensorium.sequence import Sample


class Source(Protocol):
    """Random access by index, so that the order is a function of (seed, epoch) and resuming seeks.

    `__getitem__` decodes nothing: pictures are lazy Media. A row that cannot be read raises RowError.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class SourceConfig(Config):
    """Base of every data source's value. `build()` returns a Source."""

    def build(self) -> Source:
        raise TypeError(f"{self.tag()} describes no source")


class RowError(UserError, ValueError):
    """One row of a source is unusable; the message names the file, the row and the reason."""
