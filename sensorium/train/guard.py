"""What keeps a run whole while it trains: one run in a folder, and signals that wait for the end of a step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sensorium.errors import UserError
from sensorium.train.parallel import Ranks


@contextlib.contextmanager
def alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """One run at a time trains in a folder; the system lets the lock go when a process is killed."""
    if not ranks.leader:  # the leader holds it for all
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is training in {folder}: wait for it, or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask to stop after the current step; a second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
