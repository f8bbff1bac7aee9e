"""Pictures in an answer: which tokens may follow, so that each has its rows and is closed; and what was drawn.

Of a picture that a generator makes there are signals alone, and their states are kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sensorium.codecs.tokens import CodeTokens, Signals
from sensorium.nn.part import Grid

Formats = Mapping[str, tuple[CodeTokens | Signals, Grid]]
"""By kind: how its items stand among words, and the grid of those that are drawn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An item of an answer: its kind, its codes (positions) and their grid.

    start, length  where it stands among the tokens of the answer
    states  of signals: for each, (layers, D) of the backbone; filled as they are read
    """

    kind: str
    codes: Tensor
    grid: Grid
    start: int = 0
    length: int = 0
    states: list[Tensor] | None = None


class Drawing:
    """The state of one answer: inside an item, and where in it, or among words.

    formats  of all kinds that the model can say
    most     items at most; 0: the answer is words alone
    begin    a kind that is drawn at once, and ends the answer when `most` are drawn
    """

    def __init__(self, formats: Formats, most: int = 0, begin: str | None = None) -> None:
        self.formats, self.most, self.begin = formats, most, begin
        self.drawn: list[Drawn] = []
        self._kind: str | None = None
        self._places: Iterator[int | None] = iter(())
        self._next: int | None = None
        self._held: list[int] = []
        self._states: list[Tensor] = []
        self._unread = False
        self._taken = 0
        if begin is not None:
            self._enter(begin)

    @property
    def inside(self) -> bool:
        """Whether the next token belongs to an item."""
        return self._kind is not None

    @property
    def complete(self) -> bool:
        """Whether an answer that is drawn at once has all of its items."""
        return self.begin is not None and len(self.drawn) >= self.most

    def allow(self, logits: Tensor) -> Tensor:
        """logits (vocab, and codes behind it) of the next token -> the same with -inf at all that may not follow."""
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        if self._kind is None:
            allowed.fill_(True)
            for kind, (tokens, _) in self.formats.items():
                allowed[tokens.index] = False
                allowed[list(tokens.marks)] = False
                allowed[tokens.open] = len(self.drawn) < self.most and self.begin in (None, kind)
        elif self._next is not None:
            allowed[self._next] = True
        else:
            tokens, _ = self.formats[self._kind]
            allowed[tokens.index] = True
        return logits.masked_fill(~allowed, -torch.inf)

    def take(self, id: int) -> bool:
        """The token that was chosen; returns whether it is part of an item, not a word."""
        self._taken += 1
        if self._kind is None:
            opened = [kind for kind, (tokens, _) in self.formats.items() if tokens.open == id]
            if not opened:
                return False
            self._enter(opened[0])
        self._held.append(id)
        assert self._kind is not None
        self._unread = isinstance(self.formats[self._kind][0], Signals)
        self._next = next(self._places, -1)
        if self._next == -1:
            self._leave()
        return True

    @property
    def waits(self) -> bool:
        """Whether the last token is a signal whose state is not known yet: it is when the token has been read."""
        return self._unread

    def saw(self, states: Mapping[str, Tensor]) -> None:
        """By kind what a generator reads, (layers, D), of the token that was chosen last."""
        if self._unread:
            self._states.append(states[self._kind or self.drawn[-1].kind])
            self._unread = False

    def _enter(self, kind: str) -> None:
        tokens, grid = self.formats[kind]
        self._kind, self._places, self._held, self._states = kind, tokens.places(grid), [], []
        self._next = next(self._places)

    def _leave(self) -> None:
        assert self._kind is not None
        tokens, grid = self.formats[self._kind]
        length = len(self._held)
        states = self._states if isinstance(tokens, Signals) else None
        self.drawn.append(Drawn(self._kind, tokens.read(self._held), grid, self._taken - length, length, states))
        self._kind = None
        if self.begin is not None and not self.complete:
            self._enter(self.begin)
