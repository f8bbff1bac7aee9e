"""Seconds from a command to its first sign of life: help, imports, and from nothing to the first token.

Every figure is the wall time of a new process, the sides in turns; files are in the page cache for all.

    python -m benchmarks.startup [--rounds 5] [--only PATTERNS] [--json FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.turns import begin, compare, parser, save, table, wanted
from benchmarks.weights import Weights

ASK = "Name a colour."
OURS = """
import sensorium
model = sensorium.load({folder!r}, {numbers!r})
next(iter(model.chat([{{"role": "user", "content": {ask!r}}}], stream=True, max_tokens=2)))
"""
THEIRS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
words = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=getattr(torch, {numbers!r}))
given = words.apply_chat_template([{{"role": "user", "content": {ask!r}}}], add_generation_prompt=True,
                                  return_dict=True, return_tensors="pt")
model.generate(**given, max_new_tokens=1, do_sample=False)
"""
CPP = """
from llama_cpp import Llama
model = Llama({path!r}, n_ctx=2048, n_threads={threads}, n_threads_batch={threads}, verbose=False)
model.create_chat_completion([{{"role": "user", "content": {ask!r}}}], max_tokens=1, temperature=0)
"""
PAIRS = (
    ("transformers --help", "sensorium --help"),
    ("transformers bf16, first token", "sensorium bf16, first token"),
    ("llama.cpp bf16, first token", "sensorium bf16, first token"),
    ("transformers fp32, first token", "sensorium fp32, first token"),
)


def commands(weights: Weights, threads: int) -> dict[str, list[str]]:
    """By what is measured the command."""
    python = sys.executable
    made = {
        "python": [python, "-c", "pass"],
        "sensorium --help": [python, "-m", "sensorium", "--help"],
        "transformers --help": [python, "-m", "transformers.cli.transformers", "--help"],
        "import sensorium": [python, "-c", "import sensorium"],
        "import torch": [python, "-c", "import torch"],
        "import sensorium.api": [python, "-c", "import sensorium.api"],
        "import transformers' model": [python, "-c", "from transformers import LlamaForCausalLM"],
    }
    for numbers, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
        folder = str(weights.text(numbers))
        first = f"{numbers}, first token"
        made[f"sensorium {first}"] = [python, "-c", OURS.format(folder=folder, numbers=numbers, ask=ASK)]
        made[f"transformers {first}"] = [python, "-c", THEIRS.format(folder=folder, numbers=dtype, ask=ASK)]
    for numbers in ("bf16", "q8_0"):
        code = CPP.format(path=str(weights.gguf(numbers)), threads=threads, ask=ASK)
        made[f"llama.cpp {numbers}, first token"] = [python, "-c", code]
    return made


def seconds(command: list[str]) -> tuple[float, str]:
    """Wall time of a process, and what it said last if it failed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    took = time.perf_counter() - began
    return took, "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def main() -> None:
    options = begin(parser(__doc__ or ""))
    with Weights.at(options.weights) as weights:
        todo = {name: one for name, one in commands(weights, options.threads).items() if wanted(name, options)}
        rows: dict[str, list[float]] = {name: [] for name in todo}
        for number in range(-1, options.rounds):
            for name, command in todo.items():
                if name not in rows:
                    continue
                took, failed = seconds(command)
                if failed:
                    print(f"skipped {name}: {failed}", flush=True)
                    del rows[name]
                elif number >= 0:
                    rows[name].append(took)
    table("Start", "seconds", rows, 2)
    compare(rows, PAIRS)
    figures: dict[str, Any] = rows
    save(options, figures)


if __name__ == "__main__":
    main()
