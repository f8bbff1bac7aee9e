"""Samples per second of both training stages against a plain transformers loop.

Both sides hold the same SmolLM2-135M, EfficientNet-Lite0 and linear connector, see the same samples in the same
batches, and compute in bf16 with fp32 masters (the plain loop by autocast). They run in one process with the same
threads and take turns, step by step, so that whatever else the machine does meets both. Before the clock starts, the
loss of one batch of single questions is printed for both: they do the same work.

The plain loop is what one would write first: frozen parts without gradients, a padded batch, `inputs_embeds` with the
projected features written over placeholders, `labels` for the answer, fused AdamW. It gets its pictures already
preprocessed, in memory, as ours does. Several questions about one picture are branches here; the plain loop reads them
as turns of one conversation, the same tokens, as LLaVA's code does. `cached`: both sides are given the frozen encoder's
features; `encoded`: both encode in every step, ours by its inference path.

    python benchmarks/stages.py [--batch 16] [--steps 12] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from sensorium.data.mixture import Mixture
from sensorium.data.questions import Captions
from sensorium.data.source import SourceConfig
from sensorium.encoders.base import Encoder
from sensorium.hub.fetching import fetch
from sensorium.objectives.base import Loss
from sensorium.recipes.llava import llava
from sensorium.sequence import Sequence
from sensorium.train.build import build_model, load_pretrained, tokenizer_of
from sensorium.train.optim import Optimizer
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.task import Task

CLIP = 1.0


class Ours:
    """A stage as the trainer runs it."""

    def __init__(self, recipe: Recipe, stage: Stage, steps: int) -> None:
        model = build_model(recipe)
        load_pretrained(model, recipe)
        self.task = Task(recipe, stage, model, tokenizer_of(recipe), None, torch.device("cpu"))
        self.optimizer, self.taken = Optimizer(self.task.model, stage, steps), 0

    def loss(self, batch: Sequence) -> Loss:
        [loss] = self.task.loss(self.task.complete(replace(batch, items=dict(batch.items))))
        return loss

    def step(self, batch: Sequence) -> None:
        sequences = [replace(batch, items=dict(batch.items))]
        self.task.backward(sequences, self.task.counts(sequences))
        self.optimizer.step(self.taken)
        self.taken += 1


class Plain:
    """The loop one would write first."""

    def __init__(self, recipe: Recipe, stage: Stage, encoder: Encoder, connector: nn.Module) -> None:
        path = fetch(recipe.init["backbone"])
        self.language = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        self.encoder = copy.deepcopy(encoder).float().eval().requires_grad_(False)
        self.project = copy.deepcopy(connector).float()
        self.language.requires_grad_(stage.trains("backbone.embed.weight"))
        params = [*self.project.parameters(), *self.language.parameters()]
        self.params = [param for param in params if param.requires_grad]
        self.adamw = torch.optim.AdamW(self.params, lr=1e-5, weight_decay=0.0, fused=True)

    def loss(self, batch: Sequence) -> torch.Tensor:
        documents = list(batch.unpack())
        length = max(map(len, documents))
        ids = torch.zeros(len(documents), length, dtype=torch.long)
        attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        places = torch.zeros_like(ids, dtype=torch.bool)
        for row, one in enumerate(documents):
            ids[row, : len(one)] = one.ids
            attention[row, : len(one)] = 1
            labels[row, : len(one)] = torch.where(one.weight > 0, one.ids.long(), -100)
            for span in one.spans:
                places[row, span.start : span.start + span.length] = True
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = self.encoder(batch.items["image"])
            tokens = self.project(features)
            embeds = self.language.get_input_embeddings()(ids)
            embeds = embeds.masked_scatter(places[..., None], tokens.to(embeds.dtype))
            return self.language(inputs_embeds=embeds, attention_mask=attention, labels=labels).loss

    def step(self, batch: Sequence) -> None:
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.params, CLIP)
        self.adamw.step()
        self.adamw.zero_grad()


def batches(task: Task, data: SourceConfig, size: int, count: int) -> list[Sequence]:
    """The first `count` batches of `size` samples of a source, in the order of training, with pixels."""
    mixture = Mixture.of(data).build()
    samples = (mixture.get(*mixture.at(position, seed=0)) for position in range(size * count))
    rendered = [task.renderer.render(sample) for sample in samples]
    return [Sequence.pack(rendered[first : first + size]) for first in range(0, len(rendered), size)]


def timed(step: Callable[[Sequence], object], batch: Sequence) -> float:
    began = time.perf_counter()
    step(batch)
    return time.perf_counter() - began


def same_work(ours: Ours, plain: Plain, batch: Sequence) -> dict[str, float]:
    """The loss of both on one batch, before either has learned."""
    with torch.no_grad():
        loss = ours.loss(batch)
        return {"loss_ours": float(loss.sum / loss.count), "loss_plain": float(plain.loss(batch))}


def compare(recipe: Recipe, stage: Stage, size: int, steps: int) -> dict[str, dict[str, float]]:
    """Figures of one stage: with pictures encoded in every step, and with features given."""
    ours = Ours(recipe, stage, 4 * steps + 8)
    model = ours.task.model
    encoder = model.encoders["image"]
    assert isinstance(encoder, Encoder)
    plain = Plain(recipe, stage, encoder, model.connectors["image"])
    assert stage.data is not None
    table = {"same work": same_work(ours, plain, batches(ours.task, Captions(plain=False), size, 1)[0])}
    pixels = batches(ours.task, stage.data, size, steps + 1)
    cached = [ours.task.complete(replace(batch, items=dict(batch.items))) for batch in pixels]
    for name, given in (("encoded", pixels), ("cached", cached)):
        timed(plain.step, given[0]), timed(ours.step, given[0])  # not counted: the first step allocates
        pairs = [(timed(plain.step, batch), timed(ours.step, batch)) for batch in given[1:]]
        ratios = sorted(theirs / mine for theirs, mine in pairs)
        table[name] = {
            "ours": size / statistics.median(mine for _, mine in pairs),
            "plain": size / statistics.median(theirs for theirs, _ in pairs),
            "ratio": statistics.median(ratios),
            "low": ratios[len(ratios) // 10],
            "high": ratios[-1 - len(ratios) // 10],
        }
    # what a run of more than one epoch does: the plain loop encodes, ours has stored the features
    table["ours cached, plain encoded"] = {
        "ours": table["cached"]["ours"],
        "plain": table["encoded"]["plain"],
        "ratio": table["cached"]["ours"] / table["encoded"]["plain"],
    }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable_progress_bar()
    recipe = llava("small")
    results = {}
    for stage in recipe.stages:
        results[stage.name] = compare(recipe, stage, options.batch, options.steps)
        for name, row in results[stage.name].items():
            if name == "same work":
                print(f"{stage.name}: loss of one batch {row['loss_ours']:.3f}, plain {row['loss_plain']:.3f}")
                continue
            spread = f" ({row['low']:.2f} to {row['high']:.2f})" if "low" in row else ""
            print(
                f"{stage.name}, {name}: {row['ours']:.1f} samples/s, plain {row['plain']:.1f}, "
                f"ratio {row['ratio']:.2f}{spread}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "stages": results}, indent=1))


if __name__ == "__main__":
    main()
