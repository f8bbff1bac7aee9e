"""`sensorium eval`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import sensorium
from sensorium.api import Model, load
from sensorium.commands.output import console_for, print_json
from sensorium.convert.adapters import is_adapter
from sensorium.convert.hubs import published_folder
from sensorium.errors import UserError
from sensorium.evaluate.answerer import Answerer, Local
from sensorium.evaluate.asked import Asked
from sensorium.evaluate.endpoint import Endpoint
from sensorium.evaluate.judging import Rated, run_rated
from sensorium.evaluate.opening import open_task, reads_data
from sensorium.evaluate.records import AnswerCache, file_name, fingerprint_of_files
from sensorium.evaluate.result import TaskResult
from sensorium.evaluate.runner import run_asked
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.wording import shown
from sensorium.hub.cache import cache_root
from sensorium.infer.kernels.quantize import check_kind
from sensorium.recipes.common import evaluations_of
from sensorium.report.data import ReportData, TaskRecords
from sensorium.report.environment import environment
from sensorium.report.write import write_report
from sensorium.train.ask import Asking, subject_of
from sensorium.train.checkpoint import latest
from sensorium.train.finish import evaluate
from sensorium.train.judge import judge_of

COUNT = 300
"""Items of each task, of runs whose recipe names no evaluations."""


@dataclass(frozen=True, kw_only=True)
class Evaluating:
    """What `sensorium eval` was asked for; fields are its options."""

    run: str | None
    tasks: tuple[str, ...] = ()
    metric: str | None = None
    data: tuple[str, ...] = ()
    limit: int | None = None
    shots: int | None = None
    blind: bool = True
    batch: int | None = None
    out: Path | None = None
    endpoint: str | None = None
    model: str | None = None
    key_env: str | None = None
    concurrency: int = 8
    judge: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    cache: bool = True
    quantize: str | None = None
    device: str = "cpu"
    json: bool = False


def run_evaluate(asked: Evaluating) -> None:
    _fitting(asked)
    if asked.tasks:
        _ask(asked)
    else:
        _recipe_evaluations(asked)


def _fitting(asked: Evaluating) -> None:
    """Raises UserError for options that do not go together."""
    if asked.quantize is not None:
        check_kind(asked.quantize)
    if (asked.run is None) == (asked.endpoint is None):
        raise UserError("give a RUN (or a published model), or --endpoint URL with --model NAME; not both")
    if asked.endpoint is not None and (asked.model is None or not asked.tasks):
        raise UserError("an endpoint is asked as --endpoint URL --model NAME --task ...")
    if asked.endpoint is not None and asked.quantize is not None:
        raise UserError("an endpoint has its own weights: leave out --quantize")
    if not asked.tasks and (asked.metric or asked.data or asked.shots or asked.judge or asked.out or not asked.blind):
        raise UserError("--metric, --data, --shots, --judge, --out and --no-blind are about a --task: name one")


def _opened(run: str, asked: Evaluating, console: Console) -> Model:
    if not Path(run).exists() and published_folder(run) is None:
        raise UserError(f"there is no folder {run}: give a run folder, for example runs/quickstart")
    # a run is asked in the precision it was trained in, so that its report's numbers come out again
    own = _checkpoint(run) is not None
    return load(run, "stored" if own else "auto", asked.device, console, asked.quantize)  # type: ignore[arg-type]


def _checkpoint(run: str) -> Path | None:
    """The checkpoint of a run folder; None for published models."""
    folder = Path(run)
    if not folder.is_dir() or is_adapter(folder) or published_folder(run) is not None:
        return None
    return folder if (folder / "recipe.json").exists() else latest(folder)


# ---- the recipe's own evaluations


def _recipe_evaluations(asked: Evaluating) -> None:
    console = console_for(True)
    assert asked.run is not None
    model = _opened(asked.run, asked, console)
    recipe = model.recipe
    chosen = recipe.evaluations or evaluations_of(recipe.model, COUNT)
    recipe = recipe.replace(evaluations=tuple(task.replace(n=asked.limit or task.n) for task in chosen))
    assert model.tokenizer is not None
    subject = subject_of(recipe, model.network, model.tokenizer, cache_root() / "features", judge_of(recipe, console))
    with Asking(console) as asking:
        results = evaluate(recipe, subject, asking)
    found = [one for result in results for one in result.evaluations]
    if asked.json:
        quantize = {"quantize": asked.quantize} if asked.quantize else {}
        print_json({"recipe": recipe.name, "size": recipe.size, **quantize,
                    "evaluations": [one.to_json() for one in found]})  # fmt: skip
        return
    title = f"{recipe.title} {recipe.size}" + (f", {asked.quantize}" if asked.quantize else "")
    console_for(False).print(_table(title, found))


def _table(title: str, found: list[Evaluation]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("task", "split", "metric", "n", "score", "95 % interval", "blind", "chance"):
        table.add_column(name)
    for one in found:
        interval = f"{shown(one.low, one.percent)} to {shown(one.high, one.percent)}"
        control = ["" if value is None else shown(value, one.percent) for value in (one.blind, one.chance)]
        score = shown(one.score, one.percent)
        table.add_row(one.task, one.split, one.metric, str(one.n), score, interval, *control)
    return table


# ---- tasks of questions


def _ask(asked: Evaluating) -> None:
    tasks = _tasks(asked)  # mistakes are told before a model is loaded
    names = [file_name(task.name) for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two tasks are called {name!r}: ask them one after the other, each with its own --out")
    judged = any(isinstance(task, Rated) or task.metric.judge_needed for task in tasks)
    if judged != (asked.judge is not None):
        raise UserError("--judge rates open answers, and says how near captions are to pictures (clipscore): give it "
                        "with a task of that kind, and with no other")  # fmt: skip
    console = console_for(True)
    cache = AnswerCache(cache_root() / "answers.sqlite")
    answerer = _answerer(asked, cache, console)
    judge = _judge(asked, cache, console) if judged else None
    out = asked.out or _place(asked)
    results = []
    for task in tasks:
        results.append(_results(task, answerer, judge, out, cache if asked.cache else None, console))
    _tell(asked, answerer, tasks, results, out)


def _tasks(asked: Evaluating) -> list[Asked]:
    """Each --data is of the next task that reads one. Raises UserError for one that none reads."""
    places = list(asked.data)
    tasks = [_task(given, places.pop(0) if places and reads_data(given) else None, asked) for given in asked.tasks]
    if places:
        raise UserError(f"no task reads --data {places[0]}: give one for each benchmark that has files, in their order")
    return tasks


def _task(given: str, data: str | None, asked: Evaluating) -> Asked:
    task = open_task(given, asked.metric, data)
    changes: dict[str, Any] = {"blind": task.blind and asked.blind}
    if asked.limit is not None:
        changes["n"] = asked.limit
    if asked.shots is not None:
        changes["shots"] = asked.shots
    return task.replace(**changes)


def _answerer(asked: Evaluating, cache: AnswerCache, console: Console) -> Answerer:
    if asked.endpoint is not None:
        return Endpoint(asked.endpoint, asked.model or "", asked.key_env, concurrency=asked.concurrency)
    return _local(asked.run or "", asked, cache, console)


def _judge(asked: Evaluating, cache: AnswerCache, console: Console) -> Answerer:
    assert asked.judge is not None
    if asked.judge.startswith(("http://", "https://")):
        if asked.judge_model is None:
            raise UserError("a judge behind an address has a name there: --judge-model NAME")
        return Endpoint(asked.judge, asked.judge_model, asked.judge_key_env, concurrency=asked.concurrency)
    return _local(asked.judge, asked, cache, console)


def _local(run: str, asked: Evaluating, cache: AnswerCache, console: Console) -> Local:
    model = _opened(run, asked, console)
    if model.tokenizer is None:
        raise UserError(f"{run} reads no text, so it answers no questions")
    subject = subject_of(model.recipe, model.network, model.tokenizer, cache_root() / "features")
    title = f"{model.recipe.title} {model.recipe.size}" + (f", {asked.quantize}" if asked.quantize else "")
    return Local(subject, title=title, batch=asked.batch, fingerprint=_fingerprint(run, model, asked, cache))


def _fingerprint(run: str, model: Model, asked: Evaluating, cache: AnswerCache) -> str | None:
    """Of the files of a checkpoint, what training alone needs left out; None: of the weights in memory."""
    reference = model.network.reference()
    about = (sensorium.__version__, str(reference.dtype), str(reference.device), asked.quantize or "")
    folder = _checkpoint(run)
    if folder is None and Path(run).is_file():
        return fingerprint_of_files([Path(run)], Path(run).parent, cache, *about)
    if folder is None:
        folder = None if is_adapter(Path(run)) else published_folder(run)
    if folder is None:
        return None
    files = [path for path in folder.rglob("*") if path.is_file() and "optim" not in path.relative_to(folder).parts]
    wanted = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = [path for path in files if path.suffix in wanted and not path.name.startswith("loader")]
    return fingerprint_of_files(files, folder, cache, *about)


def _place(asked: Evaluating) -> Path:
    if asked.endpoint is not None:
        return Path("evaluations") / file_name(asked.model or "")
    own = Path(asked.run or "")
    return own / "evaluation" if own.is_dir() else Path("evaluations") / file_name(str(asked.run))


def _results(
    task: Asked, answerer: Answerer, judge: Answerer | None, out: Path, cache: AnswerCache | None, console: Console
) -> TaskResult:
    label = f"{task.name} {task.split}"
    with Asking(console) as asking:
        asking.begin(label)
        progress = partial(asking, label)
        if task.metric.judge_needed:
            if not isinstance(judge, Local):
                raise UserError(f"{task.name} needs the vectors of a contrastive model: --judge RUN, not an address")
            task = task.replace(metric=task.metric.judged_by(judge.engine))
        if isinstance(task, Rated):
            assert judge is not None
            return run_rated(task, answerer, judge, out, cache, progress)
        return run_asked(task, answerer, out, cache, progress)


def _tell(asked: Evaluating, answerer: Answerer, tasks: list[Asked], results: list[TaskResult], out: Path) -> None:
    found = [one for result in results for one in result.evaluations]
    data = ReportData(
        title=answerer.title,
        kind="evaluation",
        evaluations=found,
        records=[
            TaskRecords(task=task.name, split=task.split, records=result.records, items=result.items)
            for task, result in zip(tasks, results)
        ],
        tables=[one for result in results for one in result.tables],
        recipe={"tasks": [task.model_dump(mode="json") for task in tasks]},
        recipe_yaml="---\n".join(task.to_yaml() for task in tasks),
        environment=environment(),
        notes=[f"Every item as it was asked and answered is in {file_name(task.name)}.jsonl." for task in tasks],
    )
    path = write_report(out, data)
    if asked.json:
        tables = [{"title": one.title, "header": one.header, "rows": one.rows} for one in data.tables]
        records = [str(out / f"{file_name(task.name)}.jsonl") for task in tasks]
        print_json({"model": answerer.title, "evaluations": [one.to_json() for one in found], "tables": tables,
                    "records": records, "report": str(path)})  # fmt: skip
        return
    console = console_for(False)
    console.print(_table(answerer.title, found))
    for result in results:
        counts = next(one for one in result.tables if one.title.endswith("could not be scored"))
        lost = [f"{row[0]}: {row[1]}" + (f", {row[2]}" if row[2] else "") for row in counts.rows if row[1] != "0"]
        for line in lost:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report:  {path}\nrecords: {out}", markup=False, highlight=False, soft_wrap=True)
