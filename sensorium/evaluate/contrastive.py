"""What a contrastive model can be asked: which of many names a picture has, and to find one in the other.

Sources: CLIP (arXiv 2103.00020), section 3.1 (zero-shot classification, prompt ensembles) and table 13 (retrieval).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sensorium.data.emoji import Concept, EmojiPicture, pictures
from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE, TaskItem
from sensorium.evaluate.records import Record
from sensorium.evaluate.result import Example, Table, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.evaluate.wording import places
from sensorium.infer.vectors import picture_vectors, text_vectors
from sensorium.objectives.contrastive import similarity
from sensorium.sequence import Segment

TEMPLATES = ("{name}", "a picture of {name}", "an emoji of {name}", "a drawing of {name}", "this is {name}")


DIRECTIONS = ("image_to_text", "text_to_image")


class ZeroShot(EvaluationTask):
    """Every picture is given the name, out of `classes`, that is closest to it.

    The concepts of the split are cut into groups of `classes`; all pictures of a group choose among its names. A class
    is the mean of the unit vectors of its name in all `templates`, brought to unit length again.

    n  pictures at most, in whole groups
    """

    name: str = "zero_shot"
    classes: int = Field(default=50, ge=2)
    templates: tuple[str, ...] = Field(default=TEMPLATES, min_length=1)
    seed: int = 0
    holdout_dev: bool = False

    def items(self) -> list[tuple[Concept, EmojiPicture, int]]:
        """(concept, picture, number of its group), group by group. Raises UserError when there is no whole group."""
        by_concept = _by_concept(self.split, self.holdout_dev, self.seed)
        keys = list(by_concept)
        found: list[tuple[Concept, EmojiPicture, int]] = []
        for group, start in enumerate(range(0, len(keys) - self.classes + 1, self.classes)):
            members = [
                (concept, picture, group)
                for key in keys[start : start + self.classes]
                for concept, picture in by_concept[key]
            ]
            if found and len(found) + len(members) > self.n:
                break
            found += members
        if not found:
            raise UserError(f"{self.split} has {len(keys)} concepts, fewer than the {self.classes} classes: ask for "
                            "fewer")  # fmt: skip
        return found

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        items = self.items()
        names = [concept.captions["en"] for concept, _, _ in items]
        kinds = {(group, name): None for name, (_, _, group) in zip(names, items)}  # the classes, in order
        total = len(items) + len(kinds)
        step = None if progress is None else lambda done: progress(done, total)
        image = picture_vectors(subject.engine, [picture for _, picture, _ in items], progress=step)
        texts = [template.format(name=name) for _, name in kinds for template in self.templates]
        each = text_vectors(subject.engine, texts).unflatten(0, (-1, len(self.templates)))  # (classes, templates, E)
        if progress is not None:
            progress(total, total)
        group = torch.tensor([number for _, _, number in items])
        group_of = torch.tensor([number for number, _ in kinds])
        own = torch.tensor([list(kinds).index((number, name)) for name, (_, _, number) in zip(names, items)])
        allowed = group[:, None] == group_of.to(group)[None]

        def score(vectors: Tensor, pictures: Tensor) -> Tensor:
            return similarity(pictures, vectors).cpu().masked_fill(~allowed, -torch.inf)

        classes = torch.nn.functional.normalize(each.mean(1), dim=-1)
        seen = score(classes, image)
        blind = score(classes, image[shuffled(len(items), self.seed)])
        right, control = ranks(seen, own) < 1, ranks(blind, own) < 1
        keys = [concept.key for concept, _, _ in items]
        one = Evaluation.of(
            self.name, self.split, right.double().numpy(), blind=control.double().numpy(), chance=1 / self.classes,
            groups=keys if len(set(keys)) < len(keys) else None,
        )  # fmt: skip
        said = [name for _, name in kinds]
        examples = [self._example(items[i], said, seen[i], blind[i], bool(right[i]), bool(control[i]))
                    for i in drawn(range(len(items)))]  # fmt: skip
        rows = [("all together", f"{float(right.double().mean()):.1%}")]
        for number, template in enumerate(self.templates):
            hits = ranks(score(each[:, number], image), own) < 1
            rows.append((template, f"{float(hits.double().mean()):.1%}"))
        table = Table(f"Zero-shot among {self.classes}, {self.split}, by prompt", ("prompt", "right"), tuple(rows))
        asked = self._asked(items)
        records = _records(asked, said, (seen, blind), (right, control))
        return TaskResult([one], examples, [table], records=records, items={item.id: item for item in asked})

    def shown_items(self) -> dict[str, TaskItem]:
        return {item.id: item for item in self._asked(self.items())}

    def _asked(self, items: list[tuple[Concept, EmojiPicture, int]]) -> list[TaskItem]:
        return [_asked(f"zero_shot/{self.split}", concept, picture, self.classes) for concept, picture, _ in items]

    def _example(
        self, item: tuple[Concept, EmojiPicture, int], names: list[str], seen: Tensor, blind: Tensor, right: bool,
        blind_right: bool,
    ) -> Example:  # fmt: skip
        concept, picture, _ = item
        return Example(
            task=self.name, split=self.split, question=f"Which of {self.classes} names?",
            answer=names[int(seen.argmax())], expected=concept.captions["en"], right=right,
            blind=names[int(blind.argmax())], blind_right=blind_right,
            options=[names[int(index)] for index in seen.topk(min(5, self.classes)).indices], pictures=[picture],
        )  # fmt: skip


class Retrieval(EvaluationTask):
    """Among n pictures of as many concepts: the text of a picture, and the picture of a text, among the first of `at`.
    Records are of the texts that were found, and their scores those of the first of `at`.

    n         pictures at most; one of each concept, its artist drawn
    template  how a name is put into words
    """

    name: str = "retrieval"
    n: int = 500
    at: tuple[int, ...] = Field(default=(1, 5), min_length=1)
    template: str = "{name}"
    seed: int = 0
    holdout_dev: bool = False

    @property
    def headline(self) -> str:
        return f"{DIRECTIONS[0]}_R@{self.at[0]}"

    def items(self) -> list[tuple[Concept, EmojiPicture]]:
        """(concept, picture), each concept once."""
        rng = random.Random(self.seed)
        every = [rng.choice(members) for members in _by_concept(self.split, self.holdout_dev, self.seed).values()]
        return every[: self.n]

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        items = self.items()
        count = len(items)
        step = None if progress is None else lambda done: progress(done, 2 * count)
        image = picture_vectors(subject.engine, [picture for _, picture in items], progress=step)
        names = [concept.captions["en"] for concept, _ in items]
        text = text_vectors(subject.engine, [self.template.format(name=name) for name in names])
        if progress is not None:
            progress(2 * count, 2 * count)
        seen = similarity(image, text).cpu()
        blind = seen[shuffled(count, self.seed)]
        own = torch.arange(count)
        evaluations, rows = [], []
        for direction, right, control in zip(DIRECTIONS, (seen, seen.T), (blind, blind.T)):
            place, place_blind = ranks(right, own), ranks(control, own)
            for k in self.at:
                hits, guesses = (place < k).double().numpy(), (place_blind < k).double().numpy()
                evaluations.append(Evaluation.of(f"{direction}_R@{k}", self.split, hits, blind=guesses,
                                                 chance=min(1.0, k / count)))  # fmt: skip
            shares = [f"{float((place < k).double().mean()):.1%}" for k in (1, 5, 10)]
            median = f"{float(place.double().quantile(0.5)) + 1:.0f}"
            rows.append((direction.replace("_", " "), *shares, median))
        title = f"Retrieval among {count} pictures of {self.split}"
        table = Table(title, ("direction", "R@1", "R@5", "R@10", "median rank"), tuple(rows))
        examples = [self._example(items, seen, blind, index) for index in drawn(range(count), 8)]
        asked, first = self._asked(items), self.at[0]
        records = _records(asked, names, (seen, blind), (ranks(seen, own) < first, ranks(blind, own) < first))
        return TaskResult(evaluations, examples, [table], records=records, items={item.id: item for item in asked})

    def shown_items(self) -> dict[str, TaskItem]:
        return {item.id: item for item in self._asked(self.items())}

    def _asked(self, items: list[tuple[Concept, EmojiPicture]]) -> list[TaskItem]:
        return [_asked(f"retrieval/{self.split}", concept, picture, len(items)) for concept, picture in items]

    def _example(self, items: list[tuple[Concept, EmojiPicture]], seen: Tensor, blind: Tensor, index: int) -> Example:
        found = seen[:, index].topk(min(5, len(items))).indices.tolist()
        guessed = int(blind[:, index].argmax())
        names: list[Any] = [concept.captions["en"] for concept, _ in items]
        return Example(
            task=self.name, split=self.split, question=f"The five pictures closest to: {names[index]}",
            answer=names[found[0]], expected=names[index], right=found[0] == index, blind=names[guessed],
            blind_right=guessed == index, pictures=[items[place][1] for place in found],
        )  # fmt: skip


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """scores (N, M), own (N) the right column of each row -> (N) how many others score as high or higher."""
    right = scores.gather(1, own[:, None])
    return (scores >= right).sum(1) - 1


def _asked(task: str, concept: Concept, picture: EmojiPicture, names: int) -> TaskItem:
    """A picture, and how many names there are."""
    return TaskItem(
        id=f"{task}/{picture.artist}/{concept.key}",
        question=f"{PLACE}Which of {names} names?",
        media=(Segment("image", picture, role="user"),),
        answers=(concept.captions["en"],),
        group=concept.key,
    )


def _records(
    asked: Sequence[TaskItem], names: Sequence[str], scores: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]
) -> list[Record]:
    """scores: (pictures, names), of the picture and of another item's; right: (pictures) bool of both."""
    (said, blind), (hit, guessed) = ([names[i] for i in one.argmax(1).tolist()] for one in scores), right
    return [
        Record(
            id=one.id, group=one.group, prompt=one.question, pictures=places(one), said=said[i], parsed=said[i],
            score=float(hit[i]), expected=one.answers[0], blind_said=blind[i], blind_parsed=blind[i],
            blind_score=float(guessed[i]),
        )
        for i, one in enumerate(asked)
    ]  # fmt: skip


def _by_concept(split: str, holdout_dev: bool, seed: int) -> dict[str, list[tuple[Concept, EmojiPicture]]]:
    """The pictures of a split by concept, concepts in an order that depends on the seed alone."""
    found: dict[str, list[tuple[Concept, EmojiPicture]]] = {}
    for concept, artist in pictures(split, holdout_dev):
        found.setdefault(concept.key, []).append((concept, EmojiPicture(concept.key, artist)))
    keys = sorted(found)
    random.Random(seed).shuffle(keys)
    return {key: found[key] for key in keys}
