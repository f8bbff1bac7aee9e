"""`sensorium compare`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from sensorium.commands.output import console_for, print_json
from sensorium.commands.show import resolve
from sensorium.commands.train import INTERRUPTED, own_data
from sensorium.compare.alike import Data, built_in
from sensorium.compare.answers import kept_records
from sensorium.compare.budget import parse_budget
from sensorium.compare.calibrate import calibrated
from sensorium.compare.plan import BATCH, COUNT, Wanted, planned
from sensorium.compare.plot import plot_svg
from sensorium.compare.run import SPEEDS, compare, write
from sensorium.compare.table import table_of
from sensorium.compare.vary import varied
from sensorium.config import override
from sensorium.errors import UserError
from sensorium.evaluate.judging import Rated
from sensorium.evaluate.opening import open_task
from sensorium.evaluate.records import file_name
from sensorium.evaluate.result import Comparison
from sensorium.evaluate.task import EvaluationTask
from sensorium.report.data import ReportData, TaskRecords
from sensorium.report.environment import environment
from sensorium.report.write import write_report
from sensorium.train.recipe import Recipe
from sensorium.train.trainer import Stopped

OTHER_SEEDS = "The answers shown are those of seed {seed}, or of a design's first seed that was done; all are in rows/."


@dataclass(frozen=True)
class Comparing:
    """What `sensorium compare` was asked for; fields are its options."""

    recipes: tuple[str, ...]
    budget: str
    size: str | None = None
    data: tuple[Path, ...] = ()
    seeds: str = "0"
    vary: str | None = None
    overrides: tuple[str, ...] = ()
    batch: int | None = None
    n: int | None = None
    skip_bad_rows: bool = False
    tasks: tuple[str, ...] = ()
    metric: str | None = None


def run_compare(given: Comparing, out: Path | None, json: bool) -> None:
    console = console_for(json)
    wanted = wanted_of(given, console)
    folder = out or Path("comparisons") / _name(given)
    say = partial(console.print, markup=False, soft_wrap=True)
    measure = partial(calibrated, files=wanted.files, beside=folder / SPEEDS)
    plan = planned(wanted, measure, say)
    title = f"{', '.join(dict(wanted.recipes))}" if given.vary is None else f"{given.recipes[0]}: {given.vary}"
    try:
        found = compare(plan, folder, title + (f", {given.size}" if given.size else ""), console)
    except Stopped as stopped:
        say(f"{stopped}\nthe same command continues")
        raise typer.Exit(INTERRUPTED) from None
    write_all(found, folder, kept_records(found, folder, plan.tasks))
    if json:
        print_json(found.to_json())
    else:
        console.print(table_of(found))
        say(f"plot:   {folder / 'compare.svg'}\nreport: {folder / 'report.html'}")
    if all(row.error for row in found.rows):
        raise UserError("no recipe could be compared: " + "; ".join(f"{row.name}: {row.error}" for row in found.rows))


def write_all(found: Comparison, folder: Path, records: Sequence[TaskRecords] = ()) -> None:
    """compare.json and compare.svg, which the same comparison gives again to the last bit, and the report, which also
    has what was said to each item."""
    write(folder / "compare.json", jsonlib.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
    write(folder / "compare.svg", plot_svg(found))
    clock = jsonlib.loads((folder / "timing.json").read_text("utf-8"))
    seconds = {f"{row['name']}, seed {row['seed']}": row["seconds"] for row in clock}
    seeds = list(dict.fromkeys(row.seed for row in found.rows if row.seed is not None))
    notes = [OTHER_SEEDS.format(seed=seeds[0])] if len(seeds) > 1 and records else []
    write_report(folder, ReportData(title=found.title, kind="comparison", comparison=found, records=records,
                                    seconds=seconds, environment=environment(), notes=notes))  # fmt: skip


def wanted_of(given: Comparing, console: Console) -> Wanted:
    """All of it checked, before anything is measured or trained. Raises UserError for the first mistake."""
    budget, seeds = parse_budget(given.budget), seeds_of(given.seeds)
    recipes = named_recipes(given)
    data = built_in([recipe for _, recipe in recipes])
    if given.data:
        source = own_data(given.data, given.skip_bad_rows, console)
        data = Data(source, source, ", ".join(map(str, given.data)), own=True)
    return Wanted(
        recipes=recipes, budget=budget, seeds=seeds, data=data, language=given.vary is None,
        thaw=not any(one.partition("=")[0].endswith(".train") for one in (given.vary or "", *given.overrides)),
        files=tuple(name for name in given.recipes if ".py:" in name), batch=given.batch or BATCH,
        tasks=own_questions(given.tasks, given.metric, given.n),
        count=given.n or COUNT,
    )  # fmt: skip


def own_questions(given: Sequence[str], metric: str | None, count: int | None) -> tuple[EvaluationTask, ...] | None:
    """Tasks as `sensorium eval --task` opens them, all of their items or `count` of each; None: the built-in ones.

    Raises UserError."""
    tasks = [open_task(one, metric) for one in given]
    if metric is not None and not tasks:
        raise UserError(f"--metric {metric} reads the answers to --task, which is not given")
    for number, task in enumerate(tasks):
        if isinstance(task, Rated) or task.metric.judge_needed:
            raise UserError(f"{task.name} needs a judge, which a comparison does not have: compare without it, then "
                            "ask each run with sensorium eval RUN --task ... --judge ...")  # fmt: skip
        if file_name(task.name) in [file_name(other.name) for other in tasks[:number]]:
            raise UserError(f"two tasks are called {task.name!r}: give one of the files another name")
    return tuple(task if count is None else task.replace(n=count) for task in tasks) or None


def named_recipes(given: Comparing) -> list[tuple[str, Recipe]]:
    """(name in the table, recipe), `--set` applied to each: of --vary one for each of its values."""
    recipes = [resolve(name, given.size, ()) for name in given.recipes]
    if given.vary is not None:
        if len(recipes) != 1:
            raise UserError(f"--vary compares values in one recipe: name one, not {len(recipes)}")
        return varied(_set(recipes[0], given.overrides), given.vary)
    if len(recipes) < 2:
        raise UserError("a comparison needs two recipes, or one with --vary PATH=a,b,c")
    names = [recipe.name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the recipe {twice!r} is named twice: give your own another name")
    return [(recipe.name, _set(recipe, given.overrides)) for recipe in recipes]


def _set(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    for assignment in overrides:
        recipe = override(recipe, assignment)
    return recipe


def seeds_of(text: str) -> tuple[int, ...]:
    """0,1,2. Raises UserError."""
    try:
        seeds = tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds is whole numbers with commas, such as 0,1,2; given {text!r}") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds are different numbers from 0 on; given {text!r}")
    return seeds


def _name(given: Comparing) -> str:
    """A folder name that says what is compared."""
    words = "-".join([*given.recipes, given.vary or "", given.size or "", given.budget])
    safe = "".join(sign if sign.isalnum() or sign in "-._" else "-" for sign in words)
    return safe.replace("--", "-").strip("-")[:120]
