"""Pictures made from names, judged by a contrastive model that never saw the model that made them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from sensorium.data.emoji import Concept, EmojiPicture, pictures
from sensorium.errors import UserError
from sensorium.evaluate.contrastive import ranks
from sensorium.evaluate.reconstruction import COLUMNS, picture_grid
from sensorium.evaluate.result import Example, Table, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import SHOWN, EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.infer.vectors import picture_vectors, text_vectors
from sensorium.objectives.contrastive import similarity
from sensorium.sequence import Sample, Segment


@dataclass(frozen=True, slots=True)
class Made:
    """A picture that a model made (Media)."""

    picture: Image.Image

    def key(self) -> str:
        return hashlib.sha256(f"{self.picture.size}".encode() + self.picture.tobytes()).hexdigest()

    def shape(self) -> tuple[int, ...]:
        return self.picture.height, self.picture.width

    def load(self) -> Image.Image:
        return self.picture


class Judged(EvaluationTask):
    """A picture is made from each of n names; the judge, a contrastive model, finds its name among all n.

    Beside it stands the CLIP score, the cosine of picture and name to the judge, at least 0 (CLIPScore without its
    factor of 2.5; Hessel et al. 2021, arXiv 2104.08718): it shows what a rank among many does not show yet. What looks
    alike to the judge is as hard among real pictures, whose scores stand in the table. The control gives the pictures
    to other names. A subclass says how a picture is made (`draw`).

    wording  what is asked, with {name}
    """

    name: str = "picture_from_name"
    n: int = 100
    wording: str = "Draw {name}."
    seed: int = 0
    holdout_dev: bool = False

    def concepts(self) -> list[Concept]:
        """The first n concepts of the split in an order that depends on the seed alone, no two of one name."""
        by_name = {concept.captions["en"]: concept for concept, _ in pictures(self.split, self.holdout_dev)}
        every = sorted(by_name.values(), key=lambda concept: concept.key)
        random.Random(self.seed).shuffle(every)
        return every[: self.n]

    def draw(self, subject: Subject, asked: list[str], progress: Callable[[int], None] | None) -> list[Image.Image]:
        """A picture of each of the words that are asked."""
        raise NotImplementedError(f"{self.tag()} makes no pictures")

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        if subject.judge is None:
            raise UserError(f"{self.name} needs a judge: give the recipe one (`judge`), a contrastive recipe")
        chosen = self.concepts()
        names = [concept.captions["en"] for concept in chosen]
        step = None if progress is None else lambda done: progress(done, len(names))
        made = self.draw(subject, [self.wording.format(name=name) for name in names], step)
        real = self._real(chosen)
        seen, own = _scores(subject.judge, made, names), torch.arange(len(names))
        blind = seen[shuffled(len(names), self.seed)]
        every = (("made", seen), ("given to other names", blind), ("real", _scores(subject.judge, real, names)))
        places = [ranks(of, own) for _, of in every]
        fits = [of.diagonal().clamp(0, 1).double() for _, of in every]
        right, control = ((place < 1).double().numpy() for place in places[:2])
        found = [
            Evaluation.of(f"{self.name}_R@1", self.split, right, blind=control, chance=1 / len(names)),
            Evaluation.of(f"{self.name}_CLIP_score", self.split, fits[0].numpy(), blind=fits[1].numpy()),
        ]
        rows = [(title, *(f"{float((place < k).double().mean()):.1%}" for k in (1, 5, 10)), f"{float(fit.mean()):.3f}")
                for (title, _), place, fit in zip(every, places, fits)]  # fmt: skip
        header = ("pictures", "R@1", "R@5", "R@10", "CLIP score")
        table = Table(f"The judge's name of {len(names)} pictures of {self.split}", header, tuple(rows))
        some = drawn(range(len(names)), SHOWN)
        examples = [self._example(names, made, seen, blind, index) for index in some]
        lines = [[of[index] for index in some[at : at + COLUMNS]] for at in range(0, len(some), COLUMNS)
                 for of in (made, real)]  # fmt: skip
        said = ", ".join(names[index] for index in some)
        grid = (f"{self.split}: made pictures above real ones of {said}", picture_grid(lines))
        return TaskResult(found, examples, [table], [grid])

    def _real(self, chosen: Sequence[Concept]) -> list[Image.Image]:
        """A real picture of each concept, of the split where it has one."""
        artists = {concept.key: artist for concept, artist in pictures(self.split, self.holdout_dev)}
        return [EmojiPicture(concept.key, artists[concept.key]).load() for concept in chosen]

    def _example(
        self, names: list[str], made: list[Image.Image], seen: torch.Tensor, blind: torch.Tensor, index: int
    ) -> Example:
        best, guessed = int(seen[index].argmax()), int(blind[index].argmax())
        return Example(
            task=self.name, split=self.split, question=self.wording.format(name=names[index]), answer=names[best],
            expected=names[index], right=best == index, blind=names[guessed], blind_right=guessed == index,
            pictures=[made[index]],
        )  # fmt: skip


class Drawn(Judged):
    """Pictures that a language model says token by token.

    sampling  how tokens are chosen; its `guidance` is that of the prompt
    plain     the words stand alone, as in documents; otherwise a user asks them
    """

    sampling: Sampling = Sampling(temperature=1.0, top_k=64, guidance=3.0, max_tokens=1)
    plain: bool = False

    def draw(self, subject: Subject, asked: list[str], progress: Callable[[int], None] | None) -> list[Image.Image]:
        role = None if self.plain else "user"
        samples = [Sample((Segment("text", words, role),)) for words in asked]
        return [frames[0] for frames in subject.engine.draw(samples, self.sampling, progress=progress)]


def _scores(judge: Engine, made: Sequence[Image.Image], names: list[str]) -> torch.Tensor:
    """(pictures, names) similarities in the judge's eyes."""
    vectors = picture_vectors(judge, [Made(picture) for picture in made])
    return similarity(vectors, text_vectors(judge, names)).cpu()
