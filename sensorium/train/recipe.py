"""Stages as data, and the recipe that holds them with the model, its pretrained parts and its published figures."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from sensorium.config import Config
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError, nearest
from sensorium.evaluate.task import EvaluationTask
from sensorium.hub.pretrained import Pretrained
from sensorium.models.wiring import Wiring
from sensorium.nn.lora import LoRA
from sensorium.objectives.base import Objective
from sensorium.objectives.language import NextToken
from sensorium.render import Template
from sensorium.train.warm import Start

Size = Literal["tiny", "small", "paper"]


class Stage(Config):
    """One stage of training.

    train       globs of the parameters that train; all others stay bit-identical. A glob that matches nothing raises
    lr          peak learning rate, or one for each glob (the first that matches)
    data        a source or a mixture; None in a stage that is described but not run (paper size without the data)
    steps       optimizer steps; or `epochs` passes over the data
    tokens      token budget of one packed micro-batch
    items       item budget of one micro-batch (pictures), None for no limit
    accumulate  micro-batches per optimizer step, over all processes (docs/distributed.md)
    max_tokens  longest document; None: the token budget
    precision   auto: bf16 where the hardware computes in it (weights and activations; fp32 master weights), else fp32
    adapters    LoRA on the linear layers that a glob matches
    wiring      another wiring of the recipe's parts that this stage trains in place of the recipe's model: parts of the
                same name are the same parts, and stay what the stage made of them (BLIP-2 trains its Q-Former without a
                language model first)
    evaluations  what this stage's wiring is asked when the stage is done; a recipe's own are asked of the last one
    start       what is done to a connector before the first step
    checkpointing  recompute block activations in the backward pass
    ema         decay of a moving average of the weights, which becomes the weights when the stage is done; None: there
                is none. At 0-based step s it is at most (1 + s) / (10 + s), so that the beginning is soon forgotten
    published   what the paper says of this stage, in words
    """

    name: str
    train: tuple[str, ...]
    lr: float | dict[str, float]
    data: SourceConfig | None = None
    objectives: tuple[Objective, ...] = (NextToken(),)
    steps: int | None = None
    epochs: float | None = None
    tokens: int = Field(2048, gt=0)
    items: int | None = None
    accumulate: int = Field(1, gt=0)
    max_tokens: int | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    floor: float = Field(0.0, ge=0, le=1)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpointing: bool = False
    ema: float | None = Field(None, gt=0, lt=1)
    adapters: dict[str, LoRA] = {}
    start: Start | None = None
    wiring: Wiring.Config | None = None
    evaluations: tuple[EvaluationTask, ...] = ()
    published: str = ""

    def trains(self, name: str) -> bool:
        """Whether the parameter of this name trains in this stage."""
        return any(fnmatchcase(name, glob) for glob in self.train)

    def lr_of(self, name: str) -> float:
        """Peak learning rate of the parameter of this name. Raises UserError when no glob covers it."""
        if not isinstance(self.lr, dict):
            return self.lr
        for glob, rate in self.lr.items():
            if fnmatchcase(name, glob):
                return rate
        raise UserError(f"stage {self.name!r} trains {name!r} but its lr has no glob for it: {sorted(self.lr)}")


class Figure(Config):
    """A published number that this recipe's paper size is held against.

    name       what is counted, a key of `sensorium.train.describe.measure`
    published  the value, in plain units
    tolerance  relative
    source     where it stands
    """

    name: str
    published: float
    tolerance: float = 0.01
    source: str = ""


class Published(Config):
    """A published checkpoint: its folder, or its id on the hub. A run keeps weights and tokenizer itself, so it is
    needed only to begin."""

    folder: str


class Recipe(Config):
    """A system: model, prompt, pretrained parts, stages, published figures.

    tokenizer  "bytes", or the pretrained part whose file carries it
    init       pretrained weights by part: {"backbone": ..., "encoders.image": ...}
    start      a published checkpoint that the model is, whole, with its tokenizer
    evaluations  what the trained model is asked, always beside its blind control
    judge      a contrastive recipe whose model tells what made pictures show; it is trained once, before the first
               evaluation that asks it, and kept for every run that names the same (train/judge.py)
    """

    name: str
    title: str
    paper: str
    family: str
    size: Size
    model: Wiring.Config
    template: Template = Template()
    tokenizer: Literal["bytes"] | Pretrained = "bytes"
    init: dict[str, Pretrained] = {}
    start: Published | None = None
    stages: tuple[Stage, ...]
    evaluations: tuple[EvaluationTask, ...] = ()
    judge: Recipe | None = None
    figures: tuple[Figure, ...] = ()
    deviations: tuple[str, ...] = ()
    seed: int = 0

    def wiring(self, index: int) -> Wiring.Config:
        """What the stage of this index trains."""
        return self.stages[index].wiring or self.model if self.stages else self.model

    def inside(self, stage: Stage) -> str:
        """The part of the recipe's model that the wiring of a stage is, whose own parts it then names; "": none."""
        generators = getattr(self.model, "generators", {})
        return next(
            (f"generators.{kind}.denoiser" for kind, one in generators.items() if one.denoiser == stage.wiring), ""
        )

    def template_of(self, config: Wiring.Config) -> Template:
        """How a wiring's conversations are written: a decoder's `start` only where there is an encoder before it, marks
        around media only where a model that speaks reads them (not in a contrastive stage, whose text is a caption)."""
        template = self.template if config.reads_source else self.template.replace(start="")
        return template if config.speaks else template.replace(media={})

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"recipe {self.name!r} has no stage {name!r}: {nearest(name, [s.name for s in self.stages])}")
