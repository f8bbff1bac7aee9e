"""CHAIR: objects that a caption names and its picture does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.metrics.coco_words import COCO_WORDS, NO_OBJECTS
from sensorium.evaluate.metrics.tokenize import caption_tokens
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "persons": "person", "knives": "knife",
    "wolves": "wolf", "calves": "calf", "loaves": "loaf", "mice": "mouse", "geese": "goose", "oxen": "ox",
    "feet": "foot", "teeth": "tooth", "policemen": "policeman", "firemen": "fireman", "gentlemen": "gentleman",
    "buses": "bus", "busses": "bus", "wives": "wife", "scissors": "scissors", "skis": "skis", "cookies": "cookie",
    "selfies": "selfie", "movies": "movie", "ties": "tie", "bowties": "bowtie", "neckties": "necktie", "pies": "pie",
}  # fmt: skip


def singular(word: str) -> str:
    """An English noun in the singular; a word that is no plural stays."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")) and len(word) > 4:
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


class Chair(Metric):
    """CHAIRs and CHAIRi (Rohrbach et al. 2018, arXiv 1809.02156, section 2.1), and how many of the objects are named.

    CHAIRs: captions with an object that is not in the picture; CHAIRi: mentions of such objects, of all mentions. In
    the picture are `item.info["objects"]` and what the references `item.answers` name. Nothing said names no object; it
    counts as a caption with a hallucination, so that silence is no way to a good score. Parsed: the objects named.

    words  object -> its other names; none: the 80 objects of COCO with names of our own, so figures of papers that
           use another list are near, not equal
    Statistics: captions hallucinating, captions, mentions hallucinated, mentions, objects named, objects.
    """

    names = (Score("CHAIRs", better="lower"), Score("CHAIRi", better="lower"), Score("recall"))
    words: Mapping[str, tuple[str, ...]] = {}

    @cached_property
    def _objects(self) -> dict[tuple[str, ...], str | None]:
        table = self.words or COCO_WORDS
        found: dict[tuple[str, ...], str | None] = {}
        if not self.words:
            found = {tuple(phrase.split()): None for phrase in NO_OBJECTS}
        for name, others in table.items():
            for phrase in (name, *others):
                for words in (caption_tokens(phrase), _last_singular(caption_tokens(phrase))):
                    found.setdefault(words, name)
        return found

    def mentioned(self, caption: str) -> list[str]:
        """The objects that a caption names, in order, each time it does; the longest phrase counts (`hot dog`)."""
        words, found, place = caption_tokens(caption), [], 0
        longest = max(map(len, self._objects), default=1)
        while place < len(words):
            for length in range(min(longest, len(words) - place), 0, -1):
                phrase = words[place : place + length]
                known = phrase if phrase in self._objects else _last_singular(phrase)
                if known in self._objects:
                    name = self._objects[known]
                    found += [] if name is None else [name]
                    place += length
                    break
            else:
                place += 1
        return found

    def parse(self, said: str | Likelihoods, item: TaskItem) -> list[str] | None:
        text = words_of(said)
        return self.mentioned(text) if caption_tokens(text) else None

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._row(item, said) for item, said in zip(items, parsed)], np.float64).reshape(-1, 6)

    def _row(self, item: TaskItem, said: list[str] | None) -> tuple[int, ...]:
        there = {name for text in item.answers for name in self.mentioned(text)}
        for listed in item.info.get("objects", ()):
            named = self.mentioned(str(listed))
            if not named:
                raise UserError(f"item {item.id} has the object {listed!r}, which the list of words does not know: "
                                f"{nearest(str(listed), self.words or COCO_WORDS)}")  # fmt: skip
            there.update(named)
        if said is None:
            return (1, 1, 0, 0, 0, len(there))
        wrong = [name for name in said if name not in there]
        return (bool(wrong), 1, len(wrong), len(said), len(there & set(said)), len(there))

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[..., ::2] / sums[..., 1::2]

    def prompt(self, item: TaskItem) -> str:
        return "Describe the picture."


def _last_singular(words: tuple[str, ...]) -> tuple[str, ...]:
    return (*words[:-1], singular(words[-1])) if words else words
