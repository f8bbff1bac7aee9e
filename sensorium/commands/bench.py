"""`sensorium bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sensorium
from sensorium.errors import UserError, nearest

BENCHMARKS = ("decode", "prefill", "serving", "memory", "startup", "loading", "quantize", "stages", "claims")


def run_bench(name: str, options: list[str]) -> int:
    """Run a benchmark of the source tree in a process of its own, and return its exit code."""
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    root = Path(sensorium.__file__).parents[1]
    place = root / "benchmarks" / name
    if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
        raise UserError(f"benchmarks stand beside the package in its source tree, and {root} holds none: clone the "
                        "repository and install it with `pip install -e .`")  # fmt: skip
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode
