"""How the codes of a picture or clip stand among words: which ids are theirs, where rows end, what opens and closes;
and the signals that stand for one which a generator makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sensorium.config import Config
from sensorium.nn.part import Grid


class CodeTokens(Config):
    """A codec's own range of the vocabulary, and the marks around it: no id of it is ever text.

        open  (code x cols  [row]) x rows  [frame]  ...the next frame  close

    first   id of code 0
    codes   size of the codebook
    open, close  ids of the marks around an item
    row     id that ends each row (Emu3, arXiv 2409.18869, section 2.3); None: rows are counted (Chameleon)
    frame   id that ends each frame; None: none does
    weight  loss weight of an item's tokens beside text's (Emu3 section 2.4: 0.5)
    keep    share of the codes it is to say that a model in training reads as they are; in place of the others it reads
            any code, and still predicts what was there. A few known codes would else tell it which picture of its set
            this is, and not its words; what it draws is made of codes that it chose itself, which are seldom those of
            a picture of the set (Esser et al. 2021, arXiv 2012.09841; released training code: pkeep)
    """

    first: int = Field(ge=0)
    codes: int = Field(ge=1)
    open: int = Field(ge=0)
    close: int = Field(ge=0)
    row: int | None = None
    frame: int | None = None
    weight: float = Field(default=1.0, ge=0)
    keep: float = Field(default=1.0, gt=0, le=1)

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
        marks = self.marks
        if len(set(marks)) < len(marks) or any(self.is_code(mark) for mark in marks):
            raise ValueError(f"the marks {marks} must differ from each other and from the codes "
                             f"{self.first} to {self.first + self.codes - 1}")  # fmt: skip
        return self

    @property
    def marks(self) -> tuple[int, ...]:
        return tuple(mark for mark in (self.open, self.close, self.row, self.frame) if mark is not None)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that are not text's."""
        return (*range(self.first, self.first + self.codes), *self.marks)

    def is_code(self, id: int) -> bool:
        return self.first <= id < self.first + self.codes

    def places(self, grid: Grid) -> Iterator[int | None]:
        """The tokens of an item in order: the id of a mark, or None where a code stands."""
        yield self.open
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
        return 2 + grid.frames * (grid.rows * row + (self.frame is not None))

    def write(self, codes: Tensor, grid: Grid) -> Tensor:
        """codes (positions) -> ids (length) of the item."""
        if codes.numel() != grid.tokens:
            raise ValueError(f"{codes.numel()} codes were given for a grid of {grid.tokens}")
        ids = torch.tensor([-1 if mark is None else mark for mark in self.places(grid)], device=codes.device)
        ids[ids < 0] = codes.long() + self.first
        return ids

    def doubted(self, ids: Tensor, said: Tensor) -> Tensor:
        """ids (T) as a model in training reads them: of those that are said (T), some codes are others, drawn from
        torch's generator."""
        code = said & (ids >= self.first) & (ids < self.first + self.codes)
        other = torch.rand(ids.shape, device=ids.device) >= self.keep
        return torch.where(code & other, torch.randint_like(ids, self.first, self.first + self.codes), ids)

    def read(self, ids: Sequence[int]) -> Tensor:
        """ids of an item, marks among them -> codes (positions)."""
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

    @property
    def open(self) -> int:
        return self.first

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
