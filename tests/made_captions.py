"""Captions as people and models write them, made of the built-in names and sentences; the same for every seed."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sensorium.data.builtin_phrases import COUNTS, SCENE
from sensorium.data.emoji import concepts

PLAIN = Path(__file__).parents[1] / "sensorium" / "data" / "builtin" / "text" / "plain.txt"
FORMS = (
    "A {name} next to a {other} on the {place}.", "There are {count} {name}s in front of the {other}.",
    "a picture of a {name}", "The {name} isn't near the {other}, it's at the {place}.",
    "A close-up of {article} {name} and {article2} {other}", "Someone's {name} is standing beside a {other}.",
    "A man can't see the {name} behind the {other}.", "Two people are holding a {name} at {hour}:{minute} p.m.",
    "A black-and-white photo of a {name}, a {other} and {digit} more things.", "“{name}” is written on a {other}.",
    "{name} / {other}", "A {name} that costs ${digit}.{minute} (or {percent}% off)!", "It's a {name}; that's all.",
    "Here's the \"{name}\" -- we don't know why...", "A {name} with the no. {digit} on its side", "What a {name}!?",
    "an image shows {digit},{minute}0 {name}s in St. {place} street", "There is a {name} to the left of the {other}",
    "The dog's {name} and the dogs' {other}", "A {name} is sitting on top of a {other} in the {place}",
    "They're looking at a well-known {name}", "A {name} in the 1980s, e.g. near the {other}", "I'd say: a {name}",
    "café with a {name} & naïve {other}", "a {name} and/or a {other}", "{count} {name}s and one {other} [blurry]",
    "A {name}'s photo – taken at the {place} – of a {other}", "‘{name}’ beside the {other}",
)  # fmt: skip
PLACES = ("top left", "top right", "beach", "corner", "street", "living room", "table", "bottom")
LANGUAGES = ("de", "fr", "es", "ru", "zh", "ja")


class Made(NamedTuple):
    """What was said of a picture, and five references."""

    said: str
    references: tuple[str, ...]


@cache
def _names() -> list[dict[str, str]]:
    return [dict(member.captions) for member in concepts()]


@cache
def _sentences() -> list[str]:
    return [line for line in PLAIN.read_text("utf-8").splitlines() if line.strip()]


def made_captions(count: int, seed: int = 0) -> list[Made]:
    """`count` items: references about two built-in things, and an answer that is near to one of them, or not."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        one, other = rng.sample(_names(), 2)
        references = tuple(_sentence(rng, one, other) for _ in range(5))
        sort = rng.random()
        if sort < 0.6:
            said = _changed(rng, rng.choice(references))
        elif sort < 0.85:
            said = _sentence(rng, one, other)
        elif sort < 0.95:
            said = rng.choice(_sentences())
        else:
            said = rng.choice((one[rng.choice(LANGUAGES)], rng.choice(SCENE["describe"]), one["en"], "a"))
        items.append(Made(said, references))
    return items


def _sentence(rng: random.Random, one: dict[str, str], other: dict[str, str]) -> str:
    name, second = (one["en"], other["en"]) if rng.random() < 0.8 else (other["en"], one["en"])
    return rng.choice(FORMS).format(
        name=name, other=second, place=rng.choice(PLACES), count=rng.choice(COUNTS), digit=rng.randint(0, 999),
        minute=rng.randint(10, 59), hour=rng.randint(1, 12), percent=rng.randint(1, 100),
        article="an" if name[0] in "aeiou" else "a", article2="an" if second[0] in "aeiou" else "a",
    )  # fmt: skip


def _changed(rng: random.Random, caption: str) -> str:
    """A few words dropped, doubled, swapped or written otherwise."""
    words = caption.split()
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(words))
        match rng.randrange(6):
            case 0 if len(words) > 1:
                del words[place]
            case 1:
                words.insert(place, words[place])
            case 2:
                words[place] = words[place].upper()
            case 3:
                words[place] += rng.choice(("", "", ".", ",", "!", "?", "...", " -", ":", "’s", "'s", ")"))
            case 4:
                words[place] = rng.choice(("the", "a", "dog", "isn't", "can't", "it's", "don't", "they’re", "12"))
            case _ if len(words) > 1:
                swap = rng.randrange(len(words))
                words[place], words[swap] = words[swap], words[place]
            case _:
                pass
    return " ".join(words)
