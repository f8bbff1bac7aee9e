"""How fast a recipe's steps are on this machine and how much memory they take: measured once, and kept.

Also a program, `python -m sensorium.compare.calibrate`: it reads an order on standard input, measures in a process of
its own, whose peak memory is then that recipe's, and writes what it found.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import sensorium
from sensorium.config import from_json
from sensorium.errors import UserError
from sensorium.hub.cache import cache_root
from sensorium.recipes.catalog import find
from sensorium.report.environment import environment
from sensorium.train.build import become, build_model, tokenizer_of
from sensorium.train.loader import Batches, Feed
from sensorium.train.optim import Optimizer
from sensorium.train.parallel import ALONE
from sensorium.train.recipe import Recipe
from sensorium.train.task import Task
from sensorium.train.trainer import device_of

WARM, WINDOW, WINDOWS, SECONDS = 3, 2, 2, 1.0
"""Steps that are not counted; steps of a window at least, windows, and seconds of a window at least."""
DIGITS = 2


@dataclass(frozen=True, slots=True)
class Speed:
    """step_seconds: of each stage, the fastest of some windows' means, to two digits. peak_memory: bytes of the whole
    process (on a GPU of its allocations), to 10 MB. machine: where. share: of the time that passed, how much the
    process had of a processor; well below 1, others were using it."""

    step_seconds: tuple[float, ...]
    peak_memory: int
    machine: str
    share: float = 1.0


def machine() -> str:
    """What a speed depends on besides the recipe."""
    facts = environment()
    threads = torch.get_num_threads()
    names = [facts.get("gpu", facts["cpu"]), platform.system(), f"torch {torch.__version__}"]
    return f"{', '.join(names)}, {threads} thread{'s' if threads > 1 else ''}, sensorium {sensorium.__version__}"


def calibrated(
    recipe: Recipe, measuring: Callable[[], None] = lambda: None, *, files: Sequence[str] = (),
    beside: Path | None = None,
) -> Speed:  # fmt: skip
    """The speed of a prepared recipe (`alike.on_data`) on this machine: as kept, or measured now.

    The same command on the same machine so trains for as many steps, whatever else the machine does then. Seeds, the
    number of steps and evaluations do not count.

    measuring  called before it is measured
    files      recipes of the user's own (path/to/file.py:function), whose parts the measuring process must know
    beside     a folder where the speed is kept too: what is found there counts before the cache
    Raises UserError when the measuring process fails.
    """
    plain = recipe.replace(seed=0, evaluations=(), stages=tuple(_plain(stage) for stage in recipe.stages))
    mark = hashlib.sha256(f"{machine()}|{plain.to_json()}".encode()).hexdigest()[:24]
    name = f"{recipe.name}-{mark}.json"
    places = [folder / name for folder in (beside, cache_root() / "calibrations") if folder is not None]
    for path in places:
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
            return _kept(Speed(**{**kept, "step_seconds": tuple(kept["step_seconds"])}), places)
    measuring()
    order = {"recipe": plain.model_dump(mode="json"), "files": list(files), "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-m", "sensorium.compare.calibrate"],
        input=json.dumps(order), capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with code {done.returncode}"]
        raise UserError(f"{recipe.name} cannot be trained: {said[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    speed = Speed(tuple(found["step_seconds"]), found["peak_memory"], machine(), found["share"])
    return _kept(speed, places)


def _kept(speed: Speed, places: Sequence[Path]) -> Speed:
    """The speed, written to every place that does not have it."""
    for path in places:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            draft.write_text(json.dumps(asdict(speed), indent=1), "utf-8")
            os.replace(draft, path)
    return speed


def _plain(stage: Any) -> Any:
    return stage.replace(steps=1000, evaluations=(), data=stage.data.replace(order=0, skip=0))


def measure(recipe: Recipe) -> dict[str, Any]:
    """Seconds of a step of each stage, and peak memory in bytes, of this process.

    Pictures are decoded and encoded as when they are seen for the first time: nothing is taken from the cache.
    """
    place = device_of(None)
    model, tokenizer = build_model(recipe, recipe.wiring(0)), tokenizer_of(recipe)
    bare = recipe.replace(init={})  # speed does not depend on what weights are
    seconds, shares = [], []
    for index, stage in enumerate(recipe.stages):
        model = become(model, bare, recipe.wiring(index))
        task = Task(recipe, stage, model, tokenizer, None, place)
        feed = Feed(Batches(stage, task.renderer, recipe.seed))
        optimizer = Optimizer(task.model, stage, stage.steps or 1000, ALONE)
        try:
            took, share = _step_seconds(task, optimizer, feed, place)
            seconds.append(took)
            shares.append(share)
        finally:
            feed.close()
            optimizer.close()
    return {"step_seconds": seconds, "peak_memory": round(_peak(place), -7), "share": round(min(shares), 2)}


def _step_seconds(task: Task, optimizer: Optimizer, feed: Feed, place: torch.device) -> tuple[float, float]:
    """Of a step, and the share of a processor that this process had meanwhile (on a GPU: 1)."""
    step = 0

    def run(least: int, seconds: float) -> float:
        nonlocal step
        began, taken = time.monotonic(), 0
        while taken < least or time.monotonic() - began < seconds:
            sequences = [batch.sequence for batch in feed.step()]
            task.backward(sequences, task.counts(sequences))
            optimizer.step(step)
            task.after_step()
            step, taken = step + 1, taken + 1
        if place.type == "cuda":
            torch.cuda.synchronize()
        return (time.monotonic() - began) / taken

    run(WARM, 0.0)
    began, used = time.monotonic(), time.process_time()
    seconds = float(f"{min(run(WINDOW, SECONDS) for _ in range(WINDOWS)):.{DIGITS}g}")
    share = (time.process_time() - used) / (time.monotonic() - began)
    return seconds, 1.0 if place.type == "cuda" else min(1.0, share)


def _peak(place: torch.device) -> int:
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    order = json.loads(sys.stdin.read())
    for name in order["files"]:
        find(name)
    torch.set_num_threads(order["threads"])
    recipe = from_json(json.dumps(order["recipe"]), Recipe)
    sys.stdout.write(json.dumps(measure(recipe)) + "\n")


if __name__ == "__main__":
    main()
