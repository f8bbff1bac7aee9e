"""Prompt tokens a second, from the prompt to the first token of its answer.

Prompts of 256, 512 and 1,024 tokens of text, a new one in every turn. Sides: this package in fp32, bf16 and int8,
transformers in fp32 and bf16, llama.cpp in f32, bf16 and q8_0.

    python -m benchmarks.prefill [--rounds 7] [--lengths 256 512 1024] [--only PATTERNS] [--json FILE]
"""

from __future__ import annotations

from typing import Any

from benchmarks import prompts
from benchmarks.engines import LlamaCpp, Ours, Transformers
from benchmarks.turns import Missing, Side, Sides, begin, compare, parser, save, table
from benchmarks.weights import Weights

PAIRS = (
    ("sensorium fp32", "transformers fp32"),
    ("sensorium fp32", "llama.cpp f32"),
    *(
        ("sensorium bf16", name)
        for name in ("transformers fp32", "transformers bf16", "llama.cpp f32", "llama.cpp bf16")
    ),
    ("sensorium int8", "llama.cpp q8_0"),
)


def measure(sides: Sides, reader: Side, length: int) -> dict[str, Any]:
    frame = len(reader.call("ids", prompts.words(0, 1))) - 1

    def job(side: Side, number: int) -> dict[str, float]:
        messages = prompts.words(number, length - frame)
        ids = reader.call("ids", messages)
        if len(ids) != length:
            raise Missing(f"the prompt has {len(ids)} tokens, {length} were planned")
        return {"rate": length / side.call("answer", messages, ids, 0).first}

    measured = sides.rounds(job)
    rows = {name: [one["rate"] for one in figures] for name, figures in measured.items() if figures}
    table(f"Prefill of {length} tokens", "tokens/s", rows, 0)
    compare(rows, PAIRS)
    return rows


def main() -> None:
    made = parser(__doc__ or "", rounds=7)
    made.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024], help="of the prompts, in tokens")
    options = begin(made)
    with Weights.at(options.weights) as weights, Sides(options) as sides:
        for numbers in ("fp32", "bf16", "int8"):
            sides.add(f"sensorium {numbers}", Ours, weights.text(), numbers)
        for numbers in ("fp32", "bf16"):
            sides.add(f"transformers {numbers}", Transformers, weights.text(), numbers)
        for numbers in ("f32", "bf16", "q8_0"):
            sides.add(f"llama.cpp {numbers}", LlamaCpp, weights.gguf(numbers))
        reader = Side("ids", Ours, weights.text(), "bf16")
        figures = {str(length): measure(sides, reader, length) for length in options.lengths}
        reader.close()
    save(options, figures)


if __name__ == "__main__":
    main()
