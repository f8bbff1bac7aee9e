"""The one training loop: stages in order, exact resume, and a log of what happened."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sensorium.errors import UserError
from sensorium.hub.cache import cache_root
from sensorium.models.wiring import Wiring
from sensorium.tokenizer import Tokenizer
from sensorium.train import checkpoint as store
from sensorium.train.ask import answers, subject_of
from sensorium.train.build import become, build_model, load_pretrained, tokenizer_of
from sensorium.train.guard import alone
from sensorium.train.guard import signals as _signals
from sensorium.train.loader import Batches, Feed
from sensorium.train.log import MetricsLog, Phases, Progress
from sensorium.train.optim import Optimizer
from sensorium.train.parallel import ALONE, Ranks, check_shares
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.task import Task, check_stages, precision_of, set_precision


class Stopped(Exception):
    """SIGINT or SIGTERM came; everything is saved."""


@dataclass(slots=True)
class StageResult:
    """What a stage did: optimizer steps, samples, tokens and seconds of training, and its tables for the report.

    evaluations  answers to `Stage.evaluations`, each `Evaluation.to_json()`
    """

    name: str
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Run:
    """A run in progress or finished."""

    folder: Path
    recipe: Recipe
    model: Wiring
    tokenizer: Tokenizer
    results: list[StageResult]
    phases: Phases
    step: int = 0
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    """What was measured before training, in words; kept with every checkpoint."""
    ranks: Ranks = ALONE


def open_run(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = True,
    progress: Callable[..., None] | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Start a run in `out`, or take up the one that is there. The model comes in the precision of its first stage.

    Raises UserError for a recipe whose stages cannot be trained, when `out` holds a run of another recipe, or when
    `resume` is off and it is not empty.
    """
    check_stages(recipe)
    check_shares(recipe, ranks)
    found = store.latest(out)
    if found is not None and not resume:
        raise UserError(f"{out} already holds a run: choose another --out, or leave out --fresh to continue it")
    if found is None:
        leftovers = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
        unknown = set(leftovers) - {"metrics.jsonl", "timing.jsonl", "tensorboard", "train.log"}
        if unknown:
            raise UserError(f"{out} holds other files ({', '.join(sorted(unknown)[:4])}): choose an empty --out")
        phases = Phases()
        with phases("load"), ranks.leader_first():
            model = build_model(recipe, recipe.wiring(0))
            load_pretrained(model, recipe, progress)
            if recipe.stages:  # rounded once, here: what a stage does not train is what this run began with
                set_precision(model, recipe.stages[0], precision_of(recipe.stages[0], device_of(None)))
            tokenizer = tokenizer_of(recipe)
        return Run(out, recipe, model, tokenizer, [], phases, ranks=ranks)
    before = store.read_recipe(found)
    if before != recipe:
        raise UserError(
            f"{out} holds a run of recipe {before.name!r} ({before.size}) with other settings "
            f"({_difference(before, recipe)}): choose another --out, or repeat the settings it was started with"
        )
    state = store.read_state(found)
    phases = Phases(state["phases"])
    with phases("load"):
        _, model, tokenizer = store.load_checkpoint(found)
    results = [StageResult(**result) for result in state["results"]]
    return Run(out, recipe, model, tokenizer, results, phases, state["step"], state["finished"],
               state.get("notes", []), ranks)  # fmt: skip


def train(
    run: Run,
    *,
    console: Console | None = None,
    device: str | None = None,
    save_every: float = 120.0,
    save_steps: int | None = None,
    quiet: bool = False,
) -> Run:
    """Train every stage that is not finished. Raises Stopped after saving when a signal asks to stop.

    save_every  seconds between checkpoints inside a stage
    save_steps  optimizer steps between checkpoints inside a stage, whatever they take; None: by the clock alone
    """
    place = device_of(device)
    console = console if run.ranks.leader else Console(quiet=True)
    found = store.latest(run.folder)
    state = store.read_state(found) if found is not None else None
    if run.step != (state["step"] if state is not None else 0):
        raise UserError(f"{run.folder} is at step {run.step} and was saved at another: open the run again to train")
    first = state["stage"] if state is not None else 0
    run.results = [StageResult(**result) for result in state["results"]] if state is not None else []
    every = _Every(save_every, save_steps)
    run.ranks.wait()  # all have read where the run stands
    with alone(run.folder, run.ranks), _log(run) as log, _signals() as asked:
        for index in range(first, len(run.recipe.stages)):
            stage_state = state if state is not None and index == first else None
            loop = _StageLoop(run, index, log, place, console, every, quiet, asked)
            try:
                loop.run(found if stage_state else None, stage_state)
            except Stopped:
                _made_whole(run)
                raise
            _made_whole(run)
    run.finished = True
    return run


