"""Ask a trained model what a recipe or a stage wants to know."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sensorium.evaluate.result import TaskResult
from sensorium.evaluate.task import EvaluationTask, Subject
from sensorium.infer.engine import Engine
from sensorium.models.wiring import Wiring
from sensorium.render import Renderer
from sensorium.sequence import Item, Media
from sensorium.tokenizer import Tokenizer
from sensorium.train.recipe import Recipe
from sensorium.train.task import frozen_encoders


def subject_of(
    recipe: Recipe, model: Wiring, tokenizer: Tokenizer, cache: Path | None = None, judge: Engine | None = None
) -> Subject:
    """A trained model to be asked, its pictures read through the feature cache, those it makes by the judge."""
    config = model.config
    owners = dict.fromkeys(config.owner(kind) for kind in (*config.kinds, *config.targets))
    encoders = frozen_encoders(model, owners, cache, model.reference().dtype)

    def load(kind: str, media: Media) -> Item:
        return encoders[model.config.owner(kind)].load(media)

    renderer = Renderer(tokenizer, recipe.template_of(model.config), model.config.plan, load)
    return Subject(model, renderer, judge=judge)


def answers(
    tasks: Iterable[EvaluationTask], subject: Subject, progress: Callable[[str, int, int], None] | None = None
) -> list[TaskResult]:
    """The results of the tasks in order. progress: (task, prompts done, prompts in all)."""
    results = []
    for task in tasks:
        label = f"{task.name} {task.split}"
        results.append(
            task.run(subject, (lambda done, all, label=label: progress(label, done, all)) if progress else None)
        )
    return results


class Asking:
    """Progress of evaluations: a bar for each task, with what is asked of it. Off a terminal a line where it begins,
    and one every `interval` seconds.

        with Asking() as asking:
            asking("counting", 20, 400)
    """

    def __init__(self, console: Console | None = None, interval: float = 30.0) -> None:
        self._console = Console(stderr=True) if console is None else console
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn()]
        off = not self._console.is_terminal
        self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console, disable=off)
        self._interval, self._tasks, self._printed = interval, dict[str, Any](), -math.inf

    def begin(self, task: str) -> None:
        """A task whose number of questions is not known yet."""
        self._tasks[task] = self._bar.add_task(task, total=None)
        if self._bar.disable:
            self._print(task)

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self._tasks:
            self.begin(task)
        self._bar.update(self._tasks[task], completed=done, total=total)
        if self._bar.disable and done < total and time.monotonic() - self._printed >= self._interval:
            self._print(f"{task}: {done} of {total}")

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
