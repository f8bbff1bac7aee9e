"""Ids of the vocabulary that stand among the tokens which a connector makes of an item."""

from __future__ import annotations

from collections.abc import Iterator

from sensorium.config import Config
from sensorium.errors import UserError
from sensorium.nn.part import Grid


class Marks(Config):
    """Where they stand:

        open  (token x cols  [row]) x rows  close

    open, close  around the item
    row     behind each row (Fuyu's image-newline, adept.ai/blog/fuyu-8b); None: rows are not told apart
    filler  id at the places of the tokens themselves, which nothing reads; None: the tokenizer's padding
    """

    open: tuple[int, ...] = ()
    close: tuple[int, ...] = ()
    row: int | None = None
    filler: int | None = None

    def places(self, grid: Grid | None) -> Iterator[int | None]:
        """The tokens of an item with this grid in order: the id of a mark, or None for one that the connector makes.

        Raises UserError where rows are to end and there are none.
        """
        if grid is None or (self.row is not None and (grid.tiles is not None or grid.extra)):
            raise UserError("marks stand among tokens that are laid out in rows: choose a connector that keeps a plain "
                            "grid, and an encoder without tiles and class tokens")  # fmt: skip
        yield from self.open
        if self.row is None:
            yield from [None] * grid.tokens
        else:
            for _ in range(grid.frames * grid.rows):
                yield from [*[None] * grid.cols, self.row]
        yield from self.close
