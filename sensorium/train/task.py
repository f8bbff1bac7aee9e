"""What the trainer knows: a model prepared for one stage, and its loss."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from sensorium.encoders.base import native_bfloat16
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.lora import add_lora
from sensorium.objectives.base import Loss
from sensorium.render import Renderer
from sensorium.sequence import Item, Media, Sequence
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader
from sensorium.train.features import FrozenEncoder, frozen_kinds
from sensorium.train.recipe import Recipe, Stage


def precision_of(stage: Stage, device: torch.device) -> torch.dtype:
    """The dtype a stage computes in."""
    if stage.precision == "fp32":
        return torch.float32
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if stage.precision == "bf16" or native else torch.float32


def check_stages(recipe: Recipe) -> None:
    """Raise UserError for what would stop a stage: said before anything is fetched, not after the stages before it."""
    with torch.device("meta"):
        model = recipe.model.build()
    seen: set[str] = set()
    for stage in recipe.stages:
        if stage.name in seen:
            raise UserError(f"two stages are called {stage.name!r}: names must be unique")
        seen.add(stage.name)
        add_lora(model, stage.adapters)
        _check_stage(stage, [name for name, _ in model.named_parameters()], set(model.encoders))


def _check_stage(stage: Stage, names: list[str], kinds: set[str]) -> None:
    parts = sorted({name.split(".")[0] + ".*" for name in names})
    if not stage.train:
        raise UserError(f"stage {stage.name!r} trains nothing: give `train` globs of {parts}")
    for glob in stage.train:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UserError(f"stage {stage.name!r}: train glob {glob!r} matches no parameter; parts: {parts}")
    for name in names:
        if stage.trains(name):
            stage.lr_of(name)
    if stage.data is None:
        raise UserError(f"stage {stage.name!r} has no data: give --data, or a recipe that names a source")
    kind = stage.start.kind if stage.start is not None else None
    if kind is None:
        return
    if kind not in kinds:
        raise UserError(f"stage {stage.name!r}: a ridge start of {kind!r}, the model reads {sorted(kinds)}")
    if any(stage.trains(name) for name in names if name.startswith(f"encoders.{kind}.")):
        raise UserError(f"stage {stage.name!r}: a ridge start needs the {kind} encoder frozen")
    if not all(stage.trains(name) for name in names if name.startswith(f"connectors.{kind}.")):
        raise UserError(
            f"stage {stage.name!r}: a ridge start sets connectors.{kind}, which the stage does not train: add "
            f"'connectors.{kind}.*' to its `train`"
        )


def set_precision(model: Fused, stage: Stage, dtype: torch.dtype) -> list[str]:
    """Bring a model to the dtype a stage computes in, all but its frozen encoders; returns their kinds."""
    frozen = list(frozen_kinds(model.encoders, stage.trains))
    parts = [part for name, part in model.named_children() if name != "encoders"]
    parts += [encoder for kind, encoder in model.encoders.items() if kind not in frozen]
    for part in parts:
        part.to(dtype)
    return frozen


def frozen_encoders(model: Fused, kinds, root: Path | None, dtype: torch.dtype) -> dict[str, FrozenEncoder]:
    """The fast path of encoders that do not train, with their feature cache under `root`."""
    return {kind: FrozenEncoder(model.encoders[kind], root, dtype) for kind in kinds}  # type: ignore[arg-type]


class Task:
    """One stage on one model: who trains, in which precision, with which frozen encoders, towards which objective."""

    def __init__(
        self, recipe: Recipe, stage: Stage, model: Fused, tokenizer: Tokenizer, cache: Path | None, device: torch.device
    ) -> None:
        self.recipe, self.stage, self.model, self.tokenizer, self.device = recipe, stage, model, tokenizer, device
        if stage.adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed + 1)
                add_lora(model, stage.adapters)
        self.dtype = precision_of(stage, device)
        self._freeze()
        frozen = set_precision(model, stage, self.dtype)
        model.to(device)
        model.backbone.checkpointing = stage.checkpointing
        self.encoders = frozen_encoders(model, frozen, cache, self.dtype)
        self.renderer = Renderer(tokenizer, recipe.template, recipe.model.num_tokens, self._load)
        self._plain_load = item_loader(model)

    def _freeze(self) -> None:
        """Everything off, then what the stage trains on."""
        for name, param in self.model.named_parameters():
            param.requires_grad_(self.stage.trains(name))
        self.model.train()
        for _, part in self.model.named_modules():
            params = list(part.parameters())
            if params and not any(param.requires_grad for param in params):
                part.eval()  # frozen parts use their stored statistics and no dropout

    def _load(self, kind: str, media: Media) -> Item:
        return self.encoders[kind].load(media) if kind in self.encoders else self._plain_load(kind, media)

    def complete(self, sequence: Sequence) -> Sequence:
        """Fill in the features of frozen encoders, and move to the device."""
        for kind, frozen in self.encoders.items():
            if sequence.items.get(kind):
                sequence.items[kind] = frozen.complete(sequence.items[kind])
        return sequence.to(self.device)

    def loss(self, sequence: Sequence) -> Loss:
        """Sum of the stage's objectives over one packed micro-batch."""
        outputs = self.model(sequence)
        losses = [objective(outputs, sequence) for objective in self.stage.objectives]
        first = losses[0]
        for other in losses[1:]:
            first.sum, first.count = first.sum + other.sum, first.count + other.count
            first.report.update(other.report)
        return first

    def trained_parts(self) -> dict[str, tuple[int, int]]:
        """part -> (parameters that train, parameters that do not)."""
        from sensorium.train.checkpoint import parts_of

        params: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        table = {}
        for part, names in parts_of(params).items():
            trained = sum(params[name].numel() for name in names if params[name].requires_grad)
            table[part] = (trained, sum(params[name].numel() for name in names) - trained)
        return table
