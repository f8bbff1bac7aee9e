"""Definitions of English words from WordNet 3.0: plain text, and documents in which pictures stand among it.

Debian package `wordnet-base` (WordNet licence, 6 MB), fetched when asked for, never part of this project.
117,659 definitions, many with examples (Fellbaum 1998, WordNet: An Electronic Lexical Database).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from sensorium.data.builtin_names import draw, named_pictures
from sensorium.data.emoji import HELD_OUT, EmojiPicture, fraction_of
from sensorium.data.fetched import cache_folder, link
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment

NAME, PACKAGE = "wordnet", "wordnet-base"
ARCHIVE_BYTES = 6_467_132  # of version 1:3.0-37
FOLDER = "usr/share/wordnet"
FILES = (f"{FOLDER}/data.*",)

GlossSplit = Literal["train", "val"]


class Gloss(NamedTuple):
    """words: those that it defines, the commonest first."""

    id: str
    words: tuple[str, ...]
    text: str

    @property
    def sentence(self) -> str:
        return f"{self.words[0]}: {self.text}"


class Glosses(SourceConfig):
    """Text alone: a word, and what it means.

    split  val: the words whose fraction (sha256 of the definition's id) is 0.85 or more, never trained on
    root   the package's tree; None: where `sensorium fetch wordnet` puts it
    """

    split: GlossSplit = "train"
    root: str | None = None

    def build(self) -> _Glosses:
        return _Glosses(self)


class _Glosses:
    def __init__(self, config: Glosses) -> None:
        self.rows = [
            one for one in glosses(config.root) if (fraction_of(one.id) >= HELD_OUT) == (config.split == "val")
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        return Sample((Segment("text", row.sentence),), id=f"gloss/{row.id}", source="glosses")


class PicturedGlosses(SourceConfig):
    """Interleaved documents: pictures of the trained emoji, each behind the definition of what it shows.

    count     documents
    pictures  of a document; its words are drawn by its number and the seed
    """

    count: int = Field(default=10_000, ge=1)
    pictures: int = Field(default=2, ge=1)
    root: str | None = None
    seed: int = 0

    def build(self) -> _PicturedGlosses:
        return _PicturedGlosses(self)


class _PicturedGlosses:
    def __init__(self, config: PicturedGlosses) -> None:
        self.config = config
        known = {word.lower(): one for one in reversed(glosses(config.root)) for word in reversed(one.words)}
        captions, rows = named_pictures("train", "en")
        self.rows = [
            (member.key, artist, found)
            for member, artist in rows
            if (found := known.get(captions[member.key].lower())) is not None and fraction_of(found.id) < HELD_OUT
        ]

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        id = f"pictured/{self.config.seed}/{index}"
        drawn = draw(id, self.config.seed).sample(self.rows, self.config.pictures)
        segments: list[Segment] = []
        for key, artist, gloss in drawn:
            segments += [Segment("text", f"{gloss.sentence}\n"), Segment("image", EmojiPicture(key, artist))]
        return Sample(tuple(segments), id=id, source="pictured glosses")


def install(fetch_package: Callable[..., Path]) -> Path:
    """Fetch the package once and link it into the cache. `fetch_package` is sensorium.hub.fetch_package, or stands for
    it; it raises UserError when no client or no network is there."""
    return link(fetch_package("debian", PACKAGE, files=FILES, size=ARCHIVE_BYTES), NAME)


@cache
def glosses(root: str | None = None) -> tuple[Gloss, ...]:
    """All definitions, nouns first, in the order of the files. Raises UserError where the package is not."""
    tree = Path(root) if root is not None else cache_folder(NAME)
    if not (tree / FOLDER / "data.noun").is_file():
        where = f"run `sensorium fetch {NAME}` (6 MB)" if root is None else f"expected the Debian package {PACKAGE}"
        raise UserError(f"WordNet is not at {tree}: {where}")
    found = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (tree / FOLDER / f"data.{kind}").read_text("utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, text = line.partition(" | ")
            offset, _, _, count, *rest = fields.split(" ")
            words = tuple(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[0 : 2 * int(count, 16) : 2])
            found.append(Gloss(f"{kind}/{offset}", words, text.strip()))
    return tuple(found)
