"""What a model that judges pairs is asked: does this text belong to this picture? (BLIP-2, arXiv 2301.12597, 3.1)."""

from __future__ import annotations

import random

import torch

from sensorium.data.emoji import Concept, EmojiPicture, pictures
from sensorium.evaluate.result import Example, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.infer.vectors import pair_logits, picture_vectors, text_vectors
from sensorium.objectives.contrastive import similarity

ANSWERS = ("no", "yes")


class Matches(EvaluationTask):
    """Every picture twice: with its own name, and with the name of another concept that is the hardest to tell apart.

    Hardest is what the model's own contrastive space puts closest to the picture, so a model that only repeats that
    space is right half the time, as is one that guesses. The blind control judges the same texts beside another
    item's picture.

    n  pictures at most; one of each concept, its artist drawn
    """

    name: str = "matching"
    seed: int = 0
    holdout_dev: bool = False

    def items(self) -> list[tuple[Concept, EmojiPicture]]:
        """(concept, picture), each concept once."""
        found: dict[str, list[tuple[Concept, EmojiPicture]]] = {}
        for concept, artist in pictures(self.split, self.holdout_dev):  # type: ignore[arg-type]
            found.setdefault(concept.key, []).append((concept, EmojiPicture(concept.key, artist)))
        rng = random.Random(self.seed)
        return [rng.choice(found[key]) for key in rng.sample(sorted(found), min(self.n, len(found)))]

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        items = self.items()
        count, engine = len(items), subject.engine
        names = [concept.captions["en"] for concept, _ in items]
        image = picture_vectors(engine, [picture for _, picture in items])
        close = similarity(image, text_vectors(engine, names)).cpu()
        same = torch.tensor([[mine == other for other in names] for mine in names])
        hard = close.masked_fill(same, -torch.inf).argmax(1).tolist()
        texts = [*names, *(names[index] for index in hard)]
        others = shuffled(count, self.seed)
        own = [picture for _, picture in items] * 2
        swapped = [items[index][1] for index in others] * 2
        logits = pair_logits(engine, [*zip(own, texts), *zip(swapped, texts)], progress)
        said = logits.argmax(1)
        truth = torch.arange(2 * count) < count
        right, control = said[: 2 * count] == truth, said[2 * count :] == truth
        one = Evaluation.of(
            self.name, self.split, right.double().numpy(), blind=control.double().numpy(), chance=0.5,
            groups=[concept.key for concept, _ in items] * 2,
        )  # fmt: skip
        examples = [
            Example(
                task=self.name, split=self.split, question=f"Is this {texts[index]}?", answer=ANSWERS[int(said[index])],
                expected=ANSWERS[int(truth[index])], right=bool(right[index]),
                blind=ANSWERS[int(said[2 * count + index])], blind_right=bool(control[index]), options=ANSWERS,
                pictures=[own[index]],
            )
            for index in drawn(range(2 * count))
        ]  # fmt: skip
        return TaskResult([one], examples)
