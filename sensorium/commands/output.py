"""Where a command writes: JSON on standard output, everything for people beside it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


def console_for(json_wanted: bool) -> Console:
    """For people: standard output, or standard error when standard output is to hold JSON alone."""
    return Console(stderr=json_wanted, highlight=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


class Downloads:
    """The progress display of fetches; a `sensorium.hub.cache.Progress`. Off a terminal, one line for each download."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), DownloadColumn()]
        self.bar = Progress(*columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal)
        self.tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
            if not self.console.is_terminal:
                self.console.print(what, markup=False)
        self.bar.update(self.tasks[what], completed=done, total=total)

    def __enter__(self) -> Downloads:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
