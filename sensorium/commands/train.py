"""`sensorium train` and `sensorium quickstart`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from sensorium.commands.data import check_source
from sensorium.commands.output import Downloads, console_for, print_json
from sensorium.commands.show import resolve
from sensorium.config import override
from sensorium.data.formats import open_data
from sensorium.data.mixture import Mixture, Part, mean_cost
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError
from sensorium.train.finish import complete
from sensorium.train.parallel import joined
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.trainer import Stopped, open_run

EPOCHS = 40
"""At most so many passes over a user's own data, where --steps does not say how long a stage is."""
STEPS_PER_PASS = 4
"""At least so many steps for each of those passes, where the rows are about pictures."""
INTERRUPTED = 130


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
    if not recipe.stages:
        raise UserError(f"{recipe.title} ({recipe.family}) answers nothing in words, and fine-tuning is for models "
                        "that do: give one of them")  # fmt: skip
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
    # few rows fit one batch: smaller batches, so that as many passes make more steps at the same cost
    items = max(1, math.ceil(built.samples / (STEPS_PER_PASS * stage.accumulate)))
    items = items if stage.items is None else min(items, stage.items)
    console.print(
        f"stage {stage.name}: {EPOCHS} passes over {built.samples:,} rows, at most {items} pictures a step "
        "(--steps says otherwise)",
        soft_wrap=True,
    )
    return stage.replace(steps=None, epochs=EPOCHS, items=items)


def run_train(request: Request, out: Path | None, *, resume: bool, json: bool) -> None:
    """Under torchrun all processes train; the first one alone speaks, evaluates and writes."""
    with joined() as ranks:
        console = console_for(json) if ranks.leader else Console(quiet=True)
        recipe = prepare(request, console)
        out = out or Path("runs") / f"{recipe.name}-{recipe.size}"
        with Downloads(console) as progress:
            run = open_run(recipe, out, resume=resume, progress=progress, ranks=ranks)
        console.print(f"{recipe.title} {recipe.size} into {out}", markup=False, soft_wrap=True)
        try:
            found = complete(run, console)
        except Stopped as stopped:
            console.print(f"{stopped}\nthe same command continues", markup=False, soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
    if not run.ranks.leader:
        return
    if json:
        print_json(found)
    else:
        console.print(f"report: {out / 'report.html'}\nchat:   sensorium chat {out}", markup=False, soft_wrap=True)


def run_quickstart(out: Path, json: bool) -> None:
    from sensorium.train.quickstart import quickstart

    try:
        found = quickstart(out, json=json)
    except Stopped as stopped:
        console_for(True).print(f"{stopped}\nthe same command continues", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json(found)
