"""VQA accuracy: how many of ten people gave the answer, after both are written alike.

Sources: Antol et al. 2015 (arXiv 1505.00468, section 3); the rules of https://visualqa.org/evaluation.html: lower case,
no full stop but a decimal point, number words as digits, no articles, contractions with their apostrophe, and other
marks as a space, or as nothing beside one or in an answer with a comma between digits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Mean, Score, words_of
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
ARTICLES = frozenset(("a", "an", "the"))
MARKS = ';/[]"{}()=+\\_-><@`,?!'

_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Every way to leave out one apostrophe -> the contraction.

    The official list has I'm, I've and I'd've with a capital, which no word has once it is compared: they are left out.
    """
    found = {}
    for whole in _WITH_APOSTROPHES.split():
        for place, letter in enumerate(whole):
            if letter == "'":
                found[whole[:place] + whole[place + 1 :]] = whole
    return found | {"somebody'd": "somebodyd"}  # the official list has this one the other way round


CONTRACTIONS = _contractions()

_NUMBER_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def one_line(text: str) -> str:
    """Without line breaks and tabs, and without white space around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normal_answer(text: str) -> str:
    """An answer as it is compared: `The two dogs.` -> `2 dogs`."""
    text = one_line(text)
    glued = _NUMBER_COMMA.search(text) is not None
    bare = text
    for mark in MARKS:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if glued or beside_a_space else " ")
    bare = _FULL_STOP.sub("", bare)
    words = [NUMBERS.get(word, word) for word in bare.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def agreement(answer: str, given: Sequence[str]) -> float:
    """The accuracy of a normal answer among normal ones that people gave, in [0, 1].

    Each person in turn is left out, and the answer is right by a third for each of the others who gave it, at most 1;
    the mean over those left out. Of fewer than four answers, which cannot make one wholly right that way, any is right.
    """
    same, count = Counter(given)[answer], len(given)
    if count < 4:
        return float(same > 0)
    agreed, others = min(1.0, (same - 1) / 3), min(1.0, same / 3)
    return (same * agreed + (count - same) * others) / count


class Vqa(Mean):
    """VQA accuracy of `item.answers`, those of ten people (VQAv2, OK-VQA, TextVQA).

    official  to the letter of the official program, which leaves both sides as they are where all people agree: `Yes.`
              is then wrong beside ten times `yes`. It was made for answers of a closed list; of a model that writes
              freely both sides are always normalised, unless this is asked for
    """

    names = (Score("VQA accuracy"),)
    official: bool = False

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        text = words_of(said)
        normal = normal_answer(text)
        return (one_line(text) if self.official else normal) if normal else None

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._one(item, answer) for item, answer in zip(items, parsed)])

    def _one(self, item: TaskItem, answer: str | None) -> float:
        if answer is None:
            return 0.0
        given = [one_line(one) for one in item.answers]
        if self.official and len(set(given)) == 1:
            return agreement(answer, given)
        return agreement(normal_answer(answer) if self.official else answer, [normal_answer(one) for one in given])

    def prompt(self, item: TaskItem) -> str:
        return "Answer the question using a single word or phrase."
