"""From what a user names, a file or a benchmark, to a task of questions."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sensorium.config import explain, lookup
from sensorium.errors import UserError, nearest
from sensorium.evaluate.asked import Asked
from sensorium.evaluate.item import TaskSource
from sensorium.evaluate.judging import LLaVABench, Rated
from sensorium.evaluate.metrics import Metric, metric_of
from sensorium.evaluate.needle import NEEDLES
from sensorium.evaluate.tasks.catalog import ALSO, PLACES, SOURCES, source_class, source_of
from sensorium.evaluate.tasks.jsonl import Jsonl

OWN: dict[str, type[TaskSource]] = {**NEEDLES, "llava_bench": LLaVABench}
"""Sources beside the catalog's."""


def open_task(given: str, metric: str | None = None, data: str | None = None) -> Asked:
    """A task: FILE.toml or FILE.json of an `Asked` value, FILE.jsonl of a user's own questions, or a benchmark's name.

    metric  by name, in place of the task's own
    data    the file or folder that a benchmark's questions are read from
    Raises UserError that names what is wrong, and the nearest name there is.
    """
    path = Path(given)
    if path.suffix in (".toml", ".json") and path.is_file() and (value := _value(path)) is not None:
        if data is not None:
            raise UserError(f"{given} says itself where its questions are: leave out --data")
        task = task_of(value, path)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        if not path.is_file():
            raise UserError(f"there is no file {given}")
        task = _named(path.stem, Jsonl(path=given, pictures=data), metric)
    elif path.suffix == ".toml" or os.sep in given:
        raise UserError(f"there is no file {given}: a task is FILE.toml, FILE.jsonl or a name ({_names()})")
    else:
        task = _named(given, named_source(given, data), metric)
    return task if metric is None else task.replace(metric=metric_of(metric))


def reads_data(given: str) -> bool:
    """Whether a task is a benchmark's name whose questions are read from a file or folder."""
    if Path(given).suffix or os.sep in given:
        return False
    fields = (OWN.get(given) or source_class(given)).model_fields
    return "path" in fields or "root" in fields


def named_source(name: str, place: str | None = None, **settings: Any) -> TaskSource:
    """The questions of a benchmark, or of a built-in task. Raises UserError."""
    if name not in OWN:
        return source_of(name, place, **settings)
    if place is not None:
        if "path" not in OWN[name].model_fields:
            raise UserError(f"the task {name} is built in: it reads nothing, {place} was given")
        settings = {"path": place, **settings}
    try:
        return OWN[name](**settings)
    except ValidationError as error:
        raise UserError(f"the task {name}: {explain(error)}") from error


def task_of(value: Mapping[str, Any], path: Path) -> Asked:
    """The task that a file describes: fields of `Asked` (or of `Rated`, with `judge_sees` or the like), where

    source  a name, or a table of {task = its name, and its settings}
    metric  a name, or a table of {name = its name, and its settings}
    Relative paths start at the file's folder.
    """
    fields = dict(value)
    given = fields.pop("task", None)
    cls = {None: Asked, "asked": Asked, "rated": Rated}.get(given)
    if cls is None:
        raise UserError(f"{path}: a task is 'asked' or 'rated', not {given!r}")
    for name in fields:
        if name not in cls.model_fields and name != "type":
            raise UserError(f"{path}: a task has no {name!r}: {nearest(name, cls.model_fields)}")
    if "source" not in fields:
        raise UserError(f"{path} has no `source`: give the name of a benchmark, or a table with task = NAME")
    for name in ("source", "shot_source"):
        if name in fields:
            fields[name] = _source(fields[name], path)
    source = fields["source"]
    if "metric" in fields:
        fields["metric"] = _metric(fields["metric"], path)
    elif cls is Asked:
        fields["metric"] = metric_of(_usual_metric(source))
    try:
        return cls.model_validate({"name": path.stem, "split": _split(source), **fields})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from error


def _value(path: Path) -> dict[str, Any] | None:
    """The object in a file; None for JSON of another kind, which are rows."""
    try:
        text = path.read_text("utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        if path.suffix == ".json":
            return None  # rows, one a line
        raise UserError(f"{path} cannot be read: {error}") from error
    return value if (isinstance(value, dict) and "source" in value) or path.suffix == ".toml" else None


def _named(name: str, source: TaskSource, metric: str | None) -> Asked:
    if isinstance(source, LLaVABench) and metric is None:
        return Rated(name=name, split=_split(source), source=source)
    return Asked(name=name, split=_split(source), source=source, metric=metric_of(metric or _usual_metric(source)))


def _usual_metric(source: TaskSource) -> str:
    """What the source says fits it, or its items."""
    return source.metric_for(source.loaded.items)


def _split(source: TaskSource) -> str:
    return str(getattr(source, "split", "") or "test")


def _source(given: Any, path: Path) -> TaskSource:
    if isinstance(given, str):
        given = {"task": given}
    if not isinstance(given, dict) or not ("task" in given or "type" in given):
        raise UserError(f"{path}: a source is the name of a task, or a table with task = NAME")
    settings = {
        name: os.path.join(path.parent, value) if name in PLACES and isinstance(value, str) else value
        for name, value in given.items()
    }
    if "task" in settings:
        return named_source(str(settings.pop("task")), **settings)
    return _tagged(settings, TaskSource, path)


def _metric(given: Any, path: Path) -> Metric:
    if isinstance(given, str):
        return metric_of(given)
    if not isinstance(given, dict) or not ("name" in given or "type" in given):
        raise UserError(f"{path}: a metric is a name, or a table with name = NAME and its settings")
    if "type" in given:
        return _tagged(given, Metric, path)
    settings = dict(given)
    plain = metric_of(str(settings.pop("name")))
    try:
        return type(plain)(**settings)
    except ValidationError as error:
        raise UserError(f"{path}: the metric: {explain(error)}") from error


def _tagged(given: dict[str, Any], expected: Any, path: Path) -> Any:
    try:
        lookup(given["type"])
        return expected.model_validate(given)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path}: {explain(error)}") from error


def _names() -> str:
    return ", ".join([*SOURCES, *ALSO, *OWN])
