"""One question of a task, with what is right; and what a file of them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from sensorium.config import Config
from sensorium.data.boxes import Box
from sensorium.sequence import Segment

PLACE = "<image>"
"""Where media stand in the words of a question, in order; those without a place stand before the words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskItem:
    """A question as its file has it, before a prompt is made of it.

    id        unique in its task; records are kept by it
    question  the words, with PLACE where media stand in them
    media     pictures (or clips, sounds) in order: segments of role "user"; those that no place is left for come last
    before    turns that come before the question, for a conversation
    answers   references: any of them, the annotators' ten (VQA), or captions
    options   of a multiple choice
    answer    number of the right option; None: there are no options, or the split is without answers
    boxes     the right boxes
    group     items that share it are not independent (questions about one picture): they are resampled together
    part      the sub-task it is of (MME's task, POPE's setting), for tables by part
    info      what else a metric reads, in plain JSON
    """

    id: str
    question: str = ""
    media: tuple[Segment, ...] = ()
    before: tuple[Segment, ...] = ()
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    answer: int | None = None
    boxes: tuple[Box, ...] = ()
    group: str = ""
    part: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item that cannot be asked: where it stands, and why not."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Items:
    """What a source holds: the items in the order of its file, and those that are unusable."""

    items: list[TaskItem]
    bad: list[BadItem] = field(default_factory=list)


class TaskSource(Config):
    """Where the questions of a task come from. Pictures are not decoded here.

    title   the benchmark, as tables have it
    metric  the name of its metric, unless a task says another
    asks    what is asked of the form of an answer, as published for it; empty: the metric's own `prompt`
    """

    title: ClassVar[str] = ""
    metric: ClassVar[str] = "exact"
    asks: ClassVar[str] = ""

    def load(self) -> Items:
        """Raises UserError when there is no such file, or it is of another format; a bad item is counted in `bad`."""
        raise TypeError(f"{self.tag()} describes no questions")

    @cached_property
    def loaded(self) -> Items:
        """What `load` gives, read once for this value: a task is opened by it (which metric fits), then asked."""
        return self.load()

    def metric_for(self, items: Sequence[TaskItem]) -> str:
        """The name of the metric that fits these items; a source of one benchmark has always the same."""
        return self.metric
