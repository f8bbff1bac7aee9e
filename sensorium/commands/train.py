"""`sensorium train` and `sensorium quickstart`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer
from rich.console import Console

from sensorium.commands.data import check_source
from sensorium.commands.output import Downloads, console_for, print_json
from sensorium.commands.show import resolve
from sensorium.config import override
from sensorium.data.formats import open_data
from sensorium.data.mixture import Mixture, Part, mean_cost
from sensorium.data.source import RowError, SourceConfig
from sensorium.errors import UserError
from sensorium.evaluate.choice import ChoiceResult
from sensorium.hub.cache import cache_root
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.render import TooLong
from sensorium.sequence import MediaError, Sample
from sensorium.train.finish import engine_of, evaluate, report
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.report_data import Example
from sensorium.train.trainer import Run, Stopped, open_run, train

EPOCHS = 40
"""At most so many passes over a user's own data, where --steps does not say how long a stage is."""
INTERRUPTED = 130
SHOWN, LONGEST = 8, 48  # rows of the report with free answers, and tokens of an answer


@dataclass(frozen=True)
class Request:
    """What `sensorium train` was asked for; fields are its options."""

    recipe: str
    size: str | None = None
    overrides: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    stages: tuple[str, ...] = ()
    steps: int | None = None
    seed: int | None = None
    skip_bad_rows: bool = False


def prepare(request: Request, console: Console) -> Recipe:
    """The recipe that will be trained, all of it checked.

    Order: the recipe and its size, --stage, --data (every row is checked), --steps and --seed, then --set, which so
    has the last word. Raises UserError for the first mistake.
    """
    recipe = resolve(request.recipe, request.size, ())
    if request.stages:
        recipe = recipe.replace(stages=tuple(recipe.stage(name) for name in dict.fromkeys(request.stages)))
    _overridden(recipe, request.overrides)  # a mistake here is found before data is read
    if request.data:
        source = own_data(request.data, request.skip_bad_rows, console)
        stages = tuple(stage.replace(data=source) for stage in recipe.stages)
        recipe = recipe.replace(stages=stages, evaluations=())  # those are about the built-in pictures
        if request.steps is None:
            recipe = recipe.replace(stages=tuple(_bounded(stage, source, console) for stage in recipe.stages))
    if request.steps is not None:
        stages = tuple(stage.replace(steps=request.steps, epochs=None) for stage in recipe.stages)
        recipe = recipe.replace(stages=stages)
    if request.seed is not None:
        recipe = recipe.replace(seed=request.seed)
    recipe = _overridden(recipe, request.overrides)
    for stage in recipe.stages:
        if stage.data is None:
            raise UserError(
                f"stage {stage.name!r} of {recipe.name} at size {recipe.size} has no data: "
                "give --data, or another --size"
            )
    return recipe


def _overridden(recipe: Recipe, assignments: tuple[str, ...]) -> Recipe:
    for assignment in assignments:
        recipe = override(recipe, assignment)
    return recipe


def own_data(paths: tuple[Path, ...], skip_bad_rows: bool, console: Console) -> SourceConfig:
    """A user's files and folders as one source, every row checked. Raises UserError naming each bad row."""
    parts = []
    for number, path in enumerate(paths, 1):
        source = open_data(path)
        report = check_source(source, console)
        report.refuse(skip_bad_rows=skip_bad_rows)
        console.print(f"{path}: {source.tag()}\n{report.summary()}", markup=False, soft_wrap=True)
        parts.append(Part(name=f"data{number}", source=source, weight=report.rows - report.bad))
    return Mixture(parts=tuple(parts))


def _bounded(stage: Stage, source: SourceConfig, console: Console) -> Stage:
    """A stage on a user's data: as long as the recipe says, but at most EPOCHS passes."""
    if stage.steps is None:
        return stage
    built = Mixture.of(source).build()
    mean = sum(
        mean_cost(part, name) * float(share)
        for part, (name, share) in zip(built.sources, built.shares.items(), strict=True)
    )
    passes = stage.steps * stage.accumulate * stage.tokens / (mean * built.samples)
    if passes <= EPOCHS:
        return stage
    console.print(
        f"stage {stage.name}: {EPOCHS} passes over {built.samples:,} rows (--steps says otherwise)", soft_wrap=True
    )
    return stage.replace(steps=None, epochs=EPOCHS)


def run_train(request: Request, out: Path | None, *, resume: bool, json: bool) -> None:
    console = console_for(json)
    recipe = prepare(request, console)
    out = out or Path("runs") / f"{recipe.name}-{recipe.size}"
    with Downloads(console) as progress:
        run = open_run(recipe, out, resume=resume, progress=progress)
    console.print(f"{recipe.title} {recipe.size} into {out}", markup=False, soft_wrap=True)
    try:
        train(run, console=console)
    except Stopped as stopped:
        report(run, [], [], [], stopped=str(stopped))
        console.print(f"{stopped}\nthe same command continues", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    found = report(run, *_asked(run), [])
    if json:
        print_json(found)
    else:
        console.print(f"report: {out / 'report.html'}\nchat:   sensorium chat {out}", markup=False, soft_wrap=True)


def _asked(run: Run) -> tuple[list[ChoiceResult], list[Example]]:
    """Results of the recipe's evaluations, and answers to a few rows it was trained on."""
    engine = engine_of(run.recipe, run.model, run.tokenizer, cache_root() / "features")
    with run.phases("evaluate"):
        results = evaluate(run.recipe, engine)
    with run.phases("examples"):
        examples = row_examples(engine, run.recipe.stages[-1])
    return results, examples


def row_examples(engine: Engine, stage: Stage, count: int = SHOWN) -> list[Example]:
    """Free answers beside the expected ones, for rows of a stage spread evenly; unusable rows are left out."""
    assert stage.data is not None
    source = stage.data.build()
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)).tolist():
        try:
            sample = source[index]
            segments = [replace(one, branch=0) for one in sample.segments if one.branch in (0, 1)]
            if not segments or segments[-1].kind != "text" or segments[-1].role not in (None, "assistant"):
                continue
            *asked, expected = segments
            answer = (
                engine.generate([Sample(tuple(asked), sample.id)], Sampling(max_tokens=LONGEST))[0] if asked else ""
            )
        except (RowError, MediaError, TooLong):
            continue
        question = "\n".join(str(one.data) for one in asked if one.kind == "text") or "(the picture alone)"
        pictures = [one.data for one in asked if one.kind == "image"]
        found.append(
            Example(task="training rows", split="train", question=question, answer=answer,
                    expected=str(expected.data), pictures=pictures)
        )  # fmt: skip
    return found


def run_quickstart(out: Path, json: bool) -> None:
    from sensorium.train.quickstart import quickstart

    try:
        found = quickstart(out, json=json)
    except Stopped as stopped:
        console_for(True).print(f"{stopped}\nthe same command continues", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json(found)
