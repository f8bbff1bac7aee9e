"""The table by part: how each sub-task of a task was scored, and what became of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sensorium.evaluate.records import Record
from sensorium.evaluate.result import OUTCOME_WORDS, Outcome, Table, outcome_of
from sensorium.evaluate.statistics import Score
from sensorium.evaluate.wording import shown

PARTS = 100  # rows of a table by part at most
Scores = Callable[[list[int]], Sequence[float]]
"""Numbers of records -> their scores together, one of each name."""


def by_part(
    task: str,
    split: str,
    records: Sequence[Record],
    names: Sequence[Score],
    scores: Scores,
    blind: Scores | None = None,
) -> list[Table]:
    """Scores, the blind control of the first of them, and counts of outcomes, of every part; no table of only one."""
    parts: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        parts.setdefault(record.part, []).append(index)
    if len(parts) < 2:
        return []
    graded = names[0].graded
    counted: tuple[Outcome, ...] = ("unread", "error") if graded else ("right", "wrong", "unread", "error")
    lines = []
    for part, members in list(parts.items())[:PARTS]:
        cells = [part, str(len(members))]
        cells += [shown(value, name.percent) for value, name in zip(scores(members), names)]
        cells += [] if blind is None else [shown(blind(members)[0], names[0].percent)]
        own = (records[index] for index in members)
        found = Counter(outcome_of(one.parsed, one.score, one.error, graded) for one in own)
        lines.append((*cells, *(str(found[one]) for one in counted)))
    control = () if blind is None else ("blind",)
    header = ("part", "n", *(name.name for name in names), *control, *(OUTCOME_WORDS[one] for one in counted))
    left = f", the first {PARTS} of {len(parts)}" if len(parts) > PARTS else ""
    return [Table(f"{task} {split} by part{left}", header, tuple(lines), (task, split), counted)]
