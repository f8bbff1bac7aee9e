"""Questions, metrics and answerers that are written by hand, for tests of the runner and of endpoints."""

import hashlib
import random

import numpy as np
from PIL import Image

from sensorium.evaluate.answerer import Said, written
from sensorium.evaluate.asked import Asked
from sensorium.evaluate.item import Items, TaskItem, TaskSource
from sensorium.evaluate.metrics.base import Mean, Score
from sensorium.infer.likelihoods import Likelihoods
from sensorium.sequence import MediaError, Segment

HELD = {}
"""What sources hold, by name: a source is a value, its items are not."""


class Held(TaskSource):
    held: str

    def load(self):
        return HELD[self.held]


def hold(name, items, bad=()):
    HELD[name] = Items(list(items), list(bad))
    return Held(held=name)


class Exactly(Mean):
    """Right when the words are one of the answers; none are read in "???"."""

    names = (Score("accuracy"),)

    def parse(self, said, item):
        words = said.strip().lower()
        return None if not words or "?" in words else words

    def each(self, items, parsed):
        return np.array([float(one in item.answers) for item, one in zip(items, parsed)])


class Likeliest(Mean):
    needs = "likelihoods"
    names = (Score("accuracy"),)

    def parse(self, said, item):
        return said.best

    def each(self, items, parsed):
        return np.array([float(one is not None and item.answer == one) for item, one in zip(items, parsed)])

    def chance(self, items):
        return sum(1 / len(item.options) for item in items) / len(items)


class Noise:
    """Pixels that depend on the seed, of any size; `broken` ones are like a file that is missing."""

    def __init__(self, seed, broken="", size=8):
        self.seed, self.broken, self.size = seed, broken, size

    def key(self):
        if self.broken == "missing":
            raise MediaError(f"picture {self.seed}: no such file")
        return hashlib.sha256(f"{self.seed} {self.size}".encode()).hexdigest()

    def shape(self):
        return (self.size, self.size)

    def load(self):
        if self.broken:
            raise MediaError(f"picture {self.seed}: cannot be decoded")
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def shows(*pictures):
    return tuple(Segment("image", one if isinstance(one, Noise) else Noise(one), "user") for one in pictures)


def items(count, **changes):
    """Each about a picture of its own, with ten answers of which one is said by `Knowing`."""
    return [
        TaskItem(id=f"q{n}", question=f"What is picture {n}?", media=shows(n), answers=(f"thing {n}",),
                 options=("a", "bb", f"thing {n}", "dd"), answer=2, part=("odd" if n % 2 else "even"), **changes)
        for n in range(count)
    ]  # fmt: skip


class Scripted:
    """Answers what `say` makes of (words of the question, seeds of its pictures); hears in an order of its own."""

    title = "scripted"

    def __init__(self, say, order=None, fingerprint="scripted", stop_after=None):
        self.say, self.order, self.fingerprint, self.stop_after = say, order, fingerprint, stop_after
        self.asked = []

    def generate(self, samples, sampling, heard):
        numbers = list(range(len(samples)))
        if self.order is not None:
            random.Random(self.order).shuffle(numbers)
        for count, number in enumerate(numbers):
            if count == self.stop_after:
                raise KeyboardInterrupt
            segments = samples[number].segments
            text = "".join(one.data for one in segments if one.kind == "text")
            self.asked.append((text, tuple(one.data.seed for one in segments if one.kind == "image")))
            said = self.say(*self.asked[-1])
            heard(number, said if isinstance(said, Said) else Said(said))

    def likelihoods(self, questions, heard):
        for number, (segments, options) in enumerate(questions):
            self.asked.append((str(written(segments)), tuple(options)))
            rng = random.Random(f"{written(segments)}{options}")
            heard(number, Likelihoods(tuple(-rng.random() for _ in options), (1.0,) * len(options)))


def sees(text, pictures):
    """Says what the picture is."""
    return f"thing {pictures[-1]}" if pictures else "nothing"


def task(source, **changes):
    return Asked(**{"name": "made", "source": source, "metric": Exactly(), **changes})


def plain_records(result):
    """Without what depends on whether records are kept."""
    return [{**vars(one), "key": "", "blind_key": ""} for one in result.records]
