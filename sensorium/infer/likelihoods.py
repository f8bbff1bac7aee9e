"""Multiple choice by likelihood: the options of a question as branches behind its prompt."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment

Question = tuple[Many[Segment], Many[str]]
"""A prompt, and the answers to choose from."""


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of the options of one question: sums of log-probabilities (the turn's stop token included) and token counts."""

    sums: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def best(self) -> int:
        """The likeliest option."""
        return max(range(len(self.sums)), key=self.sums.__getitem__)

    @property
    def best_per_token(self) -> int:
        """The likeliest option by mean log-probability, which does not favour short ones."""
        return max(range(len(self.sums)), key=lambda option: self.sums[option] / self.counts[option])


def choice(number: int, prompt: Many[Segment], options: Many[str]) -> Sample:
    """The options as branches: answers of the assistant, or plain text behind a plain prompt."""
    if not options:
        raise UserError(f"question {number} has no options to choose from")
    chat = any(segment.role is not None for segment in prompt)
    role = "assistant" if chat else None
    trunk = tuple(replace(segment, train=False) for segment in prompt)
    answers = (
        Segment("text", option, role=role, train=True, branch=branch) for branch, option in enumerate(options, 1)
    )
    return Sample((*trunk, *answers), id=f"question {number}")
