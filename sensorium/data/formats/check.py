"""Look at every row before any work is lost: its structure, and the headers of its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sensorium.data.formats.base import RowSource
from sensorium.data.media import PictureFile
from sensorium.data.mixture import MixtureSource
from sensorium.data.source import RowError, Source, SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import Media, MediaError

PROBLEMS_KEPT = 1000


@dataclass
class Report:
    """What `check` found.

    rows, checked     rows of the source, and how many were looked at
    samples           good rows by the number of their pictures: {0: text only, 1: one picture, ...}
    bad               rows with a problem
    problems          (row index, message naming file and line) of the first PROBLEMS_KEPT bad rows
    unused            keys that rows had and nothing reads, with how often
    notes             things that are allowed but worth knowing, with how often
    """

    rows: int
    checked: int = 0
    samples: Counter[int] = field(default_factory=Counter)
    bad: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def pictures(self) -> int:
        """Pictures of the good rows, counted once for each place they are used in."""
        return sum(number * count for number, count in self.samples.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        problems = [{"row": row, "reason": reason} for row, reason in self.problems]
        samples = {str(number): count for number, count in sorted(self.samples.items())}
        counts = {"rows": self.rows, "checked": self.checked, "bad": self.bad, "pictures": self.pictures}
        named = {"unused_keys": dict(self.unused), "notes": {note: n for note, n in self.notes.items() if n}}
        return {**counts, "samples_by_pictures": samples, "problems": problems, **named}

    def summary(self, most: int = 10) -> str:
        """The findings in lines of text, at most `most` problems."""
        lines = [f"{self.checked:,} of {self.rows:,} rows checked, {self.pictures:,} pictures, {self.bad:,} bad rows"]
        lines += [f"  {reason}" for _, reason in self.problems[:most]]
        if self.bad > most:
            lines.append(f"  ... and {self.bad - most:,} more")
        lines += [f"  note: {note}: {count:,}" for note, count in self.notes.items() if count]
        lines += [f"  note: key {key!r} is not used by anything: {count:,} times" for key, count in self.unused.items()]
        return "\n".join(lines)

    def refuse(self, *, skip_bad_rows: bool = False) -> None:
        """Raise UserError when rows are bad, unless they are to be skipped; always when no row is good."""
        if self.checked and self.bad == self.checked:
            raise UserError(f"no row can be used\n{self.summary()}")
        if self.bad and not skip_bad_rows:
            raise UserError(f"{self.summary()}\nmend these rows, or give --skip-bad-rows to train without them")


def check(
    source: SourceConfig | Source, sample: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Convert rows and read the header of every picture; no pixel is decoded.

    sample    look at this many rows, evenly spread, instead of all
    progress  called with (rows done, rows to do)

    Raises UserError when the source cannot be opened at all; bad rows are in the report.
    """
    built = source.build() if isinstance(source, SourceConfig) else source
    if isinstance(built, MixtureSource):
        return _check_parts(built, sample, progress)
    report = Report(rows=len(built))
    indices = range(len(built))
    if sample is not None and sample < len(built):
        indices = np.unique(np.linspace(0, len(built) - 1, max(1, sample)).astype(np.int64)).tolist()
    earlier = (Counter(built.unused), Counter(built.notes)) if isinstance(built, RowSource) else None
    seen: set[str] = set()
    for number, index in enumerate(indices):
        try:
            pictures = _pictures(built, index, seen)
        except (RowError, MediaError) as error:
            report.bad += 1
            if len(report.problems) < PROBLEMS_KEPT:
                report.problems.append((index, _located(built, index, error)))
        else:
            report.samples[pictures] += 1
        report.checked += 1
        if progress is not None:
            progress(number + 1, len(indices))
    if isinstance(built, RowSource) and earlier is not None:
        report.unused, report.notes = built.unused - earlier[0], built.notes - earlier[1]
        report.notes += built.standing
    return report


def _check_parts(mixture: MixtureSource, sample: int | None, progress: Callable[[int, int], None] | None) -> Report:
    """One report over the parts of a mixture; `sample` rows of each, rows counted through all parts."""
    whole = Report(rows=len(mixture))
    first = 0
    for name, source in zip(mixture.names, mixture.sources):
        part = check(source, sample, progress)
        whole.checked, whole.bad = whole.checked + part.checked, whole.bad + part.bad
        whole.samples += part.samples
        kept = part.problems[: PROBLEMS_KEPT - len(whole.problems)]
        whole.problems += [(first + row, f"{name}: {reason}") for row, reason in kept]
        whole.unused += part.unused
        whole.notes += Counter({f"{name}: {note}": count for note, count in part.notes.items()})
        first += len(source)
    return whole


def _pictures(source: Source, index: int, seen: set[str]) -> int:
    """How many pictures a row has; raises when one of them has no usable header."""
    media = [segment.data for segment in source[index].segments if isinstance(segment.data, Media)]
    for item in media:
        path = str(item.path) if isinstance(item, PictureFile) and item.path is not None else None
        if path is None or path not in seen:
            item.shape()
            if path is not None:
                seen.add(path)
    return len(media)


def _located(source: Source, index: int, error: Exception) -> str:
    """A row's own error names its line already; a picture's error names the picture."""
    if isinstance(error, RowError) or not isinstance(source, RowSource):
        return str(error)
    return f"{source.where(index)}: {error}"
