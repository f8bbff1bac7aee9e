"""A published checkpoint, fine-tuned: the same model, its own prompt, adapters on its language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensorium.convert.published import read_published
from sensorium.nn.lora import LoRA
from sensorium.recipes.common import evaluations, instructions
from sensorium.train.recipe import Published, Recipe, Stage

RATE = 2e-4
"""Of adapters: LLaVA-1.5's (arXiv 2310.03744, released fine-tuning script with LoRA)."""
STEPS = 300


def finetune(folder: Path, name: str | None = None) -> Recipe:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer of the language model; all else stays as it is.

    Without `--data` it learns the built-in questions about pictures, and is asked those of the validation splits. A
    model that does not answer in words can be shown, and has no stage to train.

    name  as the checkpoint was asked for: a path, or an id of the hub; None: the folder's
    Raises UserError for a folder that cannot be opened.
    """
    said = read_published(folder)
    sees = "image" in said.config.kinds and said.config.speaks
    fields: dict[str, Any] = {"steps": STEPS, "tokens": 2048, "data": instructions() if sees else None}
    adapters = {"backbone.blocks.*": LoRA()}
    stage = Stage(name="finetune", train=("*.lora_*",), lr=RATE, adapters=adapters, **fields)
    return Recipe(
        name="finetune", title=folder.resolve().name, paper="arXiv 2106.09685", family=said.family.name, size="small",
        model=said.config, template=said.template, start=Published(folder=name or str(folder)),
        stages=(stage,) if said.config.speaks else (), evaluations=evaluations(300) if sees else (),
    )  # fmt: skip
