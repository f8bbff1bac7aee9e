"""What the sample browser of a report holds: one entry for each item, with every answer to it.

Words are cut to what a page can carry; pictures are places in an Album. Everything becomes plain JSON for the page's
script, and the first entries also become markup, so that a page without script shows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sensorium.data.boxes import Box, find_boxes
from sensorium.evaluate.result import Example, Outcome, Picture, outcome_of
from sensorium.report.data import ReportData, TaskRecords, label_of
from sensorium.report.pictures import Album
from sensorium.report.words import number

if TYPE_CHECKING:
    from sensorium.evaluate.records import Record

STATIC = 24
"""Entries of a page without script, and of one page of the browser."""
MOST = 10_000
"""Answers of a report."""
LETTERS = 3_000_000
"""Characters of all texts, about."""


@dataclass(kw_only=True)
class Given:
    """One answer. `by`: the row of a comparison that gave it; `blind`: the same with the picture of another item."""

    said: str
    outcome: Outcome
    by: str = ""
    read: str = ""
    score: str = ""
    error: str = ""
    blind: str | None = None
    blind_outcome: Outcome | None = None
    boxes: Sequence[Box] = ()


@dataclass(kw_only=True)
class Entry:
    """One item. `pictures`: their places in the album; `boxes`: the right ones."""

    task: str
    split: str
    question: str
    expected: str
    id: str = ""
    part: str = ""
    options: Sequence[str] = ()
    pictures: Sequence[int] = ()
    boxes: Sequence[Box] = ()
    answers: list[Given] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """Of all answers: right when all are, else the first that is not."""
        for one in self.answers:
            if one.outcome != "right":
                return one.outcome
        return "right"

    @property
    def differs(self) -> bool:
        """Whether one answer is right where another is not."""
        return len({one.outcome == "right" for one in self.answers}) > 1


def entries_of(data: ReportData, album: Album) -> tuple[list[Entry], int]:
    """Examples of what has no records, which are few and come first, then items with records; and how many there was no
    room for. Pictures of those that are shown are put in the album."""
    recorded = {(one.task, one.split) for one in data.records}
    found: dict[tuple[str, str, str], Entry] = {}
    graded = {(one.task, one.split): one.graded for one in _scores(data)}
    for block in data.records:
        shown = block.graded if block.graded is not None else graded.get((block.task, block.split), False)
        for record in block.records:
            key = (block.task, block.split, record.id)
            if key not in found:
                found[key] = _item(block, record, album)
            found[key].answers.append(_answer(record, block.by, shown, found[key].options))
    # An item without a name of its own is in no records: what was drawn of a task that has them is among them.
    examples = [_example(one, album) for one in data.examples if (one.task, one.split) not in recorded]
    every = [*examples, *found.values()]
    entries = _with_room(every)
    album.make(_in_turn(entries))
    return entries, len(every) - len(entries)


def _with_room(entries: list[Entry]) -> list[Entry]:
    """As many as a page can carry, of every task in turn, in their order."""
    if sum(len(entry.answers) for entry in entries) <= MOST:
        return entries
    by: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(entries):
        by.setdefault((entry.task, entry.split), []).append(index)
    room, kept = MOST, []
    for index in (one for together in zip_longest(*by.values()) for one in together if one is not None):
        room -= len(entries[index].answers)
        if room < 0:
            break
        kept.append(index)
    return [entries[index] for index in sorted(kept)]


def _scores(data: ReportData) -> Iterable[Any]:
    seen = set()
    rows = data.comparison.rows if data.comparison else []
    for one in [*data.evaluations, *(score for row in rows for score in row.scores)]:
        if label_of(one) not in seen:  # the first of a task is its headline, and records have that
            seen.add(label_of(one))
            yield one


def _item(block: TaskRecords, record: Record, album: Album) -> Entry:
    item = block.items.get(record.id)
    if item is not None:
        pictures: Sequence[Picture] = [segment.data for segment in item.media if segment.kind == "image"]
    else:
        pictures = [one for one in record.pictures if re.search(r"\.\w{2,5}$", one) and len(one) < 1024]
    return Entry(
        task=block.task,
        split=block.split,
        id=record.id,
        part=record.part,
        question=record.prompt,
        expected=record.expected,
        options=item.options if item is not None else record.options,
        pictures=[album.add(one) for one in pictures],
        boxes=item.boxes if item is not None else [one.box for one in find_boxes(record.expected)],
    )


def _answer(record: Record, by: str, graded: bool, options: Sequence[str]) -> Given:
    boxes = _boxes(record.parsed) or (
        [one.box for one in find_boxes(record.said)] if isinstance(record.said, str) else []
    )
    blind = record.blind_said is not None
    return Given(
        by=by,
        said=said_text(record.said, record.parsed, options),
        outcome=outcome_of(record.parsed, record.score, record.error, graded),
        read=_read_text(record, options),
        score="" if record.score is None or (not graded and record.score in (0.0, 1.0)) else number(record.score),
        error=record.error,
        blind=said_text(record.blind_said, record.blind_parsed, options) if blind else None,
        blind_outcome=outcome_of(record.blind_parsed, record.blind_score, "", graded) if blind else None,
        boxes=boxes,
    )


def said_text(said: Any, parsed: Any = None, options: Sequence[str] = ()) -> str:
    """What was said; of likelihoods the option that was chosen, where that is known, and how likely each is."""
    if isinstance(said, Mapping) and said.get("sums"):
        sums = [float(one) for one in said["sums"]]
        likely = ", ".join(f"{_letter(index)} {value:.2f}" for index, value in enumerate(sums))
        chosen = f"{_letter(parsed)}: {options[parsed]}; " if _chooses(parsed, options) else ""
        return f"{chosen}{likely} (log-likelihoods)"
    return "" if said is None else str(said)


def _chooses(parsed: Any, options: Sequence[str]) -> bool:
    return isinstance(parsed, int) and 0 <= parsed < len(options)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _read_text(record: Record, options: Sequence[str]) -> str:
    """What the metric read, where that is not what was said anyway."""
    if record.parsed is None or record.parsed == record.said:
        return ""
    if isinstance(record.said, Mapping) and isinstance(record.parsed, int):
        return "" if _chooses(record.parsed, options) else _letter(record.parsed)
    if isinstance(record.parsed, str):
        inside = isinstance(record.said, str) and record.parsed.lower() in record.said.lower()
        return "" if inside else record.parsed
    return "" if _boxes(record.parsed) else json.dumps(record.parsed, ensure_ascii=False)


def _boxes(value: Any) -> list[Box]:
    """A list of boxes in [0, 1], or none."""
    if not isinstance(value, list) or not value:
        return []
    for one in value:
        fits = isinstance(one, list | tuple) and len(one) == 4 and all(isinstance(edge, int | float) for edge in one)
        if not fits or not (0 <= one[0] <= one[2] <= 1 and 0 <= one[1] <= one[3] <= 1):
            return []
    return [tuple(one) for one in value]


def _example(one: Example, album: Album) -> Entry:
    marks: dict[bool | None, Outcome] = {True: "right", False: "wrong", None: "open"}
    answer = Given(
        said=one.answer,
        outcome=marks[one.right],
        score="" if one.score is None else number(one.score),
        blind=one.blind,
        blind_outcome=None if one.blind_right is None else marks[one.blind_right],
        boxes=one.said_boxes,
    )
    return Entry(
        task=one.task,
        split=one.split,
        part=one.part,
        question=one.question,
        expected=one.expected,
        options=one.options,
        pictures=[album.add(picture) for picture in one.pictures],
        boxes=one.boxes,
        answers=[answer],
    )


def _in_turn(entries: Sequence[Entry]) -> Iterable[int]:
    """Places of pictures: those of the entries shown first, then of each outcome in turn, so that none goes without,
    nor those on which designs differ."""
    for entry in static_entries(entries):
        yield from entry.pictures
    by: dict[tuple[Outcome, bool], list[Entry]] = {}
    for entry in entries:
        by.setdefault((entry.outcome, entry.differs), []).append(entry)
    for together in zip_longest(*by.values()):
        for entry in together:
            if entry is not None:
                yield from entry.pictures


def static_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that stand in the page as markup: the first ones, as the browser shows them first."""
    return list(entries[:STATIC])


