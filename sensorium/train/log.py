"""What a run says while it goes: the metrics log, the progress display and the clock of its phases.

`metrics.jsonl` holds what a resumed run repeats to the last bit, `timing.jsonl` what it cannot: seconds and dates. Both
have one line per optimizer step, in the order of (stage_index, step). Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from sensorium.errors import UserError
from sensorium.report.words import compact, duration

Position = tuple[int, int]  # (stage_index, step), the order of the lines
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Append-only log of a run: `metrics.jsonl`, `timing.jsonl` and TensorBoard events, one line per optimizer step.

    A new run in a used folder, or a run that starts again from a checkpoint, calls `resume` first; a line that does not
    come after the last one is refused. Numbers that are not finite are written as the strings "NaN", "Infinity" and
    "-Infinity", so that every line is JSON for every reader; `read_log` turns them back.
    """

    def __init__(self, folder: Path | str, *, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._metrics = _Lines(self.folder / "metrics.jsonl")
        self._timing = _Lines(self.folder / "timing.jsonl")
        self._events = _Events(self.folder / "tensorboard") if tensorboard else None

    def write(
        self, stage: str, stage_index: int, step: int, metrics: Mapping[str, Any], *, seconds: float, **timing: float
    ) -> None:
        """Log one optimizer step.

        step     1 for the first step of a stage, or counted over the whole run; it only has to grow within a stage
        metrics  what a resumed run repeats: tokens and samples of this step, loss, lr (a number or {glob: number}), ...
        seconds  the duration of this step; further `timing` is kept beside it, never in metrics.jsonl
        """
        place = {"stage": stage, "stage_index": stage_index, "step": step}
        for name, given in (("metrics", metrics), ("timing", timing)):
            if taken := set(place) & set(given):
                raise ValueError(f"{name} may not contain {sorted(taken)}: the log writes them itself")
        values = _plain(metrics)
        self._metrics.append((stage_index, step), place | values)
        self._timing.append((stage_index, step), place | _plain({"time": time.time(), "seconds": seconds, **timing}))
        if self._events is not None:
            self._events.write(stage, values, self._metrics.count)

    def resume(self, step: int, stage_index: int) -> int:
        """Forget every line after the checkpoint at `step` of stage `stage_index`; (0, 0) forgets all.

        Returns how many lines are left: the optimizer steps that the log holds.
        """
        self._timing.keep((stage_index, step))
        kept = self._metrics.keep((stage_index, step))
        if self._events is not None:
            self._events.purge(kept)
        return kept

    def sync(self) -> None:
        """Force all lines to disk. Before a checkpoint is written: then no checkpoint can be ahead of its log."""
        self._metrics.sync()
        self._timing.sync()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or timing.jsonl, also while a run is writing; [] when there is no such file."""
    path = Path(path)
    if not path.exists():
        return []
    return [_restore(record) for record, _ in _scan(path)]


def _scan(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Records with the byte offset of their end. A last line that a kill left half-written is not one."""
    lines = path.read_bytes().splitlines(keepends=True)
    end = 0
    for number, line in enumerate(lines, 1):
        end += len(line)
        try:
            record = json.loads(line)
            if not line.endswith(b"\n"):
                return
            _position(record)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{path}, line {number} is not a line of this log ({error}): restore the file, or move it away and "
                "train again from the start"
            ) from error
        yield record, end


def _position(record: dict[str, Any]) -> Position:
    return int(record["stage_index"]), int(record["step"])


class _Lines:
    """One JSON-lines file that only grows, except in `keep`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: Position | None = None
        self.count = 0
        self._file: IO[bytes] | None = None
        self.keep(None)

    def keep(self, until: Position | None) -> int:
        """Cut the file after the last line at or before `until` (None: after the last whole line)."""
        self.close()
        self.last, self.count, size = None, 0, 0
        if self.path.exists():
            for record, end in _scan(self.path):
                position = _position(record)
                if until is not None and position > until:
                    break
                self.last, self.count, size = position, self.count + 1, end
            if size != self.path.stat().st_size:
                os.truncate(self.path, size)
        return self.count

    def append(self, position: Position, record: dict[str, Any]) -> None:
        if self.last is not None and position <= self.last:
            raise ValueError(
                f"{self.path.name}: (stage_index, step) {position} does not come after {self.last}; "
                "call resume() before a run goes back to a checkpoint or starts anew in a used folder"
            )
        if self._file is None:
            self._file = self.path.open("ab")
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        self._file.write(line + b"\n")
        self._file.flush()
        self.last, self.count = position, self.count + 1

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _plain(value: Any) -> Any:
    """Plain JSON of `value`: zero-dimensional tensors and arrays become numbers, by their `item()`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _restore(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _restore(inner, name) for name, inner in value.items()}
    if isinstance(value, str) and key != "stage":
        return _NOT_FINITE.get(value, value)
    return value


