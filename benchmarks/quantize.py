"""What quantised weights lose, and what they take: this package's int8 and int4 beside llama.cpp's q8_0 and q4_1.

All are measured alike, in this package and in float32: llama.cpp's are the numbers that its reference (package gguf)
reads back from what it wrote, head and embedding in q8_0 in the files of 4 bits as llama.cpp has them. Without a run
the model is SmolLM2-135M-Instruct. Its published file is q4_1 already, which q4_1 writes again without loss, so that
nothing could be compared: channels of its stream and of its feed-forwards are shuffled first, which changes groups of
32 weights and nothing that the model computes. --as-published leaves them.

    python benchmarks/quantize.py [--run RUN] [--text FILE] [--n 100] [--as-published]

A run is evaluated as well, as `sensorium eval` does.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from torch import Tensor, nn

from sensorium.evaluate.text import PLAIN
from sensorium.hub.cache import cache_root
from sensorium.infer.engine import Engine
from sensorium.infer.kernels.quantize import quantize as quantize_stack
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.recipes.catalog import find
from sensorium.recipes.common import evaluations_of
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.train.build import build_model, load_pretrained, tokenizer_of
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.finish import evaluate, subject_of
from sensorium.train.recipe import Recipe

PIECE = 2000
"""Characters of a --text that are a document."""


def smollm2() -> tuple[Recipe, Wiring, object]:
    """The small recipes' language model, alone."""
    recipe = find("llava", "small")
    language = recipe.replace(
        model=Fused.Config(backbone=recipe.model.stack), init={"backbone": recipe.init["backbone"]}, stages=()
    )
    model = build_model(language)
    load_pretrained(model, language)
    return language, model.float().eval(), tokenizer_of(language)


@torch.no_grad()
def shuffle(stack: Backbone) -> None:
    """Channels in another order: nothing that a llama computes changes, groups of weights do."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(stack.config.width, generator=generator)
    entering, leaving, alone = [stack.embed], [], [stack.norm]
    for block in stack.blocks:
        attention, ffn = block.attention, block.ffn
        entering += [attention.q, attention.k, attention.v, ffn.gate, ffn.up]
        leaving += [attention.o, ffn.down]
        alone += [block.norm1, block.norm2]
        inner = torch.randperm(ffn.up.out_features, generator=generator)
        for layer in (ffn.gate, ffn.up):
            layer.weight.copy_(layer.weight[inner])
        ffn.down.weight.copy_(ffn.down.weight[:, inner])
    for layer in entering:
        layer.weight.copy_(layer.weight[:, order])
    for layer in (*leaving, *alone):
        layer.weight.copy_(layer.weight[order])


def documents(engine: Engine, path: Path) -> Sequence:
    text = path.read_text(encoding="utf-8")
    if path == PLAIN:
        pieces = [line for line in text.splitlines() if line.strip()]
    else:
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    rendered = [engine.renderer.render(Sample((Segment("text", one),), id=str(n))) for n, one in enumerate(pieces)]
    return Sequence.pack(engine.prepare(rendered))


@torch.inference_mode()
def logs(model: Wiring, packed: Sequence) -> Tensor:
    """(T, vocab) log-probabilities of what follows each token of a document but its last."""
    inside = (packed.doc[1:] == packed.doc[:-1]).nonzero(as_tuple=True)[0]
    return model(packed).logits(inside).float().log_softmax(-1)


def told(found: Tensor, exact: Tensor, packed: Sequence) -> str:
    """Perplexity, and how far the predictions are from the exact model's."""
    inside = (packed.doc[1:] == packed.doc[:-1]).nonzero(as_tuple=True)[0]
    follows = packed.ids[1:][inside]
    perplexity = math.exp(-float(found.gather(1, follows[:, None]).mean()))
    apart = (exact.exp() * (exact - found)).sum(1)
    spread = float(apart.std()) / math.sqrt(len(apart))
    same = float((found.argmax(1) == exact.argmax(1)).float().mean())
    return f"perplexity {perplexity:8.3f}   KL {float(apart.mean()):.5f} +- {spread:.5f}   same first {same:6.1%}"


@torch.no_grad()
def as_llama_cpp(model: Wiring, kind: Type) -> None:
    """The numbers of the language stack as a file of this kind has them; those with rows that it cannot say stay."""
    stack = model.stack
    for part in [*stack.blocks.modules(), stack.embed, stack.head]:
        if isinstance(part, nn.Linear | nn.Embedding) and part.weight.shape[1] % 32 == 0:
            chosen = kind if part is not stack.embed and part is not stack.head else Type.Q8_0
            plain = part.weight.float().numpy()
            part.weight.copy_(torch.from_numpy(dequantize(quantize(plain, chosen), chosen).copy()))


def ours(kind: str) -> Callable[[Wiring], None]:
    def change(model: Wiring) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the most that ever was held is what is held now
        began, before = time.perf_counter(), status("VmHWM")
        report = quantize_stack(model, kind)
        seconds = time.perf_counter() - began
        print(f"  {report.summary()}\n  {seconds:.1f} s on {torch.get_num_threads()} threads; peak memory rose by "
              f"{(status('VmHWM') - before) / 1e6:.1f} MB")  # fmt: skip

    return change


def status(name: str) -> int:
    """Bytes: VmRSS is what is held now, VmHWM the most that ever was."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))


def scores(recipe: Recipe, model: Wiring, tokenizer, count: int) -> str:
    tasks = tuple(task.replace(n=count) for task in recipe.evaluations or evaluations_of(recipe.model, count))
    recipe = recipe.replace(evaluations=tasks)
    subject = subject_of(recipe, model, tokenizer, cache_root() / "features")
    found = [one for result in evaluate(recipe, subject) for one in result.evaluations]
    return "\n".join(f"  {one.task} {one.split}: {one.score:.1%} ({one.low:.1%} to {one.high:.1%})" for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run, in place of SmolLM2")
    parser.add_argument("--text", type=Path, default=PLAIN, help="a text file; default: the built-in one")
    parser.add_argument("--n", type=int, default=100, help="items of each evaluation of the run")
    parser.add_argument("--as-published", action="store_true", help="leave channels in their order")
    options = parser.parse_args()
    recipe, model, tokenizer = load_checkpoint(options.run, torch.float32) if options.run else smollm2()
    packed = documents(subject_of(recipe, model, tokenizer).engine, options.text)
    first = logs(model, packed)
    if not options.run and not options.as_published:
        shuffle(model.stack)
    exact = logs(model, packed)
    print(f"{options.run or 'SmolLM2-135M-Instruct'}: {len(exact)} tokens of {options.text.name}; shuffling changes "
          f"no log-probability by more than {float((exact - first).abs().max()):.1e}")  # fmt: skip
    kinds: dict[str, Callable[[Wiring], None]] = {
        "float32": lambda model: None,
        "q8_0, llama.cpp": lambda model: as_llama_cpp(model, Type.Q8_0),
        "int8": ours("int8"),
        "q4_0, llama.cpp": lambda model: as_llama_cpp(model, Type.Q4_0),
        "q4_1, llama.cpp": lambda model: as_llama_cpp(model, Type.Q4_1),
        "int4": ours("int4"),
    }
    for name, change in kinds.items():
        changed = copy.deepcopy(model)
        change(changed)
        print(f"{name:16s} {told(logs(changed, packed), exact, packed)}", flush=True)
        if options.run:
            print(scores(recipe, changed, tokenizer, options.n), flush=True)


if __name__ == "__main__":
    main()
