"""Training: stages as data, one loop, exact resume, reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.train.recipe import Recipe


def run(recipe: Recipe, out: str | Path, *, resume: bool = True) -> dict[str, Any]:
    """Train a recipe into a run folder, evaluate it, and write its report; returns what report.json holds.

    An interrupted run of the same recipe is taken up where it stopped. Raises UserError when `out` holds another.
    Under torchrun all processes train, and the first does the rest: the others return {} when training ends.
    """
    from sensorium.train.finish import complete
    from sensorium.train.parallel import joined
    from sensorium.train.trainer import open_run

    with joined() as ranks:
        return complete(open_run(recipe, Path(out), resume=resume, ranks=ranks))
