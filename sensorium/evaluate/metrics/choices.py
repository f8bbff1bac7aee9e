"""Multiple choice: by what the model says, and by the likelihood of each option."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Mean, Score, words_of
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

LETTERS = string.ascii_uppercase

_MARKUP = re.compile(r"[*_`$#]|\\boxed|\\text|</?[a-z]+>|<\|[^|<>]*\|>")
_LETTER = (
    r"(?:([B-HJ-Z])(?![A-Za-z'’])|([AI])(?![A-Za-z'’])(?!\s+(?!(?:because|since|as|for|and|or)\b)[A-Za-z])"
    r"|([a-z])(?=\s*(?:[)}\]）.,:;!?。，]|$)))"
)
"""A letter that is no word: `a cat` and `A cat` begin with words."""

_ANNOUNCED = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)\b|答案|选项|回答)\s*"
    r"(?i:\b(?:is|should be|would be|must be)\b|[:：=]|是|为|\s)*"
    r"(?i:\b(?:option|choice|letter)\b\s*)?[:：]?\s*[({\[（]?\s*" + _LETTER
)
_OPENING = re.compile(r"\s*[({\[（]?\s*([A-Za-z])\s*(?:[)}\]）.:：,，、;]|\s-|$|\n)")
_BRACKETED = re.compile(r"[({\[（]\s*([A-Z])\s*[)}\]）]")
_ALONE = re.compile(r"(?<![A-Za-z'’0-9])([B-HJ-Z])(?![A-Za-z'’0-9])")
"""A capital that stands alone, A and I left out: those are words."""

_DENIED = re.compile(r"\b(?:not|neither|nor|cannot|never|unable|unsure|unclear)\b|n['’]t\b", re.IGNORECASE)


def chosen(said: str, options: Sequence[str]) -> int | None:
    """The number of the option that an answer names, or None where it names none or more than one.

    Read in this order: the whole answer is a letter or an option's text; it opens with a letter (`B.`, `(B)`, `B:`);
    it announces one (`Answer: B`, `the answer is (B)`); one option's text stands in it; a letter in brackets; a letter
    by itself. Letters outside the options are not letters of an answer, and in a text that denies something (`not B`)
    only a letter that opens it or is announced counts.
    """
    text = _MARKUP.sub("", said).strip()
    if not text or not options:
        return None
    letters = LETTERS[: len(options)]

    def places(found: Iterable[str | tuple[str, ...]]) -> set[int]:
        said = ("".join(letter).upper() for letter in found)
        return {letters.index(letter) for letter in said if letter and letter in letters}

    whole = [index for index, option in enumerate(options) if option and _plain(option) == _plain(text)]
    if len(whole) == 1:
        return whole[0]
    if len(bare := text.strip(" \t\n()[]{}（）.:,。")) == 1 and bare.isascii():
        return _only(places(bare))
    if (opening := _OPENING.match(text)) and (place := places(opening[1])):
        rest = text[opening.end() :]
        others = places(_BRACKETED.findall(rest)) | places(_ANNOUNCED.findall(rest)) | _listed(rest, letters)
        # `A. cat B. dog` repeats the options; `B or C` does not choose.
        return _only(place | others) if not _hedged(text, letters) else None
    announced = places(_ANNOUNCED.findall(text))
    if announced:
        return _only(announced) if not _hedged(text, letters) else None
    if _DENIED.search(text) and not any(_DENIED.search(option) for option in options):
        return None
    for found in (_named(text, options), places(_BRACKETED.findall(text)), places(_ALONE.findall(text))):
        if found:
            return _only(found) if not _hedged(text, letters) else None
    return None


def _only(found: set[int]) -> int | None:
    return found.pop() if len(found) == 1 else None


def _listed(text: str, letters: str) -> set[int]:
    """Letters that open an item of a list."""
    return {letters.index(letter) for letter in re.findall(r"(?:^|\s)([A-Z])[.):]\s", text) if letter in letters}


def _hedged(text: str, letters: str) -> bool:
    """Whether two different letters are joined: `A or B`, `A and C`, `A/B`, `A, B`."""
    joined = (
        r"(?<![A-Za-z])[(\[]?([A-Z])[)\]]?\s*(?:\bor\b|\band\b|/|&|,|，|、|或|和)\s*[(\[]?([A-Z])[)\]]?(?![A-Za-z'’])"
    )
    pairs = re.findall(joined, text)
    return any(one != other and one in letters and other in letters for one, other in pairs)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.%-]", " ", text).casefold().split()).strip(" .")


def _named(text: str, options: Sequence[str]) -> set[int]:
    """Options whose words stand in a text. An option inside a longer one that stands there too does not count."""
    spans: list[tuple[int, int, int]] = []
    plain = _plain(text)
    for index, option in enumerate(options):
        words = _plain(option)
        if words:
            bound = re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", plain)
            spans += [(found.start(), found.end(), index) for found in bound]
    return {
        index
        for start, end, index in spans
        if not any(a <= start and end <= b and (b - a) > (end - start) for a, b, _ in spans)
    }


class Options(Mean):
    """A metric of questions with options: right is the number in `item.answer`; guessing is right once in the options.

    Raises UserError where an item has no options.
    """

    names = (Score("accuracy"),)

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([float(answer is not None and answer == _right(item)) for item, answer in zip(items, parsed)])

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        return float(np.mean([1 / len(item.options) for item in items if item.options])) if items else None


def _right(item: TaskItem) -> int | None:
    if not item.options:
        raise UserError(
            f"item {item.id} has no options to choose from: this metric is for multiple choice; "
            "give the item options, or use a metric of open answers such as exact"
        )
    return item.answer


class Choice(Options):
    """Multiple choice by what the model says; see `chosen` for what is understood. Parsed: the option's number."""

    def parse(self, said: str | Likelihoods, item: TaskItem) -> int | None:
        return chosen(words_of(said), item.options)

    def prompt(self, item: TaskItem) -> str:
        return "Answer with the option's letter from the given choices directly."


class Likelihood(Options):
    """Multiple choice by the log-probability of each option's text behind the question. Parsed: the option's number.

    scoring  sum: of the whole option; mean: per token (length-normalised), which does not favour short options
    """

    needs = "likelihoods"
    scoring: Literal["sum", "mean"] = "sum"

    def parse(self, said: str | Likelihoods, item: TaskItem) -> int | None:
        if isinstance(said, str):
            raise TypeError("this metric reads likelihoods of the options, given words")
        if len(said.sums) != len(item.options) or not all(map(math.isfinite, said.sums)) or not all(said.counts):
            return None
        return said.best if self.scoring == "sum" else said.best_per_token
