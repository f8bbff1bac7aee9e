"""What an evaluation task found, in the form that reports show. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image

from sensorium.data.boxes import Box
from sensorium.evaluate.statistics import Evaluation, Interval

if TYPE_CHECKING:
    from sensorium.evaluate.item import TaskItem
    from sensorium.evaluate.records import Record


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
    part                 the sub-task it is of
    score                by the metric's headline, where that is more than right or wrong
    boxes, said_boxes    the right boxes, and those that the model names: x0 y0 x1 y1 in [0, 1] of the first picture
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
    part: str = ""
    score: float | None = None
    boxes: Sequence[Box] = ()
    said_boxes: Sequence[Box] = ()

    def __post_init__(self) -> None:
        # Comparisons of arrays give numpy's booleans, which JSON does not know.
        self.right = None if self.right is None else bool(self.right)
        self.blind_right = None if self.blind_right is None else bool(self.blind_right)


Outcome = Literal["right", "wrong", "unread", "error", "open"]
"""unread: the metric found no answer in what was said; error: nothing was said; open: shown, but not right or wrong."""
OUTCOME_WORDS: dict[Outcome, str] = {
    "right": "right", "wrong": "wrong", "unread": "unreadable", "error": "error", "open": "not scored",
}  # fmt: skip


def outcome_of(parsed: Any, score: float | None, error: str, graded: bool) -> Outcome:
    """What became of an answer; half a point is right. graded: scores are not of right and wrong."""
    if error:
        return "error"
    if parsed is None:
        return "unread"
    if graded or score is None:
        return "open"
    return "right" if score >= 0.5 else "wrong"


@dataclass(frozen=True, slots=True)
class Table:
    """Further numbers of a task, for people: every row has a cell for each name in the header.

    of      task and split whose parts the rows are, by their first cells; None: rows are something else
    counts  which outcomes the last columns then count
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    of: tuple[str, str] | None = None
    counts: tuple[Outcome, ...] = ()


@dataclass(slots=True)
class TaskResult:
    """evaluations: scores with intervals and controls. The rest is shown in the report as it is.

    pictures  (title, picture), for a task that draws one
    records   each item as it was asked and answered, of a task of questions
    items     the items by the ids of their records
    """

    evaluations: list[Evaluation]
    examples: list[Example] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    items: dict[str, TaskItem] = field(default_factory=dict)


@dataclass(kw_only=True)
class ComparedRow:
    """One design of a comparison: what it scored, and what that cost.

    name               unique in the comparison but for seeds: the recipe's name, or the value that varies
    seed               of weights and order; None: the mean over all seeds of this name
    scores             on the same items as every other row. Of a mean over seeds the interval is that of the mean over
                       runs and items
    parameters         of the whole model; `trained` of them in any stage
    flops              of all training steps, as sensorium/train/cost.py counts them
    samples, steps     trained on, in all stages
    seconds            of training steps alone. This, the speed and the memory are those measured before training, so
                       that the same comparison gives the same row
    peak_memory        bytes
    tokens_per_picture of the language model's stream or memory; None: the model reads no pictures
    error              why the row has no scores; "": nothing went wrong
    folder             the run's, relative to the comparison's
    spread             of a mean over seeds: the standard deviation of each of `scores` over them
    """

    name: str
    title: str
    seed: int | None
    scores: list[Evaluation]
    parameters: int
    trained: int
    flops: float
    samples: int
    steps: int
    seconds: float
    samples_per_second: float
    peak_memory: int
    tokens_per_picture: float | None
    error: str = ""
    folder: str = ""
    spread: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "scores": [score.to_json() for score in self.scores]}


@dataclass(kw_only=True)
class Difference:
    """Two designs on one task, item by item.

    task    task and split, as tables write them
    margin  score of `one` minus score of `other`, with its interval, by paired bootstrap over the same items
    better  whether `one` is better; None: not decidable
    """

    one: str
    other: str
    task: str
    margin: Interval
    better: bool | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "margin": self.margin._asdict()}


@dataclass(kw_only=True)
class Comparison:
    """Designs trained and asked alike.

    budget  what each row was given, in words; so is `data`
    notes   what a reader must know to believe the table
    """

    title: str
    budget: str
    data: str
    rows: list[ComparedRow]
    differences: list[Difference]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        rows, differences = ([one.to_json() for one in many] for many in (self.rows, self.differences))
        return {**asdict(self), "rows": rows, "differences": differences}
