"""Whether an answer has a picture where one is asked for, and words alone where not; and what its pictures show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from sensorium.data.emoji import EmojiPicture, pictures
from sensorium.evaluate.drawing import Judged
from sensorium.evaluate.result import Example, Table, TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import SHOWN, EvaluationTask, Progress, Subject, drawn, shuffled
from sensorium.infer.handover import Reply, reply
from sensorium.infer.painting import Painting
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment


class Replied(Judged):
    """Pictures in a model's own answers to requests for them, judged as all made pictures are.

    An answer without a picture counts as an empty one.
    """

    sampling: Sampling = Sampling(max_tokens=64)
    painting: Painting = Painting()

    def draw(self, subject: Subject, asked: list[str], progress: Callable[[int], None] | None) -> list[Image.Image]:
        samples = [Sample((Segment("text", words, "user"),)) for words in asked]
        replies = reply(subject.engine, samples, self.sampling, self.painting, progress=progress)
        return [_first_picture(one) or Image.new("RGB", (32, 32), "white") for one in replies]


class Answering(EvaluationTask):
    """n requests for a picture and n questions about one; right is words with a picture, or words alone.

    The control is the answer to another of them, at random; half of these are of the other sort.

    asks, wants  the wording of a question, and of a request with {name}
    """

    name: str = "answers_in_kind"
    n: int = 50
    asks: str = "What is this?"
    wants: str = "Draw {name}."
    sampling: Sampling = Sampling(max_tokens=64)
    painting: Painting = Painting()
    seed: int = 0
    holdout_dev: bool = False

    def items(self) -> list[tuple[Sample, bool, str]]:
        """(sample, whether it asks for a picture, the name of what it is about), half of each sort."""
        found = []
        by_name = {member.captions["en"]: (member, artist) for member, artist in pictures(self.split, self.holdout_dev)}
        for name in drawn(sorted(by_name), self.n):
            member, artist = by_name[name]
            shown = (Segment("image", EmojiPicture(member.key, artist), "user"), Segment("text", self.asks, "user"))
            found.append((Sample((Segment("text", self.wants.format(name=name), "user"),)), True, name))
            found.append((Sample(shown), False, name))
        return found

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        items = self.items()
        step = None if progress is None else lambda done: progress(done, len(items))
        samples = [sample for sample, _, _ in items]
        replies = reply(subject.engine, samples, self.sampling, self.painting, progress=step)
        wanted = np.array([asked for _, asked, _ in items])
        worded = np.array([any(isinstance(part, str) for part in one) for one in replies])
        pictured = np.array([_first_picture(one) is not None for one in replies])
        order = shuffled(len(items), self.seed)
        right = (worded & (pictured == wanted)).astype(float)
        blind = (worded[order] & (pictured[order] == wanted)).astype(float)
        rows = [
            (title, str(int((wanted == sort).sum())), *(f"{float(of[wanted == sort].mean()):.1%}" for of in
             (pictured, worded & ~pictured, right)))
            for title, sort in (("asked for a picture", True), ("asked about a picture", False))
        ]  # fmt: skip
        table = Table(f"Answers of {self.split}", ("sort", "n", "with a picture", "words alone", "right"), tuple(rows))
        some = drawn(range(len(items)), SHOWN)
        examples = [self._example(items[index], replies[index], bool(right[index])) for index in some]
        one = Evaluation.of(self.name, self.split, right, blind=blind, chance=0.5)
        return TaskResult([one], examples, [table])

    def _example(self, item: tuple[Sample, bool, str], said: Reply, right: bool) -> Example:
        sample, asked, name = item
        shown = [part.data for part in sample.segments if part.kind == "image"]
        made = _first_picture(said)
        return Example(
            task=self.name, split=self.split, question=str(sample.segments[-1].data),
            answer=" ".join(part if isinstance(part, str) else "(a picture)" for part in said),
            expected=f"{name} (a picture)" if asked else name, right=right,
            pictures=shown if made is None else [*shown, made],
        )  # fmt: skip


def _first_picture(said: Reply) -> Image.Image | None:
    return next((part[0] for part in said if not isinstance(part, str)), None)
