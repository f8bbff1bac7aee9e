"""How the codes of a picture or clip stand among words: which ids are theirs, where rows end, what opens and closes;
and the signals that stand for one which a generator makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sensorium.config import Config
from sensorium.nn.part import Grid


class Size(Config):
    """How many rows and columns of codes follow, said in words before them: "64*64" (Emu3, arXiv 2409.18869, 2.3).

    digits  ids of 0 to 9
    by      id between the rows and the columns
    then    id behind both, before the codes
    """

    digits: tuple[int, ...] = Field(min_length=10, max_length=10)
    by: int = Field(ge=0)
    then: int = Field(ge=0)

    def ids(self, grid: Grid) -> list[int]:
        """The tokens that say it."""
        rows, cols = ([self.digits[int(digit)] for digit in str(count)] for count in (grid.rows, grid.cols))
        return [*rows, self.by, *cols, self.then]


class CodeTokens(Config):
    """A codec's own range of the vocabulary, and the marks around it: no id of it is ever text.

        open  [size]  (code x cols  [row]) x rows  [frame]  ...the next frame  close

    first   id of code 0
    table   id of each code, where they do not stand one after another (Chameleon); () where they do
    codes   size of the codebook
    open, close  ids of the marks around an item
    row     id that ends each row (Emu3, arXiv 2409.18869, section 2.3); None: rows are counted (Chameleon)
    frame   id that ends each frame; None: none does
    size    how its size is said before its codes; None: it is not
    filler  id at the places of codes that are not known yet; None: the tokenizer's padding
    weight  loss weight of an item's tokens beside text's (Emu3 section 2.4: 0.5)
    keep    share of the codes it is to say that a model in training reads as they are; in place of the others it reads
            any code, and still predicts what was there. A few known codes would else tell it which picture of its set
            this is, and not its words; what it draws is made of codes that it chose itself, which are seldom those of
            a picture of the set (Esser et al. 2021, arXiv 2012.09841; released training code: pkeep)
    blank   id that takes the place of every token of a prompt, but those that begin a text or open an item, where what
            is drawn is guided (Janus, arXiv 2410.13848, section 3.4: pad tokens); None: its words are left out
    """

    first: int = Field(ge=0)
    codes: int = Field(ge=1)
    open: int = Field(ge=0)
    close: int = Field(ge=0)
    row: int | None = None
    frame: int | None = None
    table: tuple[int, ...] = ()
    size: Size | None = None
    filler: int | None = None
    weight: float = Field(default=1.0, ge=0)
    keep: float = Field(default=1.0, gt=0, le=1)
    blank: int | None = None

    @classmethod
    def after(
        cls, words: int, codes: int, rows: bool = True, frames: bool = False, weight: float = 1.0, keep: float = 1.0
    ) -> Self:
        """The ids behind a vocabulary of `words`: the codes, then the marks."""
        marks = iter(range(words + codes, words + codes + 4))
        opens, closes = next(marks), next(marks)
        row, frame = next(marks) if rows else None, next(marks) if frames else None
        return cls(first=words, codes=codes, open=opens, close=closes, row=row, frame=frame, weight=weight, keep=keep)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.table and (len(set(self.table)) != self.codes or self.table[0] != self.first):
            raise ValueError(f"table must have {self.codes} different ids, the first of which is first={self.first}")
        marks = self.marks
        if len(set(marks)) < len(marks) or any(self.is_code(mark) for mark in marks):
            raise ValueError(f"the marks {marks} must differ from each other and from the codes "
                             f"{self.first} to {self.first + self.codes - 1}"
                             f"{' and the others of the table' if self.table else ''}")  # fmt: skip
        return self

    @property
    def marks(self) -> tuple[int, ...]:
        then = None if self.size is None else self.size.then
        return tuple(mark for mark in (self.open, self.close, self.row, self.frame, then) if mark is not None)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that are not text's."""
        return (*(self.table or range(self.first, self.first + self.codes)), *self.marks)

    @property
    def index(self) -> slice | list[int]:
        """The ids of the codes, as a row of the vocabulary is indexed."""
        return list(self.table) if self.table else slice(self.first, self.first + self.codes)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """The code of an id, where there is a table."""
        return {id: code for code, id in enumerate(self.table)}

    def is_code(self, id: int) -> bool:
        return id in self._numbers if self.table else self.first <= id < self.first + self.codes

    def places(self, grid: Grid) -> Iterator[int | None]:
        """The tokens of an item in order: the id of a mark, or None where a code stands."""
        yield self.open
        if self.size is not None:
            yield from self.size.ids(grid)
        for _ in range(grid.frames):
            for _ in range(grid.rows):
                yield from [None] * grid.cols
                if self.row is not None:
                    yield self.row
            if self.frame is not None:
                yield self.frame
        yield self.close

    def length(self, grid: Grid) -> int:
        """Tokens of an item with this grid of codes."""
        row = grid.cols + (self.row is not None)
        said = 0 if self.size is None else len(self.size.ids(grid))
        return 2 + said + grid.frames * (grid.rows * row + (self.frame is not None))

    def write(self, codes: Tensor, grid: Grid) -> Tensor:
        """codes (positions) -> ids (length) of the item."""
        if codes.numel() != grid.tokens:
            raise ValueError(f"{codes.numel()} codes were given for a grid of {grid.tokens}")
        ids = torch.tensor([-1 if mark is None else mark for mark in self.places(grid)], device=codes.device)
        ids[ids < 0] = self._ids(codes)
        return ids

    def _ids(self, codes: Tensor) -> Tensor:
        if not self.table:
            return codes.long() + self.first
        return torch.tensor(self.table, device=codes.device)[codes.long()]

    def doubted(self, ids: Tensor, said: Tensor) -> Tensor:
        """ids (T) as a model in training reads them: of those that are said (T), some codes are others, drawn from
        torch's generator."""
        if self.table:
            code = said & torch.isin(ids, torch.tensor(self.table, device=ids.device))
        else:
            code = said & (ids >= self.first) & (ids < self.first + self.codes)
        other = torch.rand(ids.shape, device=ids.device) >= self.keep
        return torch.where(code & other, self._ids(torch.randint_like(ids, self.codes)), ids)

    def read(self, ids: Sequence[int]) -> Tensor:
        """ids of an item, marks among them -> codes (positions)."""
        if self.table:
            return torch.tensor([self._numbers[id] for id in ids if id in self._numbers])
        return torch.tensor([id - self.first for id in ids if self.is_code(id)])


class Signals(Config):
    """Tokens that stand for an item of an answer: no id of it is ever text, and the states at them say what it shows.

    NExT-GPT (arXiv 2309.05519, section 3): [IMG0] ... [IMG3] after an answer that comes with a picture.

    first  id of the first; it opens, and the others follow
    count  how many there are
    """

    first: int = Field(ge=0)
    count: int = Field(default=4, ge=1)
    codes: Literal[0] = 0
    blank: Literal[None] = None

    @property
    def open(self) -> int:
        return self.first

    @property
    def index(self) -> slice:
        """There are no codes among the ids."""
        return slice(0, 0)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.first + self.count))

    @property
    def marks(self) -> tuple[int, ...]:
        return self.ids

    def places(self, grid: Grid) -> Iterator[int | None]:
        """The tokens of an item in order."""
        yield from self.ids

    def read(self, ids: Sequence[int]) -> Tensor:
        """There are no codes among them: (0)."""
        return torch.zeros(0, dtype=torch.long)
