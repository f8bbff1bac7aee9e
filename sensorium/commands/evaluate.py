"""`sensorium eval`."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from sensorium.commands.output import console_for, print_json
from sensorium.errors import UserError
from sensorium.hub.cache import cache_root
from sensorium.infer.kernels.quantize import check_kind
from sensorium.infer.kernels.quantize import quantize as quantize_stack
from sensorium.recipes.common import evaluations_of
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.finish import evaluate, subject_of
from sensorium.train.judge import judge_of
from sensorium.train.log import Progress

COUNT = 300
"""Items of each task, of runs whose recipe names no evaluations."""


def run_evaluate(run: Path, count: int | None, json: bool, quantize: str | None = None) -> None:
    if not run.exists():
        raise UserError(f"there is no folder {run}: give a run folder, for example runs/quickstart")
    if quantize is not None:
        check_kind(quantize)
    recipe, model, tokenizer = load_checkpoint(run)
    tasks = tuple(task.replace(n=count or task.n) for task in recipe.evaluations or evaluations_of(recipe.model, COUNT))
    recipe = recipe.replace(evaluations=tasks)
    console = console_for(True)
    if quantize is not None:
        console.print(quantize_stack(model, quantize).summary(), markup=False, highlight=False, soft_wrap=True)
    subject = subject_of(recipe, model, tokenizer, cache_root() / "features", judge_of(recipe, console))
    with Progress("evaluate", len(tasks), console=console) as bar:
        results = evaluate(recipe, subject, lambda label, done, total: None)
        bar.note(f"{len(results)} tasks evaluated")
    found = [one for result in results for one in result.evaluations]
    if json:
        print_json({"recipe": recipe.name, "size": recipe.size, **({"quantize": quantize} if quantize else {}),
                    "evaluations": [one.to_json() for one in found]})  # fmt: skip
        return
    title = f"{recipe.title} {recipe.size}" + (f", {quantize}" if quantize else "")
    table = Table(title=title, title_justify="left")
    for name in ("task", "split", "n", "score", "95 % interval", "blind", "chance"):
        table.add_column(name)
    for one in found:
        interval = f"{one.low:.1%} to {one.high:.1%}"
        control = ["" if value is None else f"{value:.1%}" for value in (one.blind, one.chance)]
        table.add_row(one.task, one.split, str(one.n), f"{one.score:.1%}", interval, *control)
    console_for(False).print(table)
