"""The fetched stamps set: the drawings and photographs of Tux Paint, named in up to 77 languages besides English.

Debian package `tuxpaint-stamps-default` (GPL-2, 161 MB), fetched when asked for, never part of this project. Beside
each picture lies a .txt: its first line is the English caption, others are `zh_CN.utf8=...`. Of 950 captioned
pictures 785 have a PNG and are used; 165 are SVG drawings only, which are counted and left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from sensorium.data.emoji import DEV_CONCEPT, HELD_OUT
from sensorium.data.fetched import cache_folder, link
from sensorium.data.formats.base import RowSource
from sensorium.data.formats.rows import BadRow, RowReader
from sensorium.data.media import Limits
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError, nearest
from sensorium.sequence import Sample

NAME, PACKAGE = "stamps", "tuxpaint-stamps-default"
ARCHIVE_BYTES = 160_880_444  # of version 2022.06.04-1; for the progress bar
FILES = ("*/stamps/*.png", "*/stamps/*.svg", "*/stamps/*.txt", "*/copyright")
TRANSLATION = re.compile(r"([a-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?)\.utf8=(.*)")

Split = Literal["all", "train", "dev_concept", "val_concept"]


@dataclass(frozen=True)
class Stamp:
    """One captioned picture.

    key       path under the stamps folder without suffix, for example animals/birds/parrot: the concept's key
    category  its folders: animals/birds
    captions  {language: text}; English is "en", others as the package writes them: fr, zh_CN, sr@latin
    """

    key: str
    category: str
    captions: dict[str, str] = field(hash=False)


@dataclass(frozen=True)
class StampSet:
    """All stamps of a folder, sorted by key, and what was left out of it."""

    root: Path
    stamps: tuple[Stamp, ...]
    drawings: int
    """Captioned pictures that are SVG drawings only."""
    lost: int
    """Captions whose picture does not exist."""

    @property
    def languages(self) -> Counter[str]:
        """How many stamps have a caption in each language."""
        return Counter(language for stamp in self.stamps for language in stamp.captions)


class Stamps(SourceConfig):
    """Captions of stamps: a row for every picture and every asked language that names it.

    root       the package's tree or its stamps folder; None: where `sensorium fetch stamps` puts it
    languages  en, fr, zh_CN ...: see `read_stamps(...).languages`
    split      "train" or "val_concept" by the rule all sets share (sha256 of the key, 0.85); "dev_concept" is a slice
               of train for tuning, which `holdout_dev` takes out of it
    prompt     None: plain samples, every word of the caption trained; text: the caption answers it
    """

    root: str | None = None
    languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    split: Split = "train"
    holdout_dev: bool = False
    prompt: str | None = None
    limits: Limits = Limits()

    def build(self) -> StampSource:
        return StampSource(self)


class StampSource(RowSource):
    def __init__(self, config: Stamps):
        self.set = read_stamps(config.root)
        self._prompt = config.prompt
        known = self.set.languages
        for language in config.languages:
            if language not in known:
                raise UserError(f"no stamp has a caption in {language!r}: {nearest(language, known)}")
        chosen = [stamp for stamp in self.set.stamps if in_split(stamp.key, config.split, config.holdout_dev)]
        self._rows = [
            (stamp, language) for stamp in chosen for language in config.languages if language in stamp.captions
        ]
        if not self._rows:
            raise UserError(f"{self.set.root}: no stamp of split {config.split!r} has a caption in {config.languages}")
        self.reader = RowReader(str(self.set.root), "stamps", config.limits)

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        stamp, language = self._rows[index]
        return f"{self.set.root / stamp.key}.txt ({language})"

    @property
    def standing(self) -> Counter[str]:
        notes = {
            "stamps that are SVG drawings only (not used)": self.set.drawings,
            "captions without a picture": self.set.lost,
        }
        return +Counter(notes)

    def convert(self, index: int) -> Sample:
        stamp, language = self._rows[index]
        caption = stamp.captions[language]
        picture = self.reader.picture(f"{stamp.key}.png", stamp.key)
        info = {"key": stamp.key, "category": stamp.category, "language": language}
        row = {"id": f"{stamp.key}/{language}"}
        return self.reader.caption(row, self.where(index), picture, caption, self._prompt, **info)


def fraction_of(key: str) -> float:
    """int(sha256(key), 16) / 2**256: where in [0, 1) a concept lies, the rule of every set here."""
    return int(hashlib.sha256(key.encode("utf-8")).hexdigest(), 16) / 2**256


def in_split(key: str, split: Split, holdout_dev: bool = False) -> bool:
    fraction = fraction_of(key)
    dev = DEV_CONCEPT[0] <= fraction < DEV_CONCEPT[1]
    return {
        "all": True,
        "train": fraction < HELD_OUT and not (holdout_dev and dev),
        "dev_concept": dev,
        "val_concept": fraction >= HELD_OUT,
    }[split]


def find_stamps(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the categories: `root` itself or inside a package's tree. Raises UserError."""
    start = Path(root).expanduser() if root is not None else cache_folder(NAME)
    if root is None and not start.is_dir():
        raise UserError(
            f"the stamps set is not on this machine ({start}): run `sensorium fetch stamps` (161 MB, GPL-2)"
        )
    if not start.is_dir():
        raise UserError(f"{start}: no such folder; expected the stamps set (Debian package {PACKAGE}, unpacked)")
    inside = start / "usr" / "share" / "tuxpaint" / "stamps"
    return inside if inside.is_dir() else start


def read_stamps(root: str | os.PathLike[str] | None = None) -> StampSet:
    """Read every caption under `root`. Raises UserError naming a damaged caption file, or when there is none."""
    folder = find_stamps(root)
    stamps, drawings, lost = [], 0, 0
    for path in sorted(folder.rglob("*.txt")):
        relative = path.relative_to(folder).with_suffix("")
        if not path.with_suffix(".png").is_file():
            drawing = path.with_suffix(".svg").is_file()
            drawings, lost = drawings + drawing, lost + (not drawing)
            continue
        try:
            captions = parse_captions(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, BadRow) as error:
            raise UserError(f"{path} cannot be read as a stamp's captions: {error}") from error
        stamps.append(Stamp(relative.as_posix(), relative.parent.as_posix(), captions))
    if not stamps:
        raise UserError(f"{folder} has no stamps: expected pictures (.png) with captions (.txt) of the same name")
    return StampSet(folder, tuple(stamps), drawings, lost)


def parse_captions(text: str) -> dict[str, str]:
    """{language: caption} of one .txt; empty translations are left out. Raises BadRow for a line that is neither."""
    captions: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        translation = TRANSLATION.fullmatch(line)
        if translation is not None:
            language, caption = translation[1], translation[2].strip()
        elif number == 1:
            language, caption = "en", line
        else:
            raise BadRow(f"line {number}: expected language.utf8=caption, found {line[:60]!r}")
        if caption:
            captions[language] = caption
    return captions


def install(fetch_package: Callable[..., Path], files: Sequence[str] = FILES) -> StampSet:
    """Fetch the set once and link it into the cache. `fetch_package` is sensorium.hub.fetch_package, or stands for it.

    It is called with kind, name and files (and the expected size), downloads through the system's package client,
    verifies, and raises UserError when no client or no network is there. The link appears last and at once.
    """
    package = fetch_package("debian", PACKAGE, files=files, size=ARCHIVE_BYTES)
    found = read_stamps(package)
    link(package, NAME)
    return StampSet(find_stamps(), found.stamps, found.drawings, found.lost)
