"""Ids of the vocabulary that stand among the tokens which a connector makes of an item."""

from __future__ import annotations

from collections.abc import Iterator

from sensorium.config import Config
from sensorium.errors import UserError
from sensorium.nn.part import Grid


class TileMarks(Config):
    """Of a picture in tiles, whose tokens stand before those of the whole picture (Idefics 3, arXiv 2408.12637):

        ((tile  token x cells) x columns  row) x rows  whole  token x cells

    tile   by row and column of tiles, ids before the tokens of each
    row    behind each row of tiles but the last
    whole  between the last of them and the whole picture
    """

    tile: tuple[tuple[tuple[int, ...], ...], ...]
    row: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()

    def places(self, grid: Grid) -> Iterator[int | None]:
        """As those of `Marks`. Raises UserError for more tiles than there are marks of."""
        assert grid.tiles is not None
        rows, cols = grid.tiles
        if rows > len(self.tile) or any(cols > len(row) for row in self.tile[:rows]):
            marked = f"{len(self.tile)} rows of {len(self.tile[0]) if self.tile else 0}"
            raise UserError(f"a picture in {rows} rows of {cols} tiles was given, and there are marks of {marked}: "
                            "give one that is less long, or marks of more tiles")  # fmt: skip
        view = [None] * (grid.tokens // grid.views)
        for row in range(rows):
            yield from self.row if row else ()
            for col in range(cols):
                yield from self.tile[row][col]
                yield from view
        yield from self.whole
        yield from view


class Marks(Config):
    """Where they stand:

        open  (token x cols  [row]) x rows  close

    open, close  around the item
    tiles   what stands in place of `open` where it is cut into tiles; None: nothing tells them apart
    row     behind each row (Fuyu's image-newline, adept.ai/blog/fuyu-8b); None: rows are not told apart
    filler  id at the places of the tokens themselves, which nothing reads; None: the tokenizer's padding
    """

    open: tuple[int, ...] = ()
    close: tuple[int, ...] = ()
    row: int | None = None
    filler: int | None = None
    tiles: TileMarks | None = None

    def places(self, grid: Grid | None) -> Iterator[int | None]:
        """The tokens of an item with this grid in order: the id of a mark, or None for one that the connector makes.

        Raises UserError where rows are to end and there are none.
        """
        if grid is None or (self.row is not None and (grid.tiles is not None or grid.extra)):
            raise UserError("marks stand among tokens that are laid out in rows: choose a connector that keeps a plain "
                            "grid, and an encoder without tiles and class tokens")  # fmt: skip
        if grid.tiles is not None and self.tiles is not None:
            yield from self.tiles.places(grid)
            yield from self.close
            return
        yield from self.open
        if self.row is None:
            yield from [None] * grid.tokens
        else:
            for _ in range(grid.frames * grid.rows):
                yield from [*[None] * grid.cols, self.row]
        yield from self.close
