"""Sides of a comparison that take turns, and how their figures are said.

Every side is a process of its own, started by this one, with the same number of threads; it is idle while another has
its turn. So memory is one side's alone, and what one does to its threads does not touch another. Importing this module
imports nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

CLOSING_S = 30
"""A server that a side has started gets twenty seconds to end."""


class Missing(Exception):
    """A side that cannot run here, and why."""


class Side:
    """A runner in a process of its own: `call` runs one of its methods there.

    make  called there with `args`; what it returns has the methods, and is closed at the end where it can be. It
          raises Missing or ImportError where the side cannot run
    """

    def __init__(self, name: str, make: Callable[..., Any], *args: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def call(self, method: str, *args: Any) -> Any:
        self.pipe.send((method, args))
        return self._answer()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(CLOSING_S)
        if self.process.is_alive():
            self.process.kill()

    def _answer(self) -> Any:
        try:
            good, value = self.pipe.recv()
        except EOFError:
            self.process.join(10)
            raise Missing(f"its process ended with exit code {self.process.exitcode}") from None
        if not good:
            raise Missing(value)
        return value


def _serve(pipe: Any, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # told to end, this process unwinds: what the runner started would live on
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        runner = make(*args)
        pipe.send((True, None))
    except Exception as error:  # whatever it is, the other sides are measured
        pipe.send((False, str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"))
        return
    with closing(runner) if hasattr(runner, "close") else nullcontext():
        while True:
            try:
                method, given = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((True, getattr(runner, method)(*given)))
            except Exception as error:
                pipe.send((False, str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"))


def wanted(name: str, options: argparse.Namespace) -> bool:
    """Whether --only takes a side."""
    return any(fnmatch(name, pattern) for pattern in options.only.split(","))


class Sides:
    """The sides that could be started, in their order; those that could not are said in a line each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.stack = options, ExitStack()
        self.all: dict[str, Side] = {}

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, name: str, make: Callable[..., Any], *args: Any) -> None:
        if not wanted(name, self.options):
            return
        try:
            side = Side(name, make, *args)
        except Missing as reason:
            print(f"skipped {name}: {reason}", flush=True)
            return
        self.all[name] = side
        self.stack.callback(side.close)

    def rounds(self, job: Callable[[Side, int], dict[str, float]], warm: int = 1) -> dict[str, list[dict[str, float]]]:
        """What `job` measured of each side in every round; rounds before 0 are not counted. Each round begins with
        another side. A side that fails is left out, and said."""
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in self.all}
        names = list(self.all)
        for number in range(-warm, self.options.rounds):
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if name not in measured:
                    continue
                try:
                    figures = job(self.all[name], number)
                except Missing as reason:
                    print(f"left out {name}: {reason}", flush=True)
                    del measured[name]
                    continue
                if number >= 0:
                    measured[name].append(figures)
        return measured


def parser(text: str, rounds: int = 5) -> argparse.ArgumentParser:
    """Options that all have: rounds, threads, sides, a folder for the weights, a file for the figures."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side that count (default {rounds})")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side (default: all)")
    made.add_argument("--only", default="*", metavar="PATTERNS", help="sides, for example 'sensorium*,llama.cpp q8_0'")
    made.add_argument("--weights", type=Path, metavar="FOLDER", help="keep the written weights there")
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return made


def begin(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; processes started from here on compute with as many threads as they say."""
    options = made.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return options


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, in brackets the least and the most."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Of neighbouring turns."""
    return spread([one / other for one, other in zip(ours, theirs)], 2)


def table(title: str, unit: str, rows: dict[str, list[float]], digits: int = 1) -> None:
    print(f"\n{title} ({unit}; median, least and most of {max(map(len, rows.values()), default=0)} rounds)")
    for name, values in rows.items():
        print(f"  {name:24} {spread(values, digits)}", flush=True)


def compare(rows: dict[str, list[float]], pairs: Sequence[tuple[str, str]]) -> None:
    """Ratios of the first to the second side of each pair, where both are there."""
    for ours, theirs in pairs:
        if ours in rows and theirs in rows:
            print(f"  {ours} / {theirs}: {ratio(rows[ours], rows[theirs])}", flush=True)


def save(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, **figures}, indent=1))
