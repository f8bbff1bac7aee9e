"""What the sources of this folder share: an indexed row, read and turned into a sample when it is asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import Field

from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, RowReader, located
from sensorium.data.media import Limits
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import Sample


class FileSource(SourceConfig):
    """A source read from a file.

    path     the file
    limits   pictures beyond these are bad rows
    """

    path: str = Field(min_length=1)
    limits: Limits = Limits()


class RowSource:
    """Random access to samples. Subclasses say how many rows there are, where each is, and what it becomes."""

    reader: RowReader

    def __getitem__(self, index: int) -> Sample:
        """Raises RowError naming file and line, IndexError outside 0 <= index < len."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        try:
            return self.convert(index)
        except BadRow as error:
            raise located(error, self.where(index)) from error

    def __len__(self) -> int:
        raise NotImplementedError

    def where(self, index: int) -> str:
        """File and line of a row, for people."""
        raise NotImplementedError

    def convert(self, index: int) -> Sample:
        raise NotImplementedError

    @property
    def unused(self) -> Counter[str]:
        """Keys that rows had and nothing read, counted over the rows read so far."""
        return self.reader.unused

    @property
    def standing(self) -> Counter[str]:
        """Notes on the source as a whole, true before any row is read."""
        return Counter()

    @property
    def notes(self) -> Counter[str]:
        """Things that are allowed but worth knowing, counted over the rows read so far."""
        return self.reader.notes


class JsonSource(RowSource):
    """A source over the rows of one JSON file."""

    def __init__(self, rows: JsonRows, reader: RowReader):
        if not len(rows):
            raise UserError(f"{rows.path} has no rows")
        self.rows, self.reader = rows, reader

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.rows.where(index)

    def convert(self, index: int) -> Sample:
        return self.read(self.rows.row(index), self.where(index))

    def read(self, row: dict[str, Any], where: str) -> Sample:
        raise NotImplementedError
