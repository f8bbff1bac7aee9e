"""Which names a split may speak of: held-out concepts are never named where something is trained."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

from sensorium.data.emoji import DEV_CONCEPT, LANGUAGES, Concept, concepts, fraction_of, pictures, split_of


def draw(*parts: object) -> random.Random:
    """A random generator that is a function of `parts` alone, in every process and on every machine."""
    text = "\x1f".join(map(str, parts))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:16], "big"))


@cache
def held_out_names(holdout_dev: bool = False) -> frozenset[str]:
    """Case-folded captions, in every language, of the concepts that must not be trained on.

    These are the val_concept ones, with `holdout_dev` those of dev_concept too.
    """
    held = [
        member
        for member in concepts(flags=True)
        if split_of(member.key) == "val_concept" or (holdout_dev and fraction_of(member.key) >= DEV_CONCEPT[0])
    ]
    return frozenset(member.captions[language].casefold() for member in held for language in LANGUAGES)


@dataclass(frozen=True)
class Names:
    """The concepts a split may name in a language, with their neighbours. No two share a name."""

    captions: dict[str, str]
    forbidden: frozenset[str]
    """Case-folded names, of any language, that must not be said at all."""
    by_subcategory: dict[str, tuple[str, ...]]
    by_category: dict[str, tuple[str, ...]]

    def distractors(self, member: Concept, count: int, rng: random.Random) -> list[str]:
        """`count` names of other concepts: of the same subcategory, and where it is too small, of the same category.

        Fewer when the category is too small as well.
        """
        near = [key for key in self.by_subcategory.get(member.subcategory, ()) if key != member.key]
        chosen = rng.sample(near, min(count, len(near)))
        if len(chosen) < count:
            taken = {member.key, *chosen}
            far = [key for key in self.by_category.get(member.category, ()) if key not in taken]
            chosen += rng.sample(far, min(count - len(chosen), len(far)))
        return [self.captions[key] for key in chosen]


def named_pictures(
    split: str, language: str, holdout_dev: bool = False, flags: bool = False
) -> tuple[dict[str, str], list[tuple[Concept, str]]]:
    """Names of a split's concepts in a language, by key, and all pictures (concept, artist) of those that have one."""
    captions = names(split, language, holdout_dev, flags).captions
    return captions, [row for row in pictures(split, holdout_dev, flags) if row[0].key in captions]


@cache
def names(split: str, language: str, holdout_dev: bool = False, flags: bool = False) -> Names:
    """Names of a split's concepts in a language.

    A trained concept whose name some held-out concept has too, in whichever language, is left out: saying it would
    teach the held-out one's name.
    """
    forbidden = frozenset() if split in ("val_concept", "dev_concept") else held_out_names(holdout_dev)
    captions: dict[str, str] = {}
    by_subcategory: dict[str, list[str]] = defaultdict(list)
    by_category: dict[str, list[str]] = defaultdict(list)
    for member, _ in pictures(split, holdout_dev, flags):
        caption = member.captions[language]
        if member.key in captions or caption.casefold() in forbidden:
            continue
        captions[member.key] = caption
        by_subcategory[member.subcategory].append(member.key)
        by_category[member.category].append(member.key)
    near = {name: tuple(keys) for name, keys in by_subcategory.items()}
    return Names(captions, forbidden, near, {name: tuple(keys) for name, keys in by_category.items()})
