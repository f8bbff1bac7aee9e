"""Needles in haystacks: one fact in a long text, one picture among many; recall by length and depth. They need nothing.

Texts: Kamradt 2023 (a fact that the rest does not tell, at every depth of texts of every length), with several numbers
to confuse as in RULER (arXiv 2404.06654, "multi-key"). Pictures: as in MM-NIAH and VisualHaystacks (arXiv 2406.07230,
2407.13766), a question that one picture of many answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

from pydantic import Field

from sensorium.data.emoji import Artist, Concept, EmojiPicture, Split, pictures
from sensorium.evaluate.item import PLACE, Items, TaskItem, TaskSource
from sensorium.sequence import Segment

PLACES = (
    "Aberdeen", "Bergen", "Cusco", "Dakar", "Essen", "Fukuoka", "Ghent", "Hanoi", "Izmir", "Jaipur", "Kigali", "Lagos",
    "Malmo", "Nantes", "Osaka", "Porto", "Quito", "Riga", "Seville", "Turin", "Utrecht", "Varna", "Warsaw", "Yerevan",
)  # fmt: skip
WHO = ("The baker", "A teacher", "My neighbour", "The old captain", "Her sister", "A tall man", "Nobody")
DID = ("walked along", "looked at", "painted", "remembered", "wrote about", "photographed", "cleaned", "drew a map of")
WHAT = ("the harbour", "a narrow street", "the market hall", "an empty garden", "the bridge", "a row of houses")
WHEN = ("in the morning", "before the rain", "after lunch", "late at night", "on a windy day", "in early spring")


Pictures = Sequence[tuple[Concept, Artist]]


class TextNeedle(TaskSource):
    """The number of one place, said once in a text of so many words; other places have other numbers.

    lengths   words of the text
    depths    where the fact stands, from 0 (first) to 1 (last)
    each      texts of every length and depth
    others    further facts of the same form, to confuse
    """

    title: ClassVar[str] = "needle in a text"
    metric: ClassVar[str] = "needle"

    lengths: tuple[int, ...] = Field(default=(128, 256, 512, 1024), min_length=1)
    depths: tuple[float, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1)
    each: int = Field(default=5, ge=1)
    others: int = Field(default=2, ge=0, le=len(PLACES) - 1)
    seed: int = 0

    def load(self) -> Items:
        return Items([self._item(length, depth, number) for length in self.lengths for depth in self.depths
                      for number in range(self.each)])  # fmt: skip

    def _item(self, length: int, depth: float, number: int) -> TaskItem:
        rng = random.Random(f"{self.seed} {length} {depth} {number}")
        places = rng.sample(PLACES, self.others + 1)
        values = rng.sample(range(10_000, 100_000), len(places))
        facts = [f"The number of {place} is {value}." for place, value in zip(places, values)]
        needle, others = facts[0], facts[1:]
        room = length - sum(len(fact.split()) for fact in facts)
        lines: list[str] = []
        while room > 0:
            words = " ".join((rng.choice(WHO), rng.choice(DID), rng.choice(WHAT), rng.choice(WHEN))).split()[:room]
            lines.append(f"{' '.join(words)}.")
            room -= len(words)
        for other in others:
            lines.insert(rng.randint(0, len(lines)), other)
        before = [0, *accumulate(len(line.split()) for line in lines)]
        lines.insert(min(range(len(before)), key=lambda at: abs(before[at] - depth * before[-1])), needle)
        return TaskItem(
            id=f"{length}/{depth:g}/{number}",
            question=f"{' '.join(lines)}\n\nWhat is the number of {places[0]}? Answer with the number alone.",
            answers=(str(values[0]),),
            part=f"{length} words",
            info={"length": length, "depth": depth},
        )


class PictureNeedle(TaskSource):
    """One picture of an animal or a plant among so many of faces and people: which is it, of four that are alike.

    lengths  pictures in a row
    depths   where the one stands, from 0 (first) to 1 (last)
    each     questions of every length and depth
    split    of the built-in emoji, for the one that is asked for
    """

    title: ClassVar[str] = "needle among pictures"
    metric: ClassVar[str] = "needle"

    lengths: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    depths: tuple[float, ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    each: int = Field(default=8, ge=1)
    split: Split = "val_artist"
    seed: int = 0

    def load(self) -> Items:
        every = sorted(pictures(self.split), key=lambda pair: (pair[0].key, pair[1]))
        living = [pair for pair in every if pair[0].category == LIVING]
        hay = [pair for pair in every if pair[0].category in FACES and pair[0].subcategory not in ANIMALS]
        return Items([self._item(living, hay, length, depth, number) for length in self.lengths
                      for depth in self.depths for number in range(self.each)])  # fmt: skip

    def _item(self, living: Pictures, hay: Pictures, length: int, depth: float, number: int) -> TaskItem:
        rng = random.Random(f"{self.seed} {length} {depth} {number}")
        needle = rng.choice(living)
        row = rng.sample(hay, length - 1)
        row.insert(round(depth * len(row)), needle)
        name = needle[0].captions["en"]
        options = [name, *_alike(needle[0], [one for one, _ in living], rng)]
        rng.shuffle(options)
        media = tuple(Segment("image", EmojiPicture(one.key, artist), "user") for one, artist in row)
        shown = f"{PLACE * length}\nOne of these pictures shows an animal or a plant. Which is it?"
        asked = f"{PLACE}\nWhich animal or plant is it?" if length == 1 else shown
        return TaskItem(
            id=f"{length}/{depth:g}/{number}",
            question=asked,
            media=media,
            answers=(name,),
            options=tuple(options),
            answer=options.index(name),
            part=f"{length} pictures",
            info={"length": length, "depth": depth},
        )


LIVING = "Animals & Nature"
FACES = ("Smileys & Emotion", "People & Body")
ANIMALS = ("cat-face", "monkey-face")
"""Faces that are no people's."""


def _alike(needle: Concept, living: list[Concept], rng: random.Random) -> list[str]:
    """Three other names, of the same kind as far as there are any."""
    name = needle.captions["en"]
    kin = sorted({one.captions["en"] for one in living if one.subcategory == needle.subcategory} - {name})
    rest = sorted({one.captions["en"] for one in living} - {name, *kin})
    return rng.sample(kin, 3) if len(kin) >= 3 else [*kin, *rng.sample(rest, 3 - len(kin))]


NEEDLES: dict[str, type[TaskSource]] = {"needle": TextNeedle, "picture_needle": PictureNeedle}
