"""What the trainer knows: a model prepared for one stage, and its loss."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from sensorium.errors import UserError
from sensorium.models.denoiser import Denoiser
from sensorium.models.generator import Generator
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.nn.lora import add_lora
from sensorium.nn.part import Stepped
from sensorium.nn.wide import native_bfloat16
from sensorium.objectives.base import Loss, Objective, StepObjective
from sensorium.render import Renderer
from sensorium.sequence import Item, Media, Sequence, made
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import item_loader
from sensorium.train.caching import Cached
from sensorium.train.features import FrozenEncoder, frozen_kinds
from sensorium.train.parallel import ALONE, Ranks
from sensorium.train.recipe import Recipe, Stage
from sensorium.train.warm import Start


def precision_of(stage: Stage, device: torch.device) -> torch.dtype:
    """The dtype a stage computes in."""
    if stage.precision == "fp32":
        return torch.float32
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if stage.precision == "bf16" or native else torch.float32


def check_stages(recipe: Recipe) -> None:
    """Raise UserError for what would stop a stage: said before anything is fetched, not after the stages before it."""
    seen: set[str] = set()
    configs = [recipe.wiring(index) for index in range(len(recipe.stages))]
    check_parts(recipe, configs)
    models: dict[str, Wiring] = {}
    for stage, config in zip(recipe.stages, configs):
        if stage.name in seen:
            raise UserError(f"two stages are called {stage.name!r}: names must be unique")
        seen.add(stage.name)
        said = [objective.name for objective in stage.objectives]
        if len(set(said)) < len(said):
            raise UserError(f"stage {stage.name!r}: two objectives have one name ({', '.join(said)}): name them apart")
        key = config.to_json()
        if key not in models:
            with blank():
                models[key] = config.build()
        add_lora(models[key], stage.adapters)
        _check_stage(stage, [name for name, _ in models[key].named_parameters()], set(models[key].encoders))


def check_parts(recipe: Recipe, configs: list[Wiring.Config]) -> None:
    """The wirings of a recipe's stages must agree on the parts they share, and the last one is the recipe's model."""
    if configs and configs[-1] != recipe.model:
        raise UserError(
            f"the last stage {recipe.stages[-1].name!r} must train the recipe's model: leave out its wiring"
        )
    for stage, config in zip(recipe.stages, configs):
        for room in ("encoders", "connectors", "codecs"):
            mine, final = getattr(config, room), getattr(recipe.model, room)
            for kind in set(mine) & set(final):
                if mine[kind] != final[kind]:
                    raise UserError(
                        f"stage {stage.name!r}: its wiring has another {room}.{kind} than the recipe's model"
                    )
        inner = [one.denoiser for one in getattr(recipe.model, "generators", {}).values()]
        if isinstance(config, Denoiser.Config) and inner and config not in inner:
            raise UserError(f"stage {stage.name!r} trains a denoiser that no generator of the recipe's model has: give "
                            "both one config")  # fmt: skip


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
    if stage.start is not None:
        _check_start(stage, stage.start, names, kinds)


def _check_start(stage: Stage, start: Start, names: list[str], kinds: set[str]) -> None:
    kind = start.kind
    if kind not in kinds:
        raise UserError(f"stage {stage.name!r}: a start of {kind!r}, the model reads {sorted(kinds)}")
    if any(stage.trains(name) for name in names if name.startswith(f"encoders.{kind}.")):
        raise UserError(f"stage {stage.name!r}: a start needs the {kind} encoder frozen")
    if not all(stage.trains(name) for name in names if name.startswith(f"{start.sets}.")):
        raise UserError(
            f"stage {stage.name!r}: a start sets {start.sets}, which the stage does not train: add "
            f"'{start.sets}.*' to its `train`"
        )


def set_precision(model: Wiring, stage: Stage, dtype: torch.dtype, prefix: str = "") -> list[str]:
    """Bring a model to the dtype a stage computes in, all but its frozen encoders and codecs.

    prefix  of the model's parameters in the stage's globs, where it is a wiring within another
    Returns the kinds whose items go through a frozen one and through nothing else, and the targets of generators that
    do.
    """
    frozen = {
        room: set(frozen_kinds(getattr(model, room), stage.trains, prefix + room)) for room in ("encoders", "codecs")
    }
    parts = [part for name, part in model.named_children() if name not in (*frozen, "generators")]
    parts += [
        part for room, kinds in frozen.items() for kind, part in getattr(model, room).items() if kind not in kinds
    ]
    for part in parts:
        part.to(dtype)
    targets = []
    for kind, generator in model.generators.items():
        assert isinstance(generator, Generator)
        generator.connector.to(dtype)
        if set_precision(generator.denoiser, stage, dtype, f"{prefix}generators.{kind}.denoiser."):
            targets.append(made(kind))
    # what an encoder and a codec both read keeps its pixels: features made earlier would stand for the encoder's alone
    both = set(model.encoders) & set(model.codecs)
    readers = dict.fromkeys(owner for kind in model.config.kinds if (owner := model.config.owner(kind)) not in both)
    return [kind for kind in readers if kind in frozen["codecs" if model.config.coded(kind) else "encoders"]] + targets


def frozen_encoders(
    model: Wiring, kinds: Iterable[str], root: Path | None, dtype: torch.dtype
) -> dict[str, FrozenEncoder]:
    """The fast path of encoders and codecs that do not train, with their feature cache under `root`."""
    return {kind: FrozenEncoder(model.reader(kind), root, dtype) for kind in kinds}


class Task:
    """One stage on one model: who trains, in which precision, with which frozen encoders, towards which objective."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        model: Wiring,
        tokenizer: Tokenizer,
        cache: Path | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.recipe, self.stage, self.model, self.tokenizer, self.device = recipe, stage, model, tokenizer, device
        if stage.adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed + 1)
                add_lora(model, stage.adapters)
        self.dtype = precision_of(stage, device)
        self._freeze()
        frozen = set_precision(model, stage, self.dtype)
        model.to(device)
        model.recompute(stage.checkpointing)
        self.encoders = frozen_encoders(model, frozen, cache, self.dtype)
        self.renderer = Renderer(tokenizer, recipe.template_of(model.config), model.config.plan, self._load)
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

    def shard(self) -> None:
        """Split the model over ranks. Frozen encoders stay whole: what a rank runs them on is its own business."""
        frozen = [self.model.reader(kind) for kind in self.encoders]
        self.ranks.shard(self.model, [param for encoder in frozen for param in encoder.parameters()])

    def _load(self, kind: str, media: Media) -> Item:
        frozen = self.encoders.get(self.model.config.owner(kind))
        return frozen.load(media) if frozen is not None else self._plain_load(kind, media)

    def complete(self, sequence: Sequence) -> Sequence:
        """Fill in the features of frozen encoders and the codes of frozen codecs, and move to the device."""
        for kind in (*self.model.config.kinds, *self.model.config.targets):
            frozen, items = self.encoders.get(self.model.config.owner(kind)), sequence.members(kind)
            if frozen is not None and items:
                sequence = sequence.with_members(kind, frozen.complete(items))
        return self.model.config.written(sequence).to(self.device)

    def counts(self, sequences: Iterable[Sequence]) -> list[float]:
        """Total weight of the targets of each objective in the micro-batches of a step."""
        sequences = list(sequences)
        return [sum(one.count(sequence) for sequence in sequences) for one in self.stage.objectives]

    def loss(self, sequence: Sequence) -> list[Loss]:
        """What each objective of the stage says of one packed micro-batch."""
        outputs = self.model(sequence)
        return [objective(outputs, sequence) for objective in self.stage.objectives]

    def backward(self, sequences: list[Sequence], counts: list[float]) -> dict[str, tuple[float, float]]:
        """Gradients of one step's loss over its micro-batches; returns sum and count of what the log shows, by name.

        counts  of each objective, over all micro-batches and ranks
        """
        report: dict[str, tuple[float, float]] = {}
        objectives = self.stage.objectives
        factors = [one.weight / max(count, 1e-9) for one, count in zip(objectives, counts)]
        if any(isinstance(one, StepObjective) for one in objectives) and (len(sequences) > 1 or self.ranks.world > 1):
            self._backward_together(sequences, factors, report)
            return report
        for sequence in sequences:
            losses = self.loss(self.complete(sequence))
            torch.stack([loss.sum * factor for loss, factor in zip(losses, factors)]).sum().backward()
            for objective, loss in zip(objectives, losses):
                _note(report, objective, loss)
        return report

    def _backward_together(
        self, sequences: list[Sequence], factors: list[float], report: dict[str, tuple[float, float]]
    ) -> None:
        """The same where an objective compares all examples of the step, and the step is more than one micro-batch."""
        objectives = self.stage.objectives
        sequences = [self.complete(sequence) for sequence in sequences]
        cached = Cached(self.model, sequences, objectives, factors, self.ranks)
        for index, sequence in enumerate(sequences):
            outputs = cached.outputs(index)
            parts = []
            for number, (objective, factor) in enumerate(zip(objectives, factors)):
                if number in cached.losses:
                    parts.append(cached.surrogate(number, index, outputs))
                else:
                    loss = objective(outputs, sequence)
                    parts.append(loss.sum * factor)
                    _note(report, objective, loss)
            torch.stack(parts).sum().backward()
        for number, loss in cached.losses.items():
            _note(report, objectives[number], loss)

    def after_step(self) -> dict[str, float]:
        """What parts do between steps (moving means, codes that nothing uses); returns what they say of it."""
        found: dict[str, float] = {}
        for part in self.model.modules():
            if isinstance(part, Stepped) and part.training:
                found |= part.after_step(self.ranks)
        return found

    def trained_parts(self) -> dict[str, tuple[int, int]]:
        """part -> (parameters that train, parameters that do not)."""
        from sensorium.train.checkpoint import parts_of

        params: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        table = {}
        for part, names in parts_of(params).items():
            trained = sum(params[name].numel() for name in names if params[name].requires_grad)
            table[part] = (trained, sum(params[name].numel() for name in names) - trained)
        return table


def _note(report: dict[str, tuple[float, float]], objective: Objective, loss: Loss) -> None:
    """Add a loss, and what it reports, to the sums and counts of a step."""
    found = {objective.name: (loss.sum.detach(), loss.count), **loss.report}
    for name, (total, count) in found.items():
        before = report.get(name, (0.0, 0.0))
        report[name] = (before[0] + float(total), before[1] + float(count))
