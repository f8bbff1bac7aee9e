"""One row of a comparison: a recipe trained, then asked; kept when it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sensorium.compare.answers import keep_records
from sensorium.compare.plan import Entry
from sensorium.compare.significance import Scored
from sensorium.evaluate.records import BAD, Record
from sensorium.evaluate.result import ComparedRow, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import EvaluationTask, Subject
from sensorium.hub.cache import cache_root
from sensorium.report.data import label_of
from sensorium.report.words import plain_name
from sensorium.train.ask import subject_of
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.trainer import open_run, train


@dataclass(kw_only=True)
class Answered:
    """A finished row.

    evaluations  of every task
    items        (label of the task, scores of its items), where the task tells items apart
    samples      trained on
    seconds      of training steps, by the clock; not part of the table, which a second run repeats
    lost         what could not be asked or read, in words
    unasked      rows that hold no question, in words; the same for every design
    records      what was said to each item, by the label of the task; kept in files of their own, and not read with the
                 row
    """

    evaluations: list[Evaluation]
    items: list[Scored]
    samples: int
    seconds: float
    lost: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)
    records: dict[str, list[Record]] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Sequence[TaskResult], samples: int, seconds: float) -> Answered:
        told = [one for one in results if one.records and one.evaluations]
        return cls(
            evaluations=[one for result in results for one in result.evaluations],
            items=[_scored(one) for one in told if any(record.score is not None for record in one.records)],
            records={label_of(one.evaluations[0]): one.records for one in told},
            lost=[line for one in told for line in _lost(one)],
            unasked=[line for one in told for line in _unasked(one)],
            samples=samples, seconds=seconds,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        items = [
            {"label": one.label, "ids": list(one.ids), "scores": one.scores[0].tolist(),
             "groups": None if one.groups is None else list(one.groups), "lower": one.lower}
            for one in self.items
        ]  # fmt: skip
        return {"samples": self.samples, "seconds": self.seconds, "lost": self.lost, "unasked": self.unasked,
                "items": items,
                "evaluations": [one.to_json() for one in self.evaluations]}  # fmt: skip

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Answered:
        items = [
            Scored(one["label"], tuple(one["ids"]), np.asarray(one["scores"], dtype=np.float64)[None],
                   None if one["groups"] is None else tuple(one["groups"]), one["lower"])
            for one in kept["items"]
        ]  # fmt: skip
        evaluations = [Evaluation(**one) for one in kept["evaluations"]]
        lost = {name: kept.get(name, []) for name in ("lost", "unasked")}  # older rows have neither
        return cls(evaluations=evaluations, items=items, samples=kept["samples"], seconds=kept["seconds"], **lost)


Worker = Callable[[Entry, Path, Sequence[EvaluationTask], Console], Answered]
"""Trains a row in a folder, or goes on where one was stopped, and asks it."""


def work(entry: Entry, folder: Path, tasks: Sequence[EvaluationTask], console: Console) -> Answered:
    """Train the recipe of a row in `folder` and ask it. Raises Stopped when a signal asks to stop."""
    run = open_run(entry.recipe, folder)
    if not run.finished:
        train(run, console=console)
    samples, seconds = sum(one.samples for one in run.results), sum(one.seconds for one in run.results)
    # what was saved, so that a row that was stopped between training and asking says the same
    recipe, model, tokenizer = load_checkpoint(folder)
    subject = subject_of(recipe, model, tokenizer, cache_root() / "features")
    return Answered.of(ask(tasks, subject), samples, seconds)


def ask(tasks: Sequence[EvaluationTask], subject: Subject) -> list[TaskResult]:
    """What a trained model says to every task."""
    return [task.run(subject) for task in tasks]


def _scored(told: TaskResult) -> Scored:
    """The score of every item that has one."""
    rows = [one for one in told.records if one.score is not None]
    groups = tuple(one.group or one.id for one in rows) if any(one.group for one in rows) else None
    scores = np.array([[float(one.score or 0.0) for one in rows]])
    headline = told.evaluations[0]
    return Scored(label_of(headline), tuple(one.id for one in rows), scores, groups, headline.better == "lower")


def _unasked(told: TaskResult) -> list[str]:
    """Rows of the source that hold no question: they are in no score, so they are named."""
    bad = [f"{one.id}: {one.error.removeprefix(BAD)}" for one in told.records if one.error.startswith(BAD)]
    return [f"{_name(told)}: {_some(bad, 'row')} without a question, not asked"] if bad else []


def _lost(told: TaskResult) -> list[str]:
    """Items that a design could not be asked, and answers that could not be read: all were counted as wrong."""
    asked = [one for one in told.records if not one.error.startswith(BAD)]
    failed = [f"{one.id}: {one.error}" for one in asked if one.error]
    unread = [f"{one.id}: {str(one.said)[:40]!r}" for one in asked if not one.error and one.parsed is None]
    lines = [f"{_some(failed, 'item')} that could not be asked"] if failed else []
    lines += [f"{_some(unread, 'answer')} that could not be read"] if unread else []
    return [f"{_name(told)}: {line}, counted as wrong" for line in lines]


def _name(told: TaskResult) -> str:
    return plain_name(label_of(told.evaluations[0]))


def _some(found: Sequence[str], what: str) -> str:
    """3 answers (the first: ...)"""
    return f"{len(found)} {what}{'s' if len(found) > 1 else ''} (the first: {found[0][:200]})"


def kept(path: Path) -> Answered | None:
    """A row that is done, or None."""
    return Answered.from_json(json.loads(path.read_text("utf-8"))) if path.exists() else None


def keep(path: Path, answered: Answered) -> None:
    """Write a finished row, whole or not at all, and before it what was said, so that a row that is there has it."""
    keep_records(path.with_suffix(""), answered.records)
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(answered.to_json(), ensure_ascii=False), "utf-8")
    os.replace(draft, path)


def row_of(entry: Entry, answered: Answered | None, error: str = "") -> ComparedRow:
    """The row as tables show it. Speed, time and memory are those measured before training: they come again."""
    return ComparedRow(
        name=entry.name, title=entry.title, seed=entry.seed, scores=[] if answered is None else answered.evaluations,
        parameters=entry.parameters, trained=entry.trained, flops=entry.flops,
        samples=0 if answered is None else answered.samples, steps=sum(entry.steps), seconds=round(entry.seconds, 3),
        samples_per_second=round(entry.speed, 3), peak_memory=entry.peak_memory,
        tokens_per_picture=entry.tokens_per_picture, error=error or entry.error, folder=f"runs/{entry.place}",
    )  # fmt: skip
