"""A task of questions: where they come from, how they are put, what is done with the answers."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from string import Formatter
from typing import Any

from pydantic import Field, field_validator

from sensorium.config import Config
from sensorium.data.boxes import format_box
from sensorium.errors import UserError
from sensorium.evaluate.answerer import Local
from sensorium.evaluate.item import PLACE, TaskItem, TaskSource
from sensorium.evaluate.metrics.base import Metric
from sensorium.evaluate.result import TaskResult
from sensorium.evaluate.runner import run_asked
from sensorium.evaluate.task import EvaluationTask, Progress, Subject
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment


def letter(number: int) -> str:
    """Of an option: A, B ... Z, then 27, 28 ..."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


class Prompt(Config):
    """How an item becomes a sample.

    wording      with {question}, {options}, and {name} of anything in the item's info. Options that it does not place
                 follow it, a line each, where the metric reads words; where it reads likelihoods they are not shown
    options      one of them, with {letter}, {number}, {option}; "" shows none
    ending       what is asked of the form of the answer, on a line of its own; None: what was published for the source
                 (its `asks`), else what the metric asks (its `prompt`)
    media_first  media without a place in the words stand before them; otherwise behind them
    system       a system message
    """

    wording: str = "{question}"
    options: str = "{letter}. {option}"
    ending: str | None = None
    media_first: bool = True
    system: str = ""

    @field_validator("wording", "options")
    @classmethod
    def _plain_names(cls, value: str) -> str:
        for _, name, form, conversion in Formatter().parse(value):
            if name is not None and (not re.fullmatch(r"\w+", name) or form or conversion):
                raise ValueError(f"{{{name}}} is no plain name in braces; a brace itself is written twice")
        return value

    def sample(
        self, item: TaskItem, shots: Sequence[TaskItem] = (), metric: Metric | None = None, asks: str = ""
    ) -> Sample:
        """The question, behind answered ones. Raises UserError for an item that the wording does not fit."""
        segments = [Segment("text", self.system, "system")] if self.system else []
        for shot in shots:
            answer = self.demonstrated(shot, metric)
            if answer is None:
                raise UserError(f"item {shot.id} has no answer to show as an example")
            segments += [*shot.before, *self._asked(shot, metric, asks), Segment("text", answer, "assistant")]
        segments += [*item.before, *self._asked(item, metric, asks)]
        return Sample(tuple(segments), id=item.id)

    def demonstrated(self, item: TaskItem, metric: Metric | None = None) -> str | None:
        """The right answer as the model is to give it; None where there is none."""
        if item.options and item.answer is not None:
            lettered = "{letter}" in self.options and self._lists(item, metric)
            return letter(item.answer) if lettered else item.options[item.answer]
        if item.answers:
            return Counter(item.answers).most_common(1)[0][0]
        if item.boxes:
            return format_box(item.boxes[0], "decimal")
        return None

    def _lists(self, item: TaskItem, metric: Metric | None) -> bool:
        shown = metric is None or metric.needs == "words" or "{options}" in self.wording
        return bool(item.options and self.options and shown)

    def _asked(self, item: TaskItem, metric: Metric | None, asks: str) -> list[Segment]:
        lines = [
            _filled(self.options, {"letter": letter(number), "number": number + 1, "option": option}, item)
            for number, option in enumerate(item.options if self._lists(item, metric) else ())
        ]
        listed = "\n".join(lines)
        words = _filled(self.wording, {**item.info, "question": item.question, "options": listed}, item)
        if listed and "{options}" not in self.wording:
            words = f"{words}\n{listed}" if words else listed
        ending = self.ending
        if ending is None:
            ending = asks or (metric.prompt(item) if metric is not None else "")
        if ending:
            words = f"{words}\n{ending}" if words else ending
        return self._placed(words, item)

    def _placed(self, words: str, item: TaskItem) -> list[Segment]:
        """Media at their places among the words, in order; those that are left stand before or behind them."""
        pieces = words.split(PLACE) if item.media else [words]
        if len(pieces) > len(item.media) + 1:
            raise UserError(f"the words have {len(pieces) - 1} places for media ({PLACE}), the item has "
                            f"{len(item.media)}")  # fmt: skip
        found = []
        for number, piece in enumerate(pieces):
            found += [item.media[number - 1]] if number else []
            found += [Segment("text", piece, "user")] if piece else []
        left = item.media[len(pieces) - 1 :]
        return [*left, *found] if self.media_first else [*found, *left]


def _filled(wording: str, values: dict[str, Any], item: TaskItem) -> str:
    """The wording with values for its names; what they hold is never read as a wording itself."""
    found = []
    for text, name, _, _ in Formatter().parse(wording):
        found.append(text)
        if name is not None:
            if name not in values:
                raise UserError(f"the wording asks for {{{name}}}, which the item does not have; it has "
                                f"{', '.join(sorted(values))}")  # fmt: skip
            found.append(str(values[name]))
    return "".join(found)


class Asked(EvaluationTask):
    """Questions to a model, and a metric that reads its answers; beside them the blind control.

    n            items at most, drawn at random where there are more; 0: all
    sampling     how an answer is said; what is drawn for one depends on its prompt and the seed, not on its neighbours
    shots        answered questions that stand before each one, never about the same media or of the same group
    shot_source  where they come from; None: other items of the task itself
    blind        also ask with media of other items
    """

    split: str = "test"
    n: int = Field(default=0, ge=0)
    source: TaskSource
    metric: Metric
    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling(max_tokens=64)
    shots: int = Field(default=0, ge=0)
    shot_source: TaskSource | None = None
    blind: bool = True
    seed: int = 0

    @field_validator("sampling")
    @classmethod
    def _one_answer(cls, value: Sampling) -> Sampling:
        if value.n != 1:
            raise ValueError(f"a question has one answer here, n is {value.n}")
        return value

    def sample(self, item: TaskItem, pool: Sequence[TaskItem] = ()) -> Sample:
        """The question with its shots from a pool. Raises UserError where there are too few, or a wording does not
        fit."""
        return self.prompt.sample(item, self.examples(item, pool), self.metric, type(self.source).asks)

    def examples(self, item: TaskItem, pool: Sequence[TaskItem]) -> list[TaskItem]:
        """The shots of an item: they follow from it and the seed, not from the order of the pool."""
        if not self.shots:
            return []
        own = {one.data.key() for one in item.media}
        fitting = [
            one for one in sorted(pool, key=lambda one: one.id)
            if one.id != item.id and not (one.group and one.group == item.group)
            and self.prompt.demonstrated(one, self.metric) is not None
            and own.isdisjoint(shown.data.key() for shown in one.media)
        ]  # fmt: skip
        if len(fitting) < self.shots:
            raise UserError(f"{self.shots} examples are asked for, there are {len(fitting)} about something else")
        return random.Random(f"{self.seed} {item.id}").sample(fitting, self.shots)

    def shown_items(self) -> dict[str, TaskItem]:
        return {one.id: one for one in self.source.loaded.items}

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        return run_asked(self, Local(subject), progress=progress)
