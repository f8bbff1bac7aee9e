"""One answer in the making: what was chosen of it, and what of its prompt is still to be read."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from sensorium.errors import UserError
from sensorium.infer.choosing import Choice, Chooser
from sensorium.infer.cutting import Mark
from sensorium.infer.drawing import Drawing
from sensorium.infer.sampling import Sampling, Text
from sensorium.sequence import Sequence

Finish = Literal["stop", "length", "cancelled"]
"""Why an answer ended: by a stop token or text or the end of what was to be drawn; at max_tokens; by its reader."""


class Drafter(Protocol):
    """Guesses how answers go on."""

    def draft(self, requests: Many[Request]) -> list[list[int]]:
        """The next tokens of each, none where nothing can be guessed; what is beyond a request's `room` is not read."""
        ...

    def rest(self) -> None:
        """Give back the memory of what was read."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One answer in the making.

    sequence  one rendered document
    sampling  how tokens are chosen
    text      collects the answer
    stops     ids that end it
    chooser   chooses them
    marks     what the tokens of the prompt stand for, where others may share its beginning; None where they may not
    cached    tokens of the prompt that were read before, for another request
    rest      what of the prompt is still to be read; None once the answer may begin
    position  of the next token
    ids       chosen so far, without the stop token
    drawing   which of them are pictures; None where the model says words alone
    heard     (max_tokens, H) ids of the parallel streams that come from outside, step by step
    begun     whether it has a slot, or had one
    scored    of the tokens chosen so far what `Sampling.logprobs` asks for
    error     what the request asked for that cannot be
    words     ids of the prompt's words
    drafter   who guesses how the answer goes on, to be verified; of what is drafted, `right` were right
    rows      ids of the further streams chosen or heard so far, a row a step
    against   the same request without its condition, in a slot of its own, for classifier-free guidance (Ho and
              Salimans 2022, arXiv 2207.12598): it reads what is chosen here and never chooses itself
    """

    sequence: Sequence
    sampling: Sampling
    text: Text
    stops: frozenset[int]
    chooser: Chooser
    marks: list[Mark] | None = None
    cached: int = 0
    rest: Sequence | None = None
    begun: bool = False
    position: int = 0
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    drawing: Drawing | None = None
    against: Request | None = None
    heard: Tensor | None = None
    scored: list[Choice] = field(default_factory=list)
    error: UserError | None = None
    words: list[int] = field(default_factory=list)
    drafter: Drafter | None = None
    drafted: int = 0
    right: int = 0
    rows: list[list[int]] = field(default_factory=list)
    _ready: str = ""

    def __post_init__(self) -> None:
        self.rest = self.sequence
        self.position = int(self.sequence.position.max()) + 1
        if self.heard is not None and len(self.heard) < self.sampling.max_tokens:
            raise ValueError(f"{len(self.heard)} steps are heard, and {self.sampling.max_tokens} may be said")

    @property
    def last(self) -> int | list[int]:
        """The step chosen last: an id, or one of each parallel stream."""
        return [self.ids[-1], *self.rows[-1]] if self.rows else self.ids[-1]

    @property
    def room(self) -> int:
        """Tokens that the answer may have besides the next: so many may be guessed."""
        return max(self.sampling.max_tokens - len(self.ids) - 1, 0)

    @property
    def inside(self) -> bool:
        """Whether the next token belongs to an item."""
        return self.drawing is not None and self.drawing.inside

    def pick(self, logits: Tensor) -> int:
        """A code of a further stream, from logits (codes)."""
        return self.chooser.draw(logits)

    def advance(self, logits: Tensor) -> None:
        """Choose the next token from logits (vocab, and inside an item codes behind it). Where none may follow, the
        answer ends with an `error`: it is nobody else's."""
        if self.inside:  # no word, so nothing that is said of words holds
            self.take(self.chooser.draw(logits))
            return
        try:
            choice = self.chooser.choose(logits)
            self.chooser.take(choice.id)
        except UserError as error:
            self.error = error
            self.cancel()
            return
        if choice.logprob is not None and choice.id not in self.stops:
            self.scored.append(choice)
        self.take(choice.id)

    def take(self, chosen: int) -> None:
        """Add one token to the answer, or end it; a picture is never cut."""
        drawing = self.drawing
        if drawing is not None and drawing.take(chosen):
            self.ids.append(chosen)
            self.finish = self._drawn_out(drawing)
        elif chosen in self.stops:
            self.finish = "stop"
        else:
            self.ids.append(chosen)
            self._ready += self.text.push(chosen)
            long = len(self.ids) >= self.sampling.max_tokens
            ended = self.text.stopped or self.chooser.complete  # nothing may follow: no step is needed to say so
            self.finish = "stop" if ended else "length" if long else None
        if self.against is not None:
            self.against.ids.append(chosen)
        self._close()

    def saw(self, states: dict[str, Tensor]) -> None:
        """By kind what generators read of the token that was chosen last; the answer may have waited for it to end."""
        if self.drawing is not None and self.drawing.waits:
            self.drawing.saw(states)
            self.finish = self._drawn_out(self.drawing)
            self._close()

    def cancel(self) -> None:
        """End the answer as it is."""
        if not self.done:
            self.finish = "cancelled"
            self._close()

    def _close(self) -> None:
        if self.done:
            self._ready += self.text.finish()

    def _drawn_out(self, drawing: Drawing) -> Finish | None:
        """Whether the answer ends behind an item."""
        if drawing.inside or drawing.waits:
            return None
        long = len(self.ids) >= self.sampling.max_tokens
        return "stop" if drawing.complete else "length" if long else None

    def new_text(self) -> str:
        """What was added to the text since the last call."""
        ready, self._ready = self._ready, ""
        return ready

    @property
    def done(self) -> bool:
        return self.finish is not None

    @property
    def slots(self) -> int:
        """Slots of a cache that the request takes."""
        return 1 if self.against is None else 2

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is the next one, and all that is asked."""
        return self.chooser.greedy

    def held(self, length: int) -> list[Mark]:
        """What the first `length` tokens of its slot stand for."""
        return [] if self.marks is None else [*self.marks, *self.ids][:length]
