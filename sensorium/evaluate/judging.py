"""Open answers rated by a judge: the protocol of LLaVA-Bench (Liu et al. 2023, arXiv 2304.08485, section 5.1).

A judge sees the picture, or its captions, the question and two answers, a reference and the model's, and gives each 1
to 10; the score is the sum of the model's ratings over that of the references. Judges favour what stands first (Zheng
et al. 2023, arXiv 2306.05685, section 3.3), so each pair is judged in both orders and the ratings are averaged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sensorium.data.formats.rows import BadRow
from sensorium.data.formats.values import id_in, text_in
from sensorium.data.media import DEFAULT_LIMITS, Limits
from sensorium.errors import UserError
from sensorium.evaluate.answerer import Answerer, Said, question_key
from sensorium.evaluate.asked import Asked, Prompt
from sensorium.evaluate.item import Items, TaskItem, TaskSource
from sensorium.evaluate.metrics.base import Metric, Score
from sensorium.evaluate.records import Answer, AnswerCache
from sensorium.evaluate.result import Table, TaskResult
from sensorium.evaluate.runner import run_asked
from sensorium.evaluate.statistics import Floats
from sensorium.evaluate.task import Progress, Subject
from sensorium.evaluate.tasks.reading import Gathering, Pictures, rows_of, shown
from sensorium.infer.likelihoods import Likelihoods
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment

Order = Literal["reference_first", "answer_first"]
LEAST, MOST = 1.0, 10.0

SYSTEM = (
    "You rate answers to questions about pictures. You are fair: neither the length of an answer nor its place counts."
)
WORDING = """{seen}[Question]
{question}

[Answer 1]
{first}

[Answer 2]
{second}

Rate how helpful, relevant, accurate and detailed each answer is, from 1 (worst) to 10 (best). \
On the first line write two numbers alone, the rating of answer 1 and that of answer 2, with a space between them. \
On the lines after it explain the ratings."""

_PAIR = re.compile(r"(\d+(?:\.\d+)?)\s*[\s,;/]\s*(\d+(?:\.\d+)?)\.?")


def verdict(text: str) -> tuple[float, float] | None:
    """The two ratings on the first line of a judge's answer; None where it is not two numbers from 1 to 10 alone."""
    first = next((line.strip().strip("*[]()") for line in text.splitlines() if line.strip()), "")
    found = _PAIR.fullmatch(first)
    if found is None:
        return None
    pair = float(found[1]), float(found[2])
    return pair if all(LEAST <= one <= MOST for one in pair) else None


class Relative(Metric):
    """Sums of ratings: the model's over the references'. parsed is {"answer", "reference"} of one item, the means over
    both orders; None where a verdict could not be read: then the item is in neither sum, and it is counted."""

    names: ClassVar[tuple[Score, ...]] = (
        Score("relative"),
        Score("rating", percent=False),
        Score("reference rating", percent=False),
    )

    def parse(self, said: str | Likelihoods, item: TaskItem) -> Any:
        raise UserError("answers are rated by a judge: give one (--judge)")

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        """(N, 3): the model's rating, the reference's, 1; zeros where there is no verdict."""
        rows = [(0.0, 0.0, 0.0) if one is None else (one["answer"], one["reference"], 1.0) for one in parsed]
        return np.array(rows, dtype=np.float64)

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = (sums[..., 0] / sums[..., 1], sums[..., 0] / sums[..., 2], sums[..., 1] / sums[..., 2])
        return np.stack(columns, axis=-1)


class Rated(Asked):
    """Questions whose open answers a judge rates beside a reference, the first of `answers`.

    sees    what the judge is shown besides the words: the picture; captions (of the item's info); or both
    orders  which answer stands first
    judged  how a verdict is said
    """

    metric: Metric = Relative()
    prompt: Prompt = Prompt(ending="")
    sampling: Sampling = Sampling(max_tokens=512)
    sees: Literal["picture", "captions", "both"] = "picture"
    orders: tuple[Order, ...] = Field(default=("reference_first", "answer_first"), min_length=1)
    judged: Sampling = Sampling(max_tokens=512)

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        raise UserError(f"{self.name} needs a judge: run_rated(task, answerer, judge), or --judge on the command line")

    def judgement(self, item: TaskItem, answer: str, order: Order) -> Sample:
        """What the judge is asked. Raises UserError for an item without a reference, or without what is to be seen."""
        if not item.answers:
            raise UserError(f"item {item.id} has no reference answer")
        captions = _captions(item) if self.sees != "picture" else ""
        pair = (item.answers[0], answer) if order == "reference_first" else (answer, item.answers[0])
        seen = f"[What the picture shows]\n{captions}\n\n" if captions else ""
        # one replacement: an answer that holds {second} stays as it is
        values = {"seen": seen, "question": item.question, "first": pair[0], "second": pair[1]}
        words = re.sub(r"\{(seen|question|first|second)\}", lambda found: values[found[1]], WORDING)
        media = item.media if self.sees != "captions" else ()
        return Sample((Segment("text", SYSTEM, "system"), *media, Segment("text", words, "user")), id=item.id)


def _captions(item: TaskItem) -> str:
    value = item.info.get("captions", item.info.get("caption"))
    lines = [value] if isinstance(value, str) else list(value or ())
    if not lines:
        raise UserError(f"item {item.id} has no captions for the judge to see: let it see the picture")
    return "\n".join(map(str, lines))