class _Events:
    """TensorBoard events; the horizontal axis counts the optimizer steps of all stages, tags begin with the stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._purge: int | None = None
        self._writer: Any = None

    def write(self, stage: str, values: Mapping[str, Any], step: int) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # costs a fifth of a second: only a run that logs pays it

            suffix = f".from{step}"  # event files are named by the second: a quick restart would overwrite the first
            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge, filename_suffix=suffix)
        for name, value in values.items():
            inner = value.items() if isinstance(value, Mapping) else [(None, value)]
            for key, number in inner:
                if isinstance(number, int | float):
                    tag = f"{stage}/{name}" if key is None else f"{stage}/{name}/{key}"
                    self._writer.add_scalar(tag, number, step)

    def purge(self, kept: int) -> None:
        """Hide what was logged after step `kept`; without a step left, start over."""
        self.close()
        if kept == 0 and self.folder.exists():
            shutil.rmtree(self.folder)
        self._purge = kept + 1 if kept else None

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Progress:
    """Progress of one stage: bar, step, smoothed loss, samples/s, tokens/s and time left.

    On a terminal a bar; elsewhere, or when `quiet`, a line at the start, every `interval` seconds and at the end. All
    on `console` (standard error by default), so that a command's own output, `--json` included, stays clean.

        with Progress("align", total=300) as progress:
            progress.update(step, loss, samples, tokens)

    start   steps done before, when a stage is resumed
    window  seconds over which speed is averaged
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int = 0,
        console: Console | None = None,
        quiet: bool = False,
        interval: float = 10.0,
        window: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.step = stage, total, start
        self._console = Console(stderr=True) if console is None else console
        self._plain = quiet or not self._console.is_terminal
        self._interval, self._window, self._clock = interval, window, clock
        self._loss, self._loss_weight, self._last_loss = 0.0, 0.0, math.nan
        self._marks: deque[tuple[float, int, int, int]] = deque()  # (time, step, samples, tokens), all cumulative
        self._bar: Bar | None = None
        self._began = self._printed = 0.0

    def __enter__(self) -> Self:
        self._began = self._printed = self._clock()
        self._marks.append((self._began, self.step, 0, 0))
        if self._plain:
            self._print(f"{self.stage}: step {self.step}/{self.total}")
            return self
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn()]
        status = TextColumn("{task.fields[status]}", markup=False)
        bar = Bar(*columns, status, console=self._console, refresh_per_second=4)
        self._task = bar.add_task(self.stage, total=self.total, completed=self.step, status="starting")
        bar.start()
        self._bar = bar
        return self

    def update(self, step: int, loss: float, samples: int, tokens: int) -> None:
        """After a step: its number, its loss, and how many samples and tokens it had."""
        now, last = self._clock(), self._marks[-1]
        self.step = step
        self._marks.append((now, step, last[2] + samples, last[3] + tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] > self._window:
            self._marks.popleft()
        self._last_loss = float(loss)
        if math.isfinite(self._last_loss):  # one bad step must not hide all later ones
            self._loss = 0.95 * self._loss + 0.05 * self._last_loss
            self._loss_weight = 0.95 * self._loss_weight + 0.05
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self.status)
        elif now - self._printed >= self._interval:
            self._printed = now
            self._print(f"{self.stage}: step {step}/{self.total}  {self.status}")

    @property
    def loss(self) -> float:
        """Exponential mean over about 20 steps, without the bias of its start; NaN after a step that was not finite."""
        return self._loss / self._loss_weight if math.isfinite(self._last_loss) else self._last_loss

    @property
    def status(self) -> str:
        """The part of the display after the step count."""
        first, last = self._marks[0], self._marks[-1]
        elapsed, steps = last[0] - first[0], last[1] - first[1]
        if elapsed <= 0 or steps <= 0:
            return "starting"
        left = duration((self.total - self.step) * elapsed / steps)
        speed = (
            f"{compact((last[2] - first[2]) / elapsed)} samples/s  {compact((last[3] - first[3]) / elapsed)} tokens/s"
        )
        return f"loss {self.loss:.4g}  {speed}  {left} left"

    def note(self, text: str) -> None:
        """A line of its own above the bar, for example that a checkpoint was saved."""
        self._print(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        state = "done" if kind is None and self.step >= self.total else f"stopped at step {self.step}/{self.total}"
        loss = f", loss {self.loss:.4g}" if len(self._marks) > 1 else ""
        self._print(f"{self.stage}: {state} after {duration(self._clock() - self._began)}{loss}")

    def _print(self, text: str) -> None:
        # soft_wrap: a log line stays one line, whatever width a console that is no terminal assumes.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


class Phases:
    """Seconds spent in the named parts of a run; a phase entered again adds to what it had.

    with phases("fetch"): ...
    phases.seconds == {"fetch": 12.3}

    `before` carries the seconds of a run that is being resumed. Phases do not nest: their sum is the whole.
    """

    def __init__(self, before: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = dict(before or {})
        self._clock = clock
        self._open: str | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._open is not None:
            raise ValueError(f"phase {name!r} begins within {self._open!r}: its seconds would count twice")
        self._open, began = name, self._clock()
        try:
            yield
        finally:
            self._open = None
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - began
