"""Ask a trained model what a recipe or a stage wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

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
