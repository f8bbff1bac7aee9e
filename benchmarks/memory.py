"""What a side holds in memory beyond its bare runtime, while it serves a language model with a vision tower.

The bare runtime is Python with torch imported (llama.cpp: Python with its library). Measured in a process of each side
and round: the most that opening the model ever held, what is held after answers about pictures, and what is held at
rest, when what was kept of them is forgotten and the C library was told to give back what is free (`sensorium serve`
does so by itself); all over the size of the weights in the side's numbers. llama.cpp holds the language model alone.

    python -m benchmarks.memory [--rounds 3] [--answers 4] [--only PATTERNS] [--json FILE]
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

from benchmarks import prompts
from benchmarks.engines import LlamaCpp, Ours, Transformers
from benchmarks.turns import Missing, Side, begin, parser, save, spread, wanted
from benchmarks.weights import Weights


def status(name: str) -> int:
    """Bytes: VmRSS is what is held now, VmHWM the most that ever was."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Held:
    """A side whose process is measured."""

    def __init__(self, kind: type, *args: Any) -> None:
        if kind is LlamaCpp:
            import llama_cpp  # noqa: F401
        else:
            import torch  # noqa: F401
        with open("/proc/self/clear_refs", "w") as forget:  # the most that ever was is what is held now
            forget.write("5")
        self.bare = status("VmRSS")
        self.runner = kind(*args)
        self.peak = status("VmHWM") - self.bare

    def weights(self) -> int:
        """Bytes of all tensors, each once."""
        network = self.runner.model.network if isinstance(self.runner, Ours) else self.runner.model
        if isinstance(self.runner, LlamaCpp):
            return self.runner.api.llama_model_size(network.model)
        tensors = [*network.parameters(), *network.buffers()]
        return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

    def held(self, answers: int, ids: list[int]) -> dict[str, float]:
        for number in range(answers):
            self.runner.answer(prompts.seen(number)[0], ids, 32)
        held = status("VmRSS") - self.bare
        if isinstance(self.runner, Ours):
            self.runner.model.engine.rest()
        gc.collect()
        # what sensorium.infer.room.give_back does, which would bring torch into llama.cpp's process
        ctypes.CDLL(None).malloc_trim(0)
        return {"peak": self.peak, "held": held, "rest": status("VmRSS") - self.bare, "bare": self.bare,
                "weights": self.weights()}  # fmt: skip


def kinds(weights: Weights) -> dict[str, tuple[Any, ...]]:
    """By side what is opened."""

    def stored(numbers: str) -> Path:
        return weights.pictures("fp32" if numbers == "fp32" else "bf16")

    ours = {f"sensorium {numbers}": (Ours, stored(numbers), numbers) for numbers in ("fp32", "bf16", "int8", "int4")}
    theirs = {f"transformers {n}": (Transformers, stored(n), n, True) for n in ("fp32", "bf16")}
    cpp = {f"llama.cpp {n}": (LlamaCpp, weights.gguf(n)) for n in ("bf16", "q8_0", "q4_1")}
    return {**ours, **theirs, **cpp}


def main() -> None:
    made = parser(__doc__ or "", rounds=3)
    made.add_argument("--answers", type=int, default=4, help="of 32 tokens about a picture each (default 4)")
    options = begin(made)
    figures: dict[str, list[dict[str, float]]] = {}
    with Weights.at(options.weights) as weights:
        reader = Side("ids", Ours, weights.pictures(), "bf16")
        ids = [id % 40_000 for id in reader.call("ids", prompts.seen(0)[0])]
        reader.close()
        for _ in range(options.rounds):
            for name, args in kinds(weights).items():
                if not wanted(name, options) or (name in figures and not figures[name]):
                    continue
                rows = figures.setdefault(name, [])
                try:
                    side = Side(name, Held, *args)
                    rows.append(side.call("held", options.answers, ids))
                    side.close()
                except Missing as reason:
                    print(f"skipped {name}: {reason}", flush=True)
    print(f"\nMemory beyond the bare runtime, over the weights (median, least and most of {options.rounds} rounds)")
    for name, rows in figures.items():
        if rows:
            held, rest, peak = ([one[key] / one["weights"] for one in rows] for key in ("held", "rest", "peak"))
            size, bare = rows[0]["weights"] / 1e6, rows[0]["bare"] / 1e6
            print(f"  {name:20} weights {size:4.0f} MB, serving {spread(held, 2)}, at rest {spread(rest, 2)}, "
                  f"most while opening {spread(peak, 2)}; runtime {bare:.0f} MB")  # fmt: skip
    save(options, figures)


if __name__ == "__main__":
    main()
