"""Files of benchmarks as they are published, and what is scored on them."""

import json
from pathlib import Path
from typing import Any

from written_rows import picture

from sensorium.evaluate.item import Items, TaskSource
from sensorium.evaluate.metrics import metric_of

__all__ = ["json_file", "json_lines", "pictures", "reasons", "scores"]


def json_file(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def json_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pictures(folder: Path, *names: str, size: tuple[int, int] = (6, 4)) -> None:
    """Tiny pictures. The content decides the format: a PNG is called .jpg as well."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path.with_name(f"{path.name}.png"), size=size).rename(path)


def scores(source: TaskSource, said: list[str] | dict[str, str], metric: str | None = None) -> dict[str, float]:
    """What answers score by the metric of the benchmark: in the order of the items, or by their ids."""
    items = source.load().items
    measure = metric_of(metric or source.metric_for(items))
    answers = [said[item.id] for item in items] if isinstance(said, dict) else said
    assert len(answers) == len(items)
    parsed = [measure.parse(answer, item) for answer, item in zip(answers, items)]
    found = measure.scores(measure.statistics(items, parsed).sum(0))
    return {name.name: float(score) for name, score in zip(measure.names, found)}


def reasons(items: Items) -> list[str]:
    """`place: reason` of what cannot be asked, the place without its folder."""
    return [f"{Path(bad.where.split()[0]).name} {' '.join(bad.where.split()[1:])}: {bad.reason}" for bad in items.bad]
