"""The built-in emoji set: 1,563 concepts by three artists, named in ten languages, and its splits.

A concept's split follows from its key alone, so no set, artist or language can leak a held-out concept. The 245
country flags are a further subset that is off unless asked for (two of the three sets share one drawing of them).
Licences of pictures and words are in `builtin/emoji/licenses`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import threading
import zipfile
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageColor

from sensorium.errors import UserError, nearest
from sensorium.sequence import MediaError

ROOT = Path(__file__).parent / "builtin" / "emoji"
Language = Literal["en", "zh", "fr", "de", "es", "ja", "ko", "ru", "ar", "hi"]
Artist = Literal["fluent", "google", "twitter"]
Split = Literal["train", "val_artist", "val_concept", "dev_artist", "dev_concept"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
ARTISTS: tuple[Artist, ...] = get_args(Artist)
SPLITS: tuple[Split, ...] = get_args(Split)
TRAIN_ARTISTS: tuple[Artist, ...] = ("fluent", "google")
SIZES: dict[str, int] = {"fluent": 128, "google": 64, "twitter": 64}
"""Pixels on a side; every picture is square."""

HELD_OUT = 0.85
"""Concepts whose fraction is at least this are never trained on."""
DEV_CONCEPT = (0.80, HELD_OUT)
DEV_ARTIST = 0.20


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji.

    key       code points in upper-case hex joined by '-', U+FE0F left out
    captions  {language: name}
    keywords  {language: words}, the name itself often among them
    boxes     {artist: (x0, y0, x1, y1)} of the drawing in its picture, pixels
    """

    key: str
    characters: str
    category: str
    subcategory: str
    captions: dict[str, str] = field(repr=False, hash=False)
    keywords: dict[str, tuple[str, ...]] = field(repr=False, hash=False)
    boxes: dict[str, tuple[int, int, int, int]] = field(repr=False, hash=False)

    @property
    def is_country_flag(self) -> bool:
        return self.subcategory == "country-flag"


def key_of(characters: str) -> str:
    """The key of an emoji given as text: `"🖐️"` -> `1F590`."""
    return "-".join(f"{ord(character):04X}" for character in characters if character != "\ufe0f")


def fraction_of(key: str) -> float:
    """int(sha256(key), 16) / 2**256, uniform in [0, 1]."""
    return int(hashlib.sha256(key.encode("ascii")).hexdigest(), 16) / 2**256


def split_of(key: str) -> Literal["train", "val_concept"]:
    """Whether a concept may be trained on, by the rule that every set of this project shares."""
    return "val_concept" if fraction_of(key) >= HELD_OUT else "train"


@lru_cache(maxsize=1)
def _table() -> dict[str, Concept]:
    rows = gzip.decompress((ROOT / "emoji.jsonl.gz").read_bytes()).decode("utf-8").splitlines()
    table = {}
    for row in map(json.loads, rows):
        keywords = {language: tuple(words) for language, words in row["keywords"].items()}
        boxes = {artist: tuple(box) for artist, box in row["boxes"].items()}
        table[row["key"]] = Concept(**{**row, "keywords": keywords, "boxes": boxes})
    return table


@lru_cache(maxsize=2)
def concepts(flags: bool = False) -> tuple[Concept, ...]:
    """All concepts in Unicode's order: 1,563, or 1,808 with the country flags."""
    return tuple(concept for concept in _table().values() if flags or not concept.is_country_flag)


def concept(key: str) -> Concept:
    """The concept of a key. Raises UserError for a key the set does not have."""
    table = _table()
    if key not in table:
        raise UserError(f"the emoji set has no concept {key!r}: {nearest(key, table)}")
    return table[key]


@lru_cache(maxsize=16)
def pictures(split: str, holdout_dev: bool = False, flags: bool = False) -> tuple[tuple[Concept, Artist], ...]:
    """(concept, artist) pairs of a split, artist by artist.

    train         concepts that may be trained on, by fluent and google
    val_artist    the same concepts by twitter
    val_concept   held-out concepts by all three
    dev_concept   concepts with a fraction in [0.80, 0.85) by fluent and google
    dev_artist    concepts with a fraction below 0.20 by google
    The two dev splits serve tuning without a look at validation. They are slices of train, which `holdout_dev` takes
    out of it. Raises UserError for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"the emoji set has no split {split!r}: {nearest(split, SPLITS)}")
    chosen = []
    for artist in ARTISTS:
        for member in concepts(flags):
            fraction = fraction_of(member.key)
            held = fraction >= HELD_OUT
            dev_concept = DEV_CONCEPT[0] <= fraction < DEV_CONCEPT[1]
            dev_artist = artist == "google" and fraction < DEV_ARTIST
            member_of = {
                "train": not held and artist != "twitter" and not (holdout_dev and (dev_concept or dev_artist)),
                "val_artist": not held and artist == "twitter",
                "val_concept": held,
                "dev_concept": dev_concept and artist != "twitter",
                "dev_artist": dev_artist,
            }
            if member_of[split]:
                chosen.append((member, artist))
    return tuple(chosen)


class _Archive:
    """Random access to a stored zip: positional reads on one descriptor, so threads and forked workers can share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, tuple[int, int]] = {}
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # A local header is 30 bytes, the name and an extra field; ours has no extra field.
                start = info.header_offset + 30 + len(info.filename.encode("utf-8"))
                self.members[info.filename.removesuffix(".webp")] = (start, info.file_size)
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._lock = threading.Lock()

    def read(self, key: str) -> bytes:
        start, size = self.members[key]
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, start)
        with self._lock:  # systems without pread have no fork either, so a lock is enough
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, size)


@cache
def _archive(artist: str) -> _Archive:
    return _Archive(ROOT / f"{artist}.zip")


@cache
def picture_digest(key: str, artist: str) -> bytes:
    """sha256 of the WebP file of a concept by an artist."""
    return hashlib.sha256(read_picture(key, artist)).digest()


def read_picture(key: str, artist: str) -> bytes:
    """The WebP file of a concept by an artist. Raises UserError for an unknown artist or key."""
    if artist not in ARTISTS:
        raise UserError(f"the emoji set has no artist {artist!r}: {nearest(artist, ARTISTS)}")
    return _archive(artist).read(concept(key).key)


def decode(key: str, artist: str) -> Image.Image:
    """The picture in mode RGBA, transparent around the drawing. Raises MediaError, which names the member."""
    try:
        with Image.open(io.BytesIO(read_picture(key, artist))) as image:
            return image.convert("RGBA")
    except OSError as error:
        raise MediaError(f"{ROOT / artist}.zip: {key}.webp cannot be decoded: {error}") from error


@dataclass(frozen=True, slots=True)
class EmojiPicture:
    """A concept by an artist on a plain background, any colour PIL knows (Media)."""

    concept: str
    artist: str
    background: str = "white"

    def key(self) -> str:
        """sha256 of the picture's bytes and the background."""
        colour = bytes(ImageColor.getrgb(self.background)[:3])
        return hashlib.sha256(picture_digest(self.concept, self.artist) + colour).hexdigest()

    def shape(self) -> tuple[int, int]:
        side = SIZES[self.artist]
        return side, side

    def load(self) -> Image.Image:
        drawing = decode(self.concept, self.artist)
        image = Image.new("RGB", drawing.size, self.background)
        image.paste(drawing, mask=drawing.getchannel("A"))
        return image