def entries_json(entries: Sequence[Entry], album: Album) -> Markup:
    """For the script of the page, as the text of a script element: no character in it can end that element."""
    texts = sum(2 + len(entry.answers) * 2 for entry in entries) or 1
    limit = max(200, min(4000, LETTERS // texts))
    names = list(dict.fromkeys(one.by for entry in entries for one in entry.answers))
    static = {place for entry in static_entries(entries) for place in entry.pictures}
    value = {
        "names": names,
        # a picture of a static entry is in the page once: the script takes it from there
        "pictures": [None if place in static else url for place, url in enumerate(album.urls)],
        "reasons": album.reasons,
        "entries": [_plain(entry, names, limit) for entry in entries],
    }
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain(entry: Entry, names: Sequence[str], limit: int) -> dict[str, Any]:
    return {
        "task": entry.task,
        "split": entry.split,
        "part": entry.part,
        "id": entry.id,
        "question": _cut(entry.question, limit),
        "expected": _cut(entry.expected, limit),
        "options": [_cut(one, limit) for one in entry.options],
        "pictures": list(entry.pictures),
        "boxes": [_edges(box) for box in entry.boxes],
        "answers": [
            {
                "by": names.index(one.by),
                "said": _cut(one.said, limit),
                "read": _cut(one.read, limit),
                "score": one.score,
                "error": _cut(one.error, limit),
                "outcome": one.outcome,
                "blind": None if one.blind is None else _cut(one.blind, limit),
                "blindOutcome": one.blind_outcome,
                "boxes": [_edges(box) for box in one.boxes],
            }
            for one in entry.answers
        ],
    }


def _edges(box: Box) -> list[float]:
    return [round(edge, 4) for edge in box]


def _cut(text: str, limit: int) -> str:
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit]} … ({left:,} more characters)"
