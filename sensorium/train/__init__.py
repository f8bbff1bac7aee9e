"""Training: stages as data, one loop, exact resume, reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.train.recipe import Recipe


def run(recipe: Recipe, out: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a recipe into a run folder, evaluate it, and write its report; returns what report.json holds.

    An interrupted run of the same recipe is taken up where it stopped. Raises UserError when `out` holds another.
    """
    from sensorium.hub.cache import cache_root
    from sensorium.train.finish import engine_of, evaluate, report
    from sensorium.train.trainer import open_run, train

    started = open_run(recipe, Path(out), resume=resume)
    train(started)
    engine = engine_of(recipe, started.model, started.tokenizer, cache_root() / "features")
    return report(started, evaluate(recipe, engine), [], [])