class _Judge:
    """Reads answers by asking a judge about them; counts what it could not read."""

    absent: ClassVar[dict[str, float]] = {"answer": LEAST, "reference": MOST}
    """The rating of an answer that never came."""

    def __init__(self, task: Rated, judge: Answerer, cache: AnswerCache | None) -> None:
        self.task, self.judge, self.cache = task, judge, cache
        self.unread: list[str] = []
        self.failed: list[str] = []
        self.verdicts = 0

    def __call__(self, pairs: Sequence[tuple[TaskItem, Answer]]) -> list[Any]:
        asked: list[tuple[int, Order]] = [(number, order) for number in range(len(pairs)) for order in self.task.orders]
        said: dict[int, Said] = {}
        waiting: list[tuple[int, Sample, str]] = []
        for place, (number, order) in enumerate(asked):
            item, answer = pairs[number]
            try:
                sample = self.task.judgement(item, str(answer), order)
                key = self._key(sample)
            except UserError as error:
                said[place] = Said("", str(error))
                continue
            known = self.cache.get(key) if self.cache is not None else None
            if isinstance(known, str):
                said[place] = Said(known)
            else:
                waiting.append((place, sample, key))

        def heard(number: int, one: Said) -> None:
            place, _, key = waiting[number]
            said[place] = one
            if self.cache is not None and not one.error:
                self.cache.put(key, one.text)

        if waiting:
            self.judge.generate([sample for _, sample, _ in waiting], self.task.judged, heard)
        found: list[list[dict[str, Any] | None]] = [[] for _ in pairs]
        for place, (number, order) in enumerate(asked):
            found[number].append(self._read(pairs[number][0], order, said[place]))
        return [_mean(one) for one in found]

    def _key(self, sample: Sample) -> str:
        if self.cache is None:
            return ""
        return question_key(self.judge.fingerprint, sample.segments, self.task.judged.model_dump(mode="json"))

    def _read(self, item: TaskItem, order: Order, said: Said) -> dict[str, Any] | None:
        self.verdicts += 1
        if said.error:
            self.failed.append(f"{item.id}: {said.error}")
            return None
        pair = verdict(said.text)
        if pair is None:
            self.unread.append(f"{item.id}: {said.text[:80]!r}")
            return None
        reference, answer = pair if order == "reference_first" else pair[::-1]
        return {"order": order, "answer": answer, "reference": reference, "said": said.text}

    def table(self) -> Table:
        rows = (
            ("verdicts asked for", str(self.verdicts), ""),
            ("verdicts that could not be read", str(len(self.unread)), (self.unread or [""])[0]),
            ("verdicts that did not come", str(len(self.failed)), (self.failed or [""])[0][:200]),
        )
        return Table(f"{self.task.name}: the judge, {self.judge.title}", ("what", "number", "the first"), rows)


def _mean(verdicts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Over all orders; None unless each of them was read: one order alone favours a place."""
    found = [one for one in verdicts if one is not None]
    if len(found) < len(verdicts):
        return None
    means = {side: sum(one[side] for one in found) / len(found) for side in ("answer", "reference")}
    return {**means, "verdicts": found}


def run_rated(
    task: Rated,
    answerer: Answerer,
    judge: Answerer,
    folder: Path | None = None,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Ask, then have the judge rate each answer and its blind control; otherwise as `run_asked`. Verdicts are kept in
    the cache, and in `parsed` of the records. An item whose verdict is missing is in no score, and is counted; an
    answer that never came has the lowest rating, its reference the highest."""
    reads = _Judge(task, judge, cache)
    result = run_asked(task, answerer, folder, cache, progress, reads, reads.absent)
    result.tables.append(reads.table())
    return result


class LLaVABench(TaskSource):
    """The folder of LLaVA-Bench (in the wild) as published: questions.jsonl {question_id, image, text, category},
    answers_gpt4.jsonl {question_id, text}, context.jsonl {image, caption}, and images/."""

    title: ClassVar[str] = "LLaVA-Bench"
    metric: ClassVar[str] = "relative"

    path: str = Field(min_length=1)
    pictures: str | None = None
    limits: Limits = DEFAULT_LIMITS

    def load(self) -> Items:
        references = self._by("answers_gpt4.jsonl", "question_id", "text")
        captions = self._by("context.jsonl", "image", "caption")
        beside = os.path.join(self.path, "images")
        pictures = Pictures(self.pictures or (beside if os.path.isdir(beside) else self.path), self.limits)
        found = Gathering()

        def read(row: Any, where: str) -> TaskItem:
            number, image = id_in(row, "question_id"), text_in(row, "image")
            if number not in references:
                raise BadRow("it has no reference answer")
            return TaskItem(
                id=number, question=text_in(row, "text"), media=shown(*pictures.several([image], where)),
                answers=(references[number],), group=image, part=str(row.get("category", "")),
                info={"captions": captions[image]} if image in captions else {},
            )  # fmt: skip

        for where, row in rows_of(os.path.join(self.path, "questions.jsonl")):
            found.add(where, read, row)
        return found.given(f"{self.path} as {self.title}", "questions.jsonl, answers_gpt4.jsonl, context.jsonl")

    def _by(self, name: str, key: str, field: str) -> dict[str, Any]:
        """A field of each row by a key; rows that lack one are left out, which their questions then tell."""
        rows = (row for _, row in rows_of(os.path.join(self.path, name)) if isinstance(row, dict))
        return {str(row[key]): row[field] for row in rows if key in row and isinstance(row.get(field), str)}