def _log(run: Run) -> contextlib.AbstractContextManager[MetricsLog | None]:
    """The run's log, on the leader."""
    return MetricsLog(run.folder) if run.ranks.leader else contextlib.nullcontext()


def _made_whole(run: Run) -> None:
    """After a stage on several ranks each has the whole model again, as it was saved: a sharded one can neither become
    another wiring nor be run by one rank."""
    if run.ranks.mesh is not None:
        _, run.model, _ = store.load_checkpoint(run.folder)


def device_of(name: str | None) -> torch.device:
    """The device of this name; None: a GPU where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


class _Every:
    """When a checkpoint is due: so many seconds or optimizer steps after the last one."""

    def __init__(self, seconds: float, steps: int | None) -> None:
        self.seconds, self.steps = seconds, steps
        self.saved()

    def due(self) -> bool:
        """Asked once after every optimizer step."""
        self._steps += 1
        return time.monotonic() - self._time > self.seconds or (self.steps is not None and self._steps >= self.steps)

    def saved(self) -> None:
        self._time, self._steps = time.monotonic(), 0


class _StageLoop:
    """One stage: its task, its loader, its optimizer."""

    def __init__(
        self, run: Run, index: int, log: MetricsLog | None, device, console, every: _Every, quiet, asked
    ) -> None:
        self.run_, self.index, self.log, self.asked = run, index, log, asked
        self.ranks = run.ranks
        self.stage: Stage = run.recipe.stages[index]
        self.console, self.every, self.quiet = console, every, quiet or not run.ranks.leader
        run.model = become(run.model, run.recipe, run.recipe.wiring(index))
        self.task = Task(run.recipe, self.stage, run.model, run.tokenizer, cache_root() / "features", device, run.ranks)

    def run(self, found: Path | None, state: dict[str, Any] | None) -> None:
        """Train from where `state` (of checkpoint `found`) stands, or from the stage's beginning."""
        result = StageResult(self.stage.name, parts=self.task.trained_parts())
        start = position = 0
        if state is not None:
            start, position = state["stage_step"], state["position"]
            result = self.run_.results.pop() if start else result
        seed = self.run_.recipe.seed + self.index
        batches = Batches(self.stage, self.task.renderer, seed, position, result.bad, self.ranks)
        self.steps = batches.steps()
        if start >= self.steps:
            self.run_.results.append(result)
            return
        if self.log is not None:
            self.log.resume(start, self.index)
        if start == 0:
            self._warm()
        self.task.shard()
        optimizer = Optimizer(self.task.model, self.stage, self.steps, self.ranks)
        if start and found is not None:
            optimizer.load(store.read_optim(found))
        feed = Feed(batches)
        try:
            self._loop(optimizer, feed, result, start, position)
        finally:
            feed.close()
            optimizer.close()

    def _warm(self) -> None:
        """The start of a connector, where the stage asks for one."""
        start = self.stage.start
        if start is None:
            return
        assert self.stage.data is not None
        with self.run_.phases(f"{self.stage.name} start"):
            if self.ranks.leader:
                start.fit(self.task.model, self.run_.tokenizer, self.task.encoders[start.kind], self.stage.data)
            self.ranks.copy_leaders(self.task.model.connectors[start.kind])
        if self.console is not None:
            self.console.print(f"{self.stage.name}: connectors.{start.kind} {start.done}")

    def _loop(self, optimizer: Optimizer, feed: Feed, result: StageResult, start: int, position: int) -> None:
        clock = self.run_.phases(self.stage.name)
        progress = Progress(self.stage.name, self.steps, start=start, console=self.console, quiet=self.quiet)
        with clock, progress as bar:
            for step in range(start, self.steps):
                began = time.monotonic()
                drawn = (self.run_.recipe.seed, self.index, step, *([self.ranks.rank] if self.ranks.rank else []))
                torch.manual_seed(hash(drawn) % 2**63)
                metrics, position = self._step(optimizer, feed, step, result, position)
                seconds = time.monotonic() - began
                result.steps, result.seconds = step + 1, result.seconds + seconds
                self.run_.step += 1
                if self.log is not None:
                    self.log.write(self.stage.name, self.index, step + 1, metrics, seconds=seconds)
                bar.update(step + 1, metrics["loss"], metrics["samples"], metrics["tokens"])
                last = step + 1 == self.steps
                if last:
                    optimizer.settle()
                # asked once: a signal during the save waits for a step. A signal to one rank stops all, at this step
                due, stop = self.ranks.any(self.every.due(), self.asked())
                if last or stop or due:
                    self._save(optimizer, result, step + 1, position)
                    self.every.saved()
                if stop and not last:
                    raise Stopped(
                        f"stopped at step {step + 1} of stage {self.stage.name!r}, saved in {self.run_.folder}"
                    )

    def _step(self, optimizer: Optimizer, feed: Feed, step: int, result: StageResult, position: int):
        batches = feed.step()
        sequences = [batch.sequence for batch in batches if batch.mine]
        counts = self.ranks.sums(self.task.counts(sequences))
        report = self.ranks.merged(self.task.backward(sequences, counts))
        taken = {**optimizer.step(step), **self.task.after_step()}
        tokens, samples = sum(len(batch.sequence) for batch in batches), sum(batch.samples for batch in batches)
        result.samples, result.tokens = result.samples + samples, result.tokens + tokens
        result.bad = batches[-1].bad
        means = {name: total / max(count, 1e-9) for name, (total, count) in report.items()}
        objectives = self.stage.objectives
        loss = math.fsum(one.weight * means[one.name] for one in objectives)
        if len(means) == 1:
            means = {}  # the loss says it
        return {
            "loss": loss,
            **means,
            "tokens": tokens,
            "samples": samples,
            "targets": counts[0],
            **taken,
        }, batches[-1].position

    def _ask(self) -> list[dict[str, Any]]:
        """What the stage's own evaluations find, asked before its last checkpoint, which keeps them."""
        run = self.run_
        model: Wiring | None = run.model
        if self.ranks.mesh is not None:  # the leader asks, of a whole model; the others wait for what it saves
            model = store.whole_model(run.recipe, self.task.model, self._adapters(), self.ranks)
        if model is None:
            return []
        subject = subject_of(run.recipe, model.to(self.task.device), run.tokenizer, cache_root() / "features")
        found = answers(self.stage.evaluations, subject)
        return [one.to_json() for result in found for one in result.evaluations]

    def _adapters(self) -> list[str]:
        """Names of the stages so far that gave the model adapters."""
        return [stage.name for stage in self.run_.recipe.stages[: self.index + 1] if stage.adapters]

    def _save(self, optimizer: Optimizer, result: StageResult, step: int, position: int) -> None:
        last_of_all = self.index + 1 == len(self.run_.recipe.stages) and step == self.steps
        done = step == self.steps
        run = self.run_
        if done and self.stage.evaluations:
            result.evaluations = self._ask()
        results = [*run.results, result]
        state = {
            "stage": self.index + 1 if done and not last_of_all else self.index,
            "wiring": self.index,
            "stage_step": 0 if done and not last_of_all else step,
            "position": 0 if done else position,
            "step": run.step,
            "finished": last_of_all,
            "results": [entry.to_json() for entry in results],
            "phases": run.phases.seconds,
            "notes": run.notes,
            "adapters": self._adapters(),
        }
        unchanged = {part for part, (trained, _) in result.parts.items() if not trained}
        if self.log is not None:
            self.log.sync()
        store.save_checkpoint(
            run.folder,
            run.step,
            run.recipe,
            self.task.model,
            run.tokenizer,
            state,
            None if done else optimizer.state(),
            unchanged if run.step > 1 else set(),
            ranks=self.ranks,
        )
        if done:
            run.results.append(result)


def _difference(before: Recipe, now: Recipe) -> str:
    """The first settings in which two recipes differ."""
    old, new = before.to_yaml().splitlines(), now.to_yaml().splitlines()
    for left, right in zip(old, new):
        if left != right:
            return f"{left.strip()!r} there, {right.strip()!r} now"
    return "one has more stages or fields"
