"""A clip written frame by frame: words before the first, between them and behind the last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from sensorium.config import Config
from sensorium.errors import UserError
from sensorium.sequence import Clip, Media, Timing

_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class Film(Config):
    """Every frame of a clip is an item by itself, with words between them (SmolVLM, arXiv 2504.05299; released code).

    opens   before the first frame: {number} of frames, {count} the same in English words, {duration} of the whole clip
            (H:MM:SS)
    frame   before each: {minutes} and {seconds} of its time
    closes  behind the last
    rate, most  frames that are taken where its user does not say which: so many a second of the clip, at most so many,
            evenly from its first to its last. None, both of them: all that it has
    skip    seconds at either end of which none are taken then, of a clip that without them is longer, in seconds, than
            `most * rate`
    """

    opens: str = ""
    frame: str = ""
    closes: str = ""
    rate: float | None = Field(default=None, gt=0)
    most: int | None = Field(default=None, ge=1)
    skip: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if (self.rate is None) != (self.most is None):
            raise ValueError(f"frames are taken at a rate, and at most so many: rate={self.rate}, most={self.most}; "
                             "give both or neither")  # fmt: skip
        try:
            self._opened(Timing(1, 1.0, 1.0, (0,)))
            self._before(0.0)
        except (LookupError, ValueError) as error:
            raise ValueError("opens knows {number}, {count} and {duration}, frame {minutes} and {seconds}: "
                             f"{error!r}") from error  # fmt: skip
        return self

    def sampled(self, timing: Timing) -> tuple[int, ...]:
        """Numbers of the frames to take of a clip."""
        last = timing.frames - 1
        if self.rate is None or self.most is None:
            return tuple(range(timing.frames))
        wanted = max(1, min(round(self.rate * timing.duration), self.most))
        first, end = 0, last
        if self.skip > 0 and timing.duration - 2 * self.skip > self.most * self.rate:
            first, end = int(self.skip * timing.rate), min(last, int(timing.frames - self.skip * timing.rate))
        if first >= end:
            first, end = 0, last
        return tuple(np.unique(np.linspace(first, end, wanted, dtype=int)).tolist())

    def pieces(self, media: Media) -> Iterator[str | Media]:
        """Words, and each frame as a clip of one, in the order in which they stand.

        Raises UserError for a clip that knows no times.
        """
        if not isinstance(media, Clip):
            raise UserError("this model is told when each frame of a clip is shown, and this one has no times: give "
                            f"a Clip (timing, taking), for example ClipFile), not {type(media).__name__}")  # fmt: skip
        clip = media if media.asked else media.taking(self.sampled(media.timing()))
        timing, load = clip.timing(), cache(clip.load)
        yield self._opened(timing)
        for place, (number, time) in enumerate(zip(timing.taken, timing.times)):
            yield self._before(time)
            yield Frame(clip, number, place, load)
        yield self.closes

    def _opened(self, timing: Timing) -> str:
        number = len(timing.taken)
        return self.opens.format(
            number=number, count=in_words(number), duration=timedelta(seconds=int(timing.duration))
        )

    def _before(self, time: float) -> str:
        return self.frame.format(minutes=int(time // 60), seconds=int(time % 60))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as a clip of one (Media).

    number, place  which it is of the whole clip, and among those that are given
    read           what decodes these, once for all of them
    """

    clip: Clip
    number: int
    place: int
    read: Callable[[], list[Any]]

    def key(self) -> str:
        """Of equal frames it is equal, however many are given."""
        return hashlib.sha256(self.clip.taking((self.number,)).key().encode()).hexdigest()

    def shape(self) -> tuple[int, int, int]:
        """(1, height, width)"""
        _, height, width = self.clip.shape()
        return 1, height, width

    def load(self) -> list[Any]:
        """The frame, a PIL image in mode RGB. Raises MediaError."""
        return [self.read()[self.place]]


def in_words(number: int) -> str:
    """A number in English, as far as millions: 2345 is "two thousand, three hundred and forty-five".

    Raises UserError for one that is larger, or negative.
    """
    if not 0 <= number < 1_000_000:
        raise UserError(f"{number} is not written in words here: a number from 0 to 999,999 is")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joined = "" if not rest else f" and {in_words(rest)}" if rest < 100 else f", {in_words(rest)}"
    return f"{in_words(thousands)} thousand{joined}"
