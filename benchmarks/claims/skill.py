"""What a language model still knows when it has been tuned on pictures: its loss on text that no stage trains on."""

from __future__ import annotations

import random

import torch

from sensorium.data.glosses import Glosses
from sensorium.evaluate.records import Record
from sensorium.evaluate.result import TaskResult
from sensorium.evaluate.statistics import Evaluation, bootstrap
from sensorium.evaluate.task import EvaluationTask, Progress, Subject
from sensorium.evaluate.text import PLAIN
from sensorium.infer.engine import Engine
from sensorium.objectives.language import log_likelihood
from sensorium.sequence import Sample, Segment, Sequence

AT_ONCE = 32


class TextSkill(EvaluationTask):
    """Nats per byte of definitions of words (split "val") or of the lines of plain English (split "all"): the mean over
    documents. There is no picture, so there is no blind control. n: documents, drawn at random; 0: all."""

    seed: int = 0

    def documents(self) -> list[str]:
        if self.split == "all":
            found = [line for line in PLAIN.read_text("utf-8").splitlines() if line.strip()]
        else:
            rows = Glosses(split="val").build().rows
            found = [row.sentence for row in rows]
        return random.Random(self.seed).sample(found, self.n) if self.n else found

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        texts = self.documents()
        lost = losses(subject.engine, texts)
        records = [
            Record(id=f"{self.name}/{number}", prompt=text, parsed=value, score=value, expected=text)
            for number, (text, value) in enumerate(zip(texts, lost, strict=True))
        ]
        mean = bootstrap(lost)
        found = Evaluation(
            task=self.name, split=self.split, n=len(lost), score=mean.mean, low=mean.low, high=mean.high,
            metric="nats per byte", percent=False, better="lower",
        )  # fmt: skip
        return TaskResult([found], records=records)


@torch.inference_mode()
def losses(engine: Engine, texts: list[str]) -> list[float]:
    """Of each text: nats, over its bytes."""
    found: list[float] = []
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        rendered = [
            engine.renderer.render(Sample((Segment("text", one),), id=f"{start + n}")) for n, one in enumerate(some)
        ]
        packed = Sequence.pack(engine.prepare(rendered))
        sums, _ = log_likelihood(engine.model(packed), packed)
        found += [-total / len(one.encode()) for total, one in zip(sums.sum(1).tolist(), some, strict=True)]
    return found
