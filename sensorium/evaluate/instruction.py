"""Whether what a picture becomes depends on what is asked about it (InstructBLIP, arXiv 2305.06500, section 3.3)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.data.builtin_phrases import CAPTION, SCENE
from sensorium.data.questions import choice_items
from sensorium.errors import UserError
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.result import Table, TaskResult
from sensorium.evaluate.task import EvaluationTask, Progress, Subject
from sensorium.infer.engine import Engine
from sensorium.render import Renderer
from sensorium.sequence import Plan, Sample, Segment, Sequence

PICTURES = 32
ASKED = (CAPTION["en"][0], SCENE["count"][0].format(name="things"), SCENE["where"][0].format(name="thing"))
"""Three instructions that ask for different things: what, how many, where."""


class Instructed(EvaluationTask):
    """How far a picture's tokens move with the instruction, and what is lost when the connector does not read it.

    Tokens are compared by cosine distance after their mean over all pictures and instructions is taken off: between two
    instructions about one picture, and, for scale, between two pictures under one instruction. The ablation is the
    choice task once more, the connector reading no words; the language model reads them in both.
    """

    name: str = "instruction"
    seed: int = 0
    holdout_dev: bool = False

    def run(self, subject: Subject, progress: Progress | None = None) -> TaskResult:
        """Raises UserError for a model whose connectors read no words."""
        config = subject.model.config
        if not any(connector.reads_text for connector in config.connectors.values()):
            raise UserError("no connector of this model reads the instruction: leave out the task")
        told, seen = self._distances(subject.engine)
        choice = Choice(
            name=self.name, family="emoji", split=self.split, n=self.n, seed=self.seed, holdout_dev=self.holdout_dev
        )
        read = choice.run(subject, progress).evaluations[0]
        deaf = Subject(subject.model, deafened(subject.renderer), tokens=subject.tokens, items=subject.items)
        result = choice.run(deaf, progress)
        without = result.evaluations[0]
        rows = (
            ("cosine distance of a picture's tokens between two instructions", f"{told:.3f}"),
            ("the same between two pictures under one instruction", f"{seen:.3f}"),
            ("right answers, the connector reading the instruction", f"{read.score:.1%} (blind {read.blind:.1%})"),
            ("right answers, the connector reading nothing", f"{without.score:.1%} (blind {without.blind:.1%})"),
        )
        return TaskResult([], tables=[Table(f"what the instruction does, {self.split}", ("", "measured"), rows)])

    @torch.inference_mode()
    def _distances(self, engine: Engine) -> tuple[float, float]:
        """Mean cosine distance between instructions, and between pictures."""
        shown = [
            item.segments[0] for item in choice_items(self.split, PICTURES, self.seed, holdout_dev=self.holdout_dev)
        ]
        tokens = torch.stack([_tokens(engine, shown, question) for question in ASKED])  # (instructions, pictures, D)
        tokens = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
        told = [1 - (one * two).sum(-1).mean() for one, two in pairwise(tokens)]
        seen = 1 - (tokens[:, 1:] * tokens[:, :-1]).sum(-1).mean()
        return float(torch.stack(told).mean()), float(seen)


def _tokens(engine: Engine, pictures: list[Segment], question: str) -> Tensor:
    """(pictures, tokens * width) float32: what the connector makes of each picture under a question."""
    samples = [Sample((picture, Segment("text", question, "user"))) for picture in pictures]
    sequences = engine.prepare([engine.renderer.render(sample, generate=True) for sample in samples])
    dtype = next(engine.model.stack.parameters()).dtype
    tokens = engine.model.connect(pictures[0].kind, Sequence.pack(sequences), dtype)
    return tokens.float().view(len(pictures), -1)


def deafened(renderer: Renderer) -> Renderer:
    """The same renderer, whose plans have no connector read words."""

    def plan(kind: str, shape: tuple[int, ...]) -> Plan:
        return replace(renderer.plan(kind, shape), read=False)

    return Renderer(renderer.tokenizer, renderer.template, plan, renderer.load)
