"""A task's questions put to whoever answers, and what came of it: the same whatever the batch, the order, or a kill."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.errors import UserError
from sensorium.evaluate.answerer import ENDPOINT, Answerer, Said, question_key
from sensorium.evaluate.blind import blinded
from sensorium.evaluate.item import BadItem, TaskItem
from sensorium.evaluate.parts import Scores, by_part
from sensorium.evaluate.records import BAD, Answer, AnswerCache, Record, RecordFile, plain
from sensorium.evaluate.result import Example, Table, TaskResult
from sensorium.evaluate.statistics import Evaluation, Floats, evaluations
from sensorium.evaluate.task import Progress, drawn
from sensorium.evaluate.wording import expected_of, places, shown_answer, words_of
from sensorium.infer.likelihoods import Likelihoods
from sensorium.sequence import Media, Sample

if TYPE_CHECKING:
    from sensorium.evaluate.asked import Asked

Reader = Callable[[Sequence[tuple[TaskItem, Answer]]], list[Any]]
"""Items with what was said of them -> what is read in it, in plain JSON; None where nothing can be."""


@dataclass(slots=True)
class Entry:
    """An item under way. asked, blind: its sample and that of its control, None where it cannot be asked."""

    item: TaskItem
    record: Record
    asked: Sample | None = None
    blind: Sample | None = None
    said: Answer | None = None
    blind_said: Answer | None = None


def run_asked(
    task: Asked,
    answerer: Answerer,
    folder: Path | None = None,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
    reader: Reader | None = None,
    absent: Any = None,
) -> TaskResult:
    """Ask every item, and its blind control; score; write records.

    folder    `<task>.jsonl` is written there as answers come; what an earlier process left there is not asked again
    cache     answers by who was asked, prompt, media and settings, over folders and runs
    progress  (answers there, answers in all)
    reader    reads the answers in place of the metric's `parse`; None is then unknown: neither right nor wrong
    absent    what it reads in an answer that never came
    An item that cannot be asked or answered is counted, and is never right. Raises UserError where there is no item at
    all, or whoever answers cannot be asked such questions.
    """
    entries, bad = _entries(task)
    _controls(task, entries)
    file = None if folder is None else RecordFile(folder, task.name)
    try:
        _Asking(task, answerer, file, cache, progress).run(entries)
        for entry in entries:
            entry.record.parsed = absent
        result = _result(task, entries, bad, reader)
        if file is not None:
            file.finish(result.records)
    finally:
        if file is not None:
            file.close()
    return result


# ---- what is asked


def _entries(task: Asked) -> tuple[list[Entry], list[BadItem]]:
    """The items as they will be asked, in the order of their source, and those it could not give."""
    loaded = task.source.loaded
    bad, items, seen = list(loaded.bad), [], set()
    for item in loaded.items:
        if item.id in seen:
            bad.append(BadItem(f"item {item.id}", "its id is another item's already"))
        else:
            seen.add(item.id)
            items.append(item)
    if task.n and len(items) > task.n:
        ids = sorted(item.id for item in items)
        chosen = set(random.Random(task.seed).sample(ids, task.n))
        items = [item for item in items if item.id in chosen]
    if not items:
        reasons = "; ".join(f"{one.where}: {one.reason}" for one in bad[:3])
        raise UserError(f"task {task.name} has not one item that can be asked" + (f": {reasons}" if reasons else ""))
    source = task.shot_source
    pool = [] if not task.shots else [one for one in (source.loaded.items if source else items) if _whole(one)]
    return [_entry(task, item, pool) for item in items], bad


def _entry(task: Asked, item: TaskItem, pool: Sequence[TaskItem]) -> Entry:
    record = Record(
        id=item.id, part=item.part, group=item.group, pictures=places(item), options=list(item.options),
        expected=expected_of(item),
    )  # fmt: skip
    entry = Entry(item, record)
    try:
        _look_at(item)  # a picture that is not there is found before anything is asked
        sample = task.sample(item, pool)
        record.prompt = words_of(sample)
        if task.metric.needs == "likelihoods" and not task.metric.options(item):
            raise UserError("it has no options, and the metric compares how likely they are")
        entry.asked = sample
    except UserError as error:
        record.error = str(error)
    return entry


def _look_at(item: TaskItem) -> None:
    """Raises MediaError for media that are not there, or whose headers are damaged."""
    for one in item.media:
        if isinstance(one.data, Media):
            one.data.key()
            one.data.shape()


def _whole(item: TaskItem) -> bool:
    try:
        _look_at(item)
    except UserError:
        return False
    return True


def _controls(task: Asked, entries: list[Entry]) -> None:
    """Each question with media of another item, of those that can be asked."""
    fine = [entry for entry in entries if entry.asked is not None]
    if not task.blind or not fine:
        return
    for entry, other in zip(fine, blinded([entry.item for entry in fine], task.seed)):
        if other is None or entry.asked is None:
            continue
        media = {id(own): new for own, new in zip(entry.item.media, other.media)}
        segments = tuple(media.get(id(one), one) for one in entry.asked.segments)
        entry.blind = replace(entry.asked, segments=segments)


class _Asking:
    """Puts the questions that nobody answered yet, and keeps what comes."""

    def __init__(
        self, task: Asked, answerer: Answerer, file: RecordFile | None, cache: AnswerCache | None,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.task, self.answerer, self.file, self.cache, self.progress = task, answerer, file, cache, progress
        self.done = self.total = 0

    def run(self, entries: list[Entry]) -> None:
        questions = [(entry, False) for entry in entries if entry.asked is not None]
        questions += [(entry, True) for entry in entries if entry.blind is not None]
        self.total = len(questions)
        waiting = [one for one in questions if not self._known(*one)]
        if self.progress is not None:
            self.progress(self.done, self.total)
        if not waiting:
            return
        samples = [_sample(entry, blind) for entry, blind in waiting]

        def heard(number: int, said: Said | Likelihoods) -> None:
            self._heard(*waiting[number], said)

        if self.task.metric.needs == "words":
            self.answerer.generate(samples, self.task.sampling, heard)
        else:
            options = [self.task.metric.options(entry.item) for entry, _ in waiting]
            pairs = [(sample.segments, option) for sample, option in zip(samples, options)]
            self.answerer.likelihoods(pairs, heard)

    def _known(self, entry: Entry, blind: bool) -> bool:
        """Whether the answer is in the file of an earlier process or in the cache; it is then taken from there."""
        if self.file is None and self.cache is None:
            return False
        words = self.task.metric.needs == "words"
        asked = self.task.sampling.model_dump(mode="json") if words else list(self.task.metric.options(entry.item))
        key = question_key(self.answerer.fingerprint, _sample(entry, blind).segments, asked)
        if blind:
            entry.record.blind_key = key
        else:
            entry.record.key = key
        found = self.file.said.get(key) if self.file is not None else None
        if found is None and self.cache is not None:
            found = self.cache.get(key)
        if found is None or isinstance(found, str) != words:
            return False
        self._keep(entry, blind, found)
        self.done += 1
        return True

    def _heard(self, entry: Entry, blind: bool, said: Said | Likelihoods) -> None:
        if isinstance(said, Said) and said.error:
            if blind:
                entry.record.blind_error = said.error
            else:
                entry.record.error = said.error
        else:
            answer = said.text if isinstance(said, Said) else said
            self._keep(entry, blind, answer)
            key = entry.record.blind_key if blind else entry.record.key
            if self.cache is not None:
                self.cache.put(key, answer)
        if self.file is not None:
            self.file.add(entry.record)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _keep(self, entry: Entry, blind: bool, answer: Answer) -> None:
        if blind:
            entry.blind_said, entry.record.blind_said = answer, plain(answer)
        else:
            entry.said, entry.record.said = answer, plain(answer)


def _sample(entry: Entry, blind: bool) -> Sample:
    sample = entry.blind if blind else entry.asked
    assert sample is not None
    return sample


# ---- what came of it


def _result(task: Asked, entries: list[Entry], bad: list[BadItem], reader: Reader | None) -> TaskResult:
    def read(pairs: Sequence[tuple[TaskItem, Answer]]) -> list[Any]:
        return [task.metric.parse(said, item) for item, said in pairs] if reader is None else reader(pairs)

    said = [entry for entry in entries if entry.said is not None]
    shown = [entry for entry in entries if entry.blind_said is not None]
    for entry, parsed in zip(said, read([(entry.item, entry.said) for entry in said]), strict=True):  # type: ignore[list-item]
        entry.record.parsed = parsed
    pairs = [(entry.item, entry.blind_said) for entry in shown]
    for entry, parsed in zip(shown, read(pairs) if pairs else [], strict=True):  # type: ignore[arg-type]
        entry.record.blind_parsed = parsed
    items = [entry.item for entry in entries]
    rows = task.metric.statistics(items, [entry.record.parsed for entry in entries])
    # What has no control (no media, or an answer that never came) stands in it as it was: it widens no margin.
    control = [_control(entry, reader is not None) for entry in entries]
    blind = task.metric.statistics(items, control) if shown else None
    for entry, score in zip(entries, task.metric.single(rows).tolist(), strict=True):
        entry.record.score = score if math.isfinite(score) else None
    for entry, score in zip(entries, task.metric.single(blind).tolist() if blind is not None else ()):
        if entry.blind_said is not None:
            entry.record.blind_score = score if math.isfinite(score) else None
    groups = [entry.item.group or f"\0{entry.item.id}" for entry in entries]
    asked = [entry.item for entry in entries if entry.asked is not None]
    found = evaluations(
        task.name,
        task.split,
        task.metric.names,
        rows,
        task.metric.scores,
        blind=blind,
        chance=task.metric.chance(asked) if asked else None,
        groups=groups if len(set(groups)) < len(groups) else None,
        seed=task.seed,
    )
    records = [entry.record for entry in entries]

    def together(of: Floats) -> Scores:
        return lambda members: task.metric.scores(of[members].sum(0)).tolist()

    beside = None if blind is None else together(blind)
    parts = by_part(task.name, task.split, records, task.metric.names, together(rows), beside)
    tables = [*parts, *task.metric.tables(items, rows), _counts(task, entries, bad)]
    examples = [_example(task, entry, found) for entry in drawn(entries)]
    records += [Record(id=one.where, error=f"{BAD}{one.reason}") for one in bad]
    items = {entry.item.id: entry.item for entry in entries}
    return TaskResult(found, examples, tables, records=records, items=items)


def _control(entry: Entry, unknown: bool) -> Any:
    """What the control stands for. unknown: where nothing was read, nothing is known of either side."""
    own, other = entry.record.parsed, entry.record.blind_parsed
    if entry.blind_said is None or (unknown and (own is None or other is None)):
        return own
    return other


def _counts(task: Asked, entries: list[Entry], bad: list[BadItem]) -> Table:
    """What was not scored as it should be, zeros included: who reads a score can see that nothing was left out."""
    kinds: dict[str, list[str]] = {
        "rows of the source that hold no question (not in n)": [f"{one.where}: {one.reason}" for one in bad],
        "items that could not be asked (counted as wrong)": [],
        "errors of the endpoint (counted as wrong)": [],
        "answers that could not be read (counted as wrong)": [],
        "items whose blind control failed (left out of the margin)": [],
    }
    _, unasked, failed, unread, blind = kinds.values()
    for entry in entries:
        record = entry.record
        if record.error:
            (failed if record.error.startswith(ENDPOINT) else unasked).append(f"{record.id}: {record.error}")
        elif record.parsed is None:
            unread.append(f"{record.id}: {str(record.said)[:40]!r}")
        if record.blind_error:
            blind.append(f"{record.id}: {record.blind_error}")
    rows = [(kind, str(len(found)), found[0][:200] if found else "") for kind, found in kinds.items()]
    own = sum(entry.blind is None for entry in entries)
    rows.append(("items without a control of their own (no media to exchange)", str(own) if task.blind else "all", ""))
    blank = sum(not (one.item.answers or one.item.boxes or one.item.answer is not None) for one in entries)
    rows += [("items without a right answer to compare with", str(blank), "")] if blank else []
    reasons = Counter(record.error.partition(" (")[0] for record in (one.record for one in entries) if record.error)
    rows += [(f"  of these: {reason[:120]}", str(count), "") for reason, count in reasons.most_common(5) if count > 1]
    return Table(f"{task.name} {task.split}: what could not be scored", ("what", "items", "the first"), tuple(rows))


def _example(task: Asked, entry: Entry, found: Sequence[Evaluation]) -> Example:
    record = entry.record
    percent = bool(found) and found[0].percent and task.metric.names[0].better == "higher"

    def right(score: float | None) -> bool | None:
        return score >= 0.5 if percent and score is not None else None

    return Example(
        task=task.name, split=task.split, question=record.prompt or entry.item.question,
        answer=record.error or shown_answer(record.said, entry.item), expected=record.expected,
        right=right(record.score), blind=shown_answer(record.blind_said, entry.item) if entry.blind_said is not None
        else None, blind_right=right(record.blind_score) if entry.blind_said is not None else None,
        options=entry.item.options, pictures=[one.data for one in entry.item.media if one.kind == "image"],
        part=record.part, score=record.score, boxes=entry.item.boxes,
    )  # fmt: skip
