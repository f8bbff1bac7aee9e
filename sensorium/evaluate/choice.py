"""Multiple choice by likelihood, always beside its blind control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from sensorium.data.questions import category_items, choice_items, scene_items, with_shots
from sensorium.data.reframe import Aspect, framed
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.records import Record, plain
from sensorium.evaluate.result import Example, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import SHOWN, EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.evaluate.wording import expected_of, places, words_of
from sensorium.infer.engine import Engine
from sensorium.infer.likelihoods import Likelihoods
from sensorium.sequence import Sample

Scoring = Literal["sum", "mean", "prior"]


class Choice(EvaluationTask):
    """A multiple-choice task on the built-in pictures.

    family  emoji: what is it, four names of one subcategory (of one category where concepts are held out);
            category: which of eight categories it is of;
            count, position: questions on unseen scenes
    shots   emoji: answered questions about trained pictures of other concepts that stand before the item's
    scoring sum: log-probability of the option; mean: per token; prior: sum minus what the same option has behind the
            same question without any picture (domain-conditional PMI, Holtzman et al. 2021), so that an option does
            not win for being a likely phrase
    aspects aspect ratios (height : width) of canvases that pictures are put on; none: as they are
    """

    family: Literal["emoji", "category", "count", "position"]
    scoring: Scoring = "sum"
    seed: int = 0
    holdout_dev: bool = False
    shots: int = Field(default=0, ge=0)
    aspects: tuple[Aspect, ...] = ()

    def items(self) -> list[Sample]:
        items = self._square_items()
        return [framed(item, self.aspects, self.seed) for item in items] if self.aspects else items

    def _square_items(self) -> list[Sample]:
        if self.family == "emoji":
            items = choice_items(self.split, self.n, self.seed, holdout_dev=self.holdout_dev)
            return with_shots(items, self.shots, self.seed, self.holdout_dev)
        if self.family == "category":
            return category_items(self.split, self.n, self.seed, holdout_dev=self.holdout_dev)
        return scene_items(self.family, self.split, self.n, self.seed, holdout_dev=self.holdout_dev)

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        result = run_choice(subject.engine, self, progress)
        items = {item.id: _shown(item) for item in result.items}
        return TaskResult([result.evaluation()], result.examples(), records=result.records(), items=items)

    def shown_items(self) -> dict[str, TaskItem]:
        return {item.id: _shown(item) for item in self.items()}


@dataclass(slots=True)
class ChoiceResult:
    """Items with the option chosen with the right picture and with another sample's picture, and how likely each option
    was then."""

    task: Choice
    items: list[Sample]
    chosen: list[int]
    blind: list[int]
    said: list[Likelihoods]
    blind_said: list[Likelihoods]

    def evaluation(self) -> Evaluation:
        right = [float(item.info["answer"] == choice) for item, choice in zip(self.items, self.chosen)]
        control = [float(item.info["answer"] == choice) for item, choice in zip(self.items, self.blind)]
        chance = [1 / len(item.info["options"]) for item in self.items]
        return Evaluation.of(self.task.name, self.task.split, right, blind=control, chance=chance)

    def records(self) -> list[Record]:
        """Every item as it was asked and answered; what is read in an answer is the number of the option chosen."""
        found = []
        for index, item in enumerate(self.items):
            shown, chosen, blind = _shown(item), self.chosen[index], self.blind[index]
            found.append(
                Record(
                    id=item.id, prompt=words_of(item), pictures=places(shown), options=list(shown.options),
                    said=plain(self.said[index]), parsed=chosen, score=float(chosen == shown.answer),
                    expected=expected_of(shown), blind_said=plain(self.blind_said[index]), blind_parsed=blind,
                    blind_score=float(blind == shown.answer),
                )
            )  # fmt: skip
        return found

    def examples(self, count: int = SHOWN) -> list[Example]:
        """Some of the items as they are."""
        return [self._example(index) for index in drawn(range(len(self.items)), count)]

    def _example(self, index: int) -> Example:
        item = self.items[index]
        options, answer = item.info["options"], item.info["answer"]
        chosen, blind = self.chosen[index], self.blind[index]
        return Example(
            task=self.task.name,
            split=self.task.split,
            question=item.info["question"],
            answer=options[chosen],
            expected=options[answer],
            right=chosen == answer,
            blind=options[blind],
            blind_right=blind == answer,
            options=options,
            pictures=[segment.data for segment in item.segments if segment.kind == "image"],
        )


def _shown(item: Sample) -> TaskItem:
    """An item as reports show it: all its pictures, those of shots too."""
    return TaskItem(
        id=item.id,
        question=item.info["question"],
        media=tuple(segment for segment in item.segments if segment.kind == "image"),
        options=tuple(item.info["options"]),
        answer=item.info["answer"],
    )


def run_choice(engine: Engine, task: Choice, progress: Progress | None = None) -> ChoiceResult:
    """Score every option of every item, twice: with its picture, and with the pictures shuffled across items.

    progress  called with (prompts done, prompts in all)
    """
    items = task.items()
    swapped = _shuffle_pictures(items, task.seed)
    prior = {_question(item): item for item in items} if task.scoring == "prior" else {}
    prompts = [*items, *swapped, *(_without_pictures(item) for item in prior.values())]
    questions = [(sample.segments, sample.info["options"]) for sample in prompts]
    scored = engine.log_likelihoods(questions, (lambda done: progress(done, len(prompts))) if progress else None)
    behind = dict(zip(prior, scored[2 * len(items) :]))

    def choose(item: Sample, scores: Likelihoods) -> int:
        match task.scoring:
            case "sum":
                return scores.best
            case "mean":
                return scores.best_per_token
            case "prior":
                before = behind[_question(item)].sums
                return max(range(len(before)), key=lambda option: scores.sums[option] - before[option])

    said, blind_said = scored[: len(items)], scored[len(items) : 2 * len(items)]
    chosen = [choose(item, scores) for item, scores in zip(items, said)]
    blind = [choose(item, scores) for item, scores in zip(items, blind_said)]
    return ChoiceResult(task, items, chosen, blind, said, blind_said)


def _question(item: Sample) -> tuple[str, tuple[str, ...]]:
    """Items that differ in the picture alone share their prior."""
    return item.info["question"], tuple(item.info["options"])


def _without_pictures(item: Sample) -> Sample:
    """The question alone: no picture, no shots."""
    asked = item.segments[_own(item) :]
    return replace(item, segments=tuple(segment for segment in asked if segment.kind == "text"))


def _own(item: Sample) -> int:
    """Where an item's own turn begins, behind its shots."""
    said = [index for index, segment in enumerate(item.segments) if segment.role == "assistant"]
    return said[-1] + 1 if said else 0


def _shuffle_pictures(items: Sequence[Sample], seed: int) -> list[Sample]:
    """The same questions, each with the picture of another item: a seeded cycle through all, so none keeps its own."""
    return [_with_picture(item, items[other]) for item, other in zip(items, shuffled(len(items), seed))]


def _with_picture(item: Sample, other: Sample) -> Sample:
    """An item with another's picture in place of its own: the last; those of shots stay."""
    place = max(index for index, part in enumerate(item.segments) if part.kind != "text")
    picture = [part for part in other.segments if part.kind != "text"][-1]
    return replace(item, segments=(*item.segments[:place], picture, *item.segments[place + 1 :]))
