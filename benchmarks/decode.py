"""Tokens a second of one answer, behind about 64 tokens of text and behind a picture.

Greedy, 128 tokens behind the first. Sides: this package in fp32, bf16, int8 and int4, transformers' `generate` in fp32
and bf16, llama.cpp in f32, bf16, q8_0 and q4_1; behind the picture llama.cpp reads a text as long as that prompt (the
steps are the same work). The memory limit is what reading every weight once takes, at the speed at which this machine
reads a large buffer with the same threads, measured in every round.

    python -m benchmarks.decode [--rounds 5] [--tokens 128] [--only PATTERNS] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import prompts
from benchmarks.engines import LlamaCpp, Ours, Transformers
from benchmarks.turns import Side, Sides, begin, compare, parser, save, spread, table
from benchmarks.weights import Weights

PARAMETERS = 134_515_008
"""Of the language model: all are read for every token, the embedding as the head."""
BITS = {"fp32": 32, "f32": 32, "bf16": 16, "int8": 8.5, "int4": 4.5, "q8_0": 8.5}
OURS = ("fp32", "bf16", "int8", "int4")
PAIRS = (
    *((f"sensorium {ours}", f"transformers {theirs}") for ours in ("bf16", "int8") for theirs in ("bf16", "fp32")),
    ("sensorium fp32", "transformers fp32"),
    ("sensorium fp32", "llama.cpp f32"),
    ("sensorium bf16", "llama.cpp bf16"),
    ("sensorium int8", "llama.cpp q8_0"),
    ("sensorium int4", "llama.cpp q4_1"),
)


class Memory:
    """How fast the machine reads."""

    def __init__(self) -> None:
        import torch

        self.buffer = torch.ones(1 << 28)

    def read(self) -> float:
        """Bytes a second, the best of three."""
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            self.buffer.sum()
            best = max(best, self.buffer.nbytes / (time.perf_counter() - began))
        return best


def bits(name: str, source: Path) -> float:
    """Bits that hold a weight on a side."""
    return BITS.get(name.split()[-1], 8 * source.stat().st_size / PARAMETERS)


def behind_text(sides: Sides, weights: Weights) -> None:
    sides.add("memory", Memory)
    for numbers in OURS:
        sides.add(f"sensorium {numbers}", Ours, weights.text(), numbers)
    for numbers in ("fp32", "bf16"):
        sides.add(f"transformers {numbers}", Transformers, weights.text(), numbers)
    for numbers in ("f32", "bf16", "q8_0", "q4_1"):
        sides.add(f"llama.cpp {numbers}", LlamaCpp, weights.gguf(numbers))


def behind_picture(sides: Sides, weights: Weights) -> None:
    sides.add("memory", Memory)
    for numbers in OURS:
        sides.add(f"sensorium {numbers}", Ours, weights.pictures(), numbers)
    for numbers in ("fp32", "bf16"):
        sides.add(f"transformers {numbers}", Transformers, weights.pictures(), numbers, True)
    for numbers in ("f32", "bf16", "q8_0", "q4_1"):
        sides.add(f"llama.cpp {numbers}", LlamaCpp, weights.gguf(numbers))


def measure(title: str, sides: Sides, weights: Weights, count: int, picture: bool) -> dict[str, Any]:
    reader = Side("ids", Ours, weights.pictures() if picture else weights.text(), "bf16")
    texts: dict[int, dict[str, str]] = {}

    def job(side: Side, number: int) -> dict[str, float]:
        if side.name == "memory":
            return {"read": side.call("read")}
        messages = prompts.seen(number)[0] if picture else prompts.story(number)
        ids = reader.call("ids", messages)
        if picture and side.name.startswith("llama"):
            ids = [id % 40_000 for id in ids]
        answer = side.call("answer", messages, ids, count)
        text = answer.text or reader.call("text", answer.ids)
        texts.setdefault(number, {})[side.name] = text
        return {"rate": answer.rate, "first": answer.first, "prompt": len(ids)}

    measured = sides.rounds(job)
    reader.close()
    memory = [one["read"] for one in measured.pop("memory", [])]
    measured = {name: rows for name, rows in measured.items() if rows}
    rows = {name: [one["rate"] for one in figures] for name, figures in measured.items()}
    table(f"Decode behind {title}", "tokens/s", rows)
    compare(rows, PAIRS)
    same(texts, "sensorium fp32", "transformers fp32")
    if memory:
        print(f"  memory read: {spread([one / 1e9 for one in memory])} GB/s; share of what it allows, by side:")
        for name, rates in rows.items():
            size = PARAMETERS * bits(name, weights.gguf("q4_1")) / 8
            limit = [speed / size for speed in memory]
            share = spread([100 * rate / most for rate, most in zip(rates, limit)], 0)
            print(f"    {name:22} {share} % of {statistics.median(limit):.0f} tokens/s")
    return {"memory": memory, "sides": measured}


def same(texts: dict[int, dict[str, str]], ours: str, theirs: str) -> None:
    """Say whether both did the same work: what they answered."""
    pairs = [(one[ours], one[theirs]) for one in texts.values() if ours in one and theirs in one]
    if pairs:
        equal = sum(mine == other for mine, other in pairs)
        print(f"  {ours} and {theirs} gave the same answer to {equal} of {len(pairs)} prompts")


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--tokens", type=int, default=128, help="behind the first one (default 128)")
    made.add_argument("--prompt", choices=("text", "picture"), help="one of the two prompts alone")
    options = begin(made)
    figures: dict[str, Any] = {}
    with Weights.at(options.weights) as weights:
        for title, picture in (("text", False), ("a picture", True)):
            if options.prompt is not None and (options.prompt == "picture") != picture:
                continue
            with Sides(options) as sides:
                (behind_picture if picture else behind_text)(sides, weights)
                figures[title] = measure(title, sides, weights, options.tokens, picture)
    save(options, figures)


if __name__ == "__main__":
    main()
