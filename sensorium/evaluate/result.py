"""What an evaluation task found, in the form that reports show. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from sensorium.evaluate.statistics import Evaluation


class Loadable(Protocol):
    """Media: a picture that is decoded when it is needed."""

    def load(self) -> Any: ...


Picture = Image.Image | Path | str | Loadable


@dataclass(kw_only=True)
class Example:
    """One evaluated or generated sample, exactly as the model said it.

    right, blind_right   None where an answer is shown but not scored (captions, say)
    options              the answers of a multiple choice
    blind                the same model's answer with the picture of another sample; None when the control was not run
    """

    task: str
    split: str
    question: str
    answer: str
    expected: str
    right: bool | None = None
    blind: str | None = None
    blind_right: bool | None = None
    options: Sequence[str] = ()
    pictures: Sequence[Picture] = ()

    def __post_init__(self) -> None:
        # Comparisons of arrays give numpy's booleans, which JSON does not know.
        self.right = None if self.right is None else bool(self.right)
        self.blind_right = None if self.blind_right is None else bool(self.blind_right)


@dataclass(frozen=True, slots=True)
class Table:
    """Further numbers of a task, for people: every row has a cell for each name in the header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class TaskResult:
    """evaluations: scores with intervals and controls. The rest is shown in the report as it is.

    pictures  (title, picture), for a task that draws one
    """

    evaluations: list[Evaluation]
    examples: list[Example] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
