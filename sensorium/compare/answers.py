"""What each design said to each item: files beside the rows' scores, and their place in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.records import Record, file_name, read_records, write_records
from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.task import EvaluationTask
from sensorium.evaluate.wording import places
from sensorium.report.data import TaskRecords, label_of


def keep_records(folder: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """Records by the label of their task: a file each, as `sensorium eval` writes it, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, told in records.items():
        write_records(_file(folder, label), told)


def _file(folder: Path, label: str) -> Path:
    return folder / f"{file_name(label)}.jsonl"


def kept_records(found: Comparison, out: Path, tasks: Sequence[EvaluationTask]) -> list[TaskRecords]:
    """The answers of every design, of several seeds those of the first that is done, as the folder `out` has them:
    none of rows that were done before answers were kept.

    Pictures and boxes are those of the tasks' own items, made or read once more, where they are still the ones asked
    about.
    """
    items: dict[str, dict[str, TaskItem]] = {}
    blocks = []
    for row in _first_seeds(found):
        for score in row.scores:
            label = label_of(score)
            records = read_records(_file(out / "rows" / Path(row.folder).name, label))
            if not records:
                continue
            if label not in items:
                items[label] = _items(tasks, score.task, score.split)
            own = {one.id: items[label][one.id] for one in records if _still(items[label].get(one.id), one)}
            blocks.append(TaskRecords(task=score.task, split=score.split, records=records, by=row.name, items=own))
    return blocks


def _still(item: TaskItem | None, record: Record) -> bool:
    return item is not None and places(item) == record.pictures


def _first_seeds(found: Comparison) -> list[ComparedRow]:
    done: dict[str, ComparedRow] = {}
    for row in found.rows:
        if row.seed is not None and row.scores:
            done.setdefault(row.name, row)
    return list(done.values())


def _items(tasks: Sequence[EvaluationTask], headline: str, split: str) -> dict[str, TaskItem]:
    """The items of a task; none where its file is gone: records say themselves what was asked."""
    try:
        return next((task.shown_items() for task in tasks if (task.headline, task.split) == (headline, split)), {})
    except UserError:
        return {}
