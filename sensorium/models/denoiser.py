"""A clean latent is noised, and a backbone under a condition says what was added.

    items -- codec -- patches -- noised by the schedule -- enter -- backbone -- leave -- prediction
                                       |                             |  |
                                      time ------------ + -- adaLN --'  |
    ids ---- text stack ------------ pooled ------------'               |
                      `-------------- states --------- cross-attention -'

DiT, latent diffusion and Sora's space-time patches: a picture is a clip of one frame (models/latents.py).
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.diffusion.predictor import Predictor
from sensorium.diffusion.sampler import Sampler
from sensorium.diffusion.schedule import Diffusion, Schedule
from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.models.latents import Denoised, Latents, Patch, locate, noised, patched, positions, tokens_of
from sensorium.models.prompt import Prompt, PromptEmbedding, TimeEmbedding, read
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.modulation import Conditions
from sensorium.sequence import Plan, Sequence, Span


class Denoiser(Wiring):
    """Schedule, condition, predict."""

    class Config(Wiring.Config):
        """backbone  the stack that denoises: modulated, without vocabulary (`nn.backbone.dit`)
        text       the stack that reads what is asked for; one of depth 0 is a table of labels
        rule       how that one reads
        patch      frames, rows and columns of latent positions that become one token
        sections   channels of the sin-cos position that say the time, the row and the column; None: no such position is
                   added, the backbone has a rotary one
        columns_first  the column is said before the row, as in the code of MAE and DiT
        stretch    positions of pictures of any size are spread over so many rows and columns; 0: they are counted
        closed     how a time is written, see `TimeEmbedding`
        apart      every block has a condition of its own, `depth` vectors in place of one: it embeds the time for
                   itself, and what stands for a text is as wide as all of them (diffusers)
        variance   it also says where between its bounds the variance of a step lies, number by number (Nichol and
                   Dhariwal 2021, arXiv 2102.09672, section 3.1). Samplers here take the variance of the schedule
        project    the state that stands for a text goes through a linear layer before it is added to the time's; labels
                   do not (DiT)
        pool       that state: the mean of all, or the last token's
        length     texts are cut or filled up to so many tokens (77 of CLIP's in Stable Diffusion); 0: they are not
        drop       share of documents whose text is left out in training, for guidance (arXiv 2207.12598)
        sampler    how it is painted with unless something else is asked for; None: as a `Painting` says
        """

        backbone: Backbone.Config
        text: Backbone.Config
        schedule: Schedule = Diffusion()
        predictor: Predictor = Predictor()
        patch: Patch = (1, 2, 2)
        sections: tuple[int, int, int] | None = None
        columns_first: bool = False
        stretch: int = Field(default=0, ge=0)
        closed: bool = False
        apart: bool = False
        variance: bool = False
        project: bool = True
        pool: Literal["mean", "last"] = "mean"
        length: int = Field(default=0, ge=0)
        drop: float = Field(default=0.1, ge=0, lt=1)
        sampler: Sampler | None = None

        @property
        def reads_text(self) -> bool:
            return True

        @property
        def speaks(self) -> bool:
            return False

        @property
        def stack(self) -> Backbone.Config:
            return self.text

        @property
        def measures(self) -> dict[str, float]:
            """The denoising backbone, by names of its own beside those of the stack that reads text."""
            block = self.backbone.block
            return {
                "denoiser.width": self.backbone.width, "denoiser.depth": self.backbone.depth,
                "denoiser.heads": block.attention.heads, "denoiser.hidden": block.ffn.hidden,
                "denoiser.patch": self.patch[1], "schedule.steps": self.schedule.steps,
            }  # fmt: skip

        @property
        def channels(self) -> int:
            """Numbers of one token."""
            return math.prod(self.patch) * next(iter(self.codecs.values())).width

        @property
        def conditions(self) -> int:
            """Vectors that modulate a token on its way: one, or one in every block."""
            return self.backbone.depth if self.apart else 1

        def plan(self, kind: str, shape: tuple[int, ...]) -> Plan:
            return Plan(patched(self.codecs[self.owner(kind)].grid(shape), self.patch).tokens, "latent")

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            _check(self)
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.backbone.width
        self.text: Backbone = config.text.build()
        self.enter = nn.Linear(config.channels, width)
        self.time = TimeEmbedding(width, config.closed)
        self.times = nn.ModuleList(TimeEmbedding(width, config.closed) for _ in range(1, config.conditions))
        """Those of further blocks."""
        self.prompt = PromptEmbedding(config.text.width, width * config.conditions, config.project)
        self.backbone: Backbone = config.backbone.build()
        self.leave = nn.Linear(width, config.channels * (2 if config.variance else 1))
        nn.init.zeros_(self.leave.weight)  # so a new denoiser predicts zero (DiT, arXiv 2212.09748, section 3.2)
        nn.init.zeros_(self.leave.bias)

    @property
    def stack(self) -> Backbone:
        return self.text

    def reference(self) -> Tensor:
        return self.enter.weight

    def recompute(self, on: bool) -> None:
        self.backbone.checkpointing = on

    def forward(
        self, sequence: Sequence, noise: Tensor | None = None, time: Tensor | None = None, prompt: Prompt | None = None
    ) -> Denoised:
        """A packed sequence with its items -> predictions at random times, or at those that its spans say.

        noise   (T, P), time (S): drawn from torch's generator unless they are given
        prompt  what is asked for, in place of what the sequence says
        """
        latents = self.locate(sequence)
        config, clean = self.config, self.clean(sequence, latents)
        seen = noised(clean, latents.spans, latents.number, config.schedule, config.predictor, noise, time)
        prompt = self.read(sequence, self._dropped(sequence)) if prompt is None else prompt
        output = self.predict(seen.x, seen.time, latents, prompt)
        return Denoised(output, seen.target, seen.time, latents.number)

    # ---- schedule

    def locate(self, sequence: Sequence) -> Latents:
        """Where the latent spans of a sequence stand."""
        grids = {
            kind: [
                self.config.codecs[self.config.owner(kind)].grid(item.shape) for item in sequence.items.get(kind, [])
            ]
            for kind in self.config.kinds
        }
        return locate(sequence, grids, self.config.patch)

    def clean(self, sequence: Sequence, latents: Latents) -> Tensor:
        """(T, P) float32, the tokens of the items as they are."""
        made = {kind: self._tokens(kind, sequence) for kind in self.config.kinds}
        parts = [made[span.kind][span.item] for span in latents.spans]
        return torch.cat([self.enter.weight.new_zeros(0, self.config.channels).float(), *parts])

    def _tokens(self, kind: str, sequence: Sequence) -> list[Tensor]:
        """Of every item of a kind, tokens (N, P)."""
        return tokens_of(self.codec(kind), sequence.items.get(kind, []), self.config.patch)

    # ---- condition

    def read(self, sequence: Sequence, dropped: Tensor | None = None) -> Prompt:
        """What the documents ask for. dropped (N) bool: of these, nothing."""
        last = self.config.pool == "last"
        return read(self.text, self.prompt, sequence, self.config.rule, last, dropped, self.config.length)

    def _dropped(self, sequence: Sequence) -> Tensor | None:
        if not self.training or not self.config.drop:
            return None
        return torch.rand(sequence.documents, device=sequence.ids.device) < self.config.drop

    # ---- predict

    def predict(self, x: Tensor, time: Tensor, latents: Latents, prompt: Prompt) -> Tensor:
        """x (T, P) noised tokens, time (S) -> the prediction (T, P) float32."""
        return self.said(x, time, latents, prompt)[0]

    def said(self, x: Tensor, time: Tensor, latents: Latents, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
        """x (T, P) noised tokens, time (S) -> the prediction and what is said of the variance, both (T, P) float32.

        The latter is None where the model says nothing of it; -1 stands for the lower bound and 1 for the upper.
        """
        h = self.enter(x.to(self.enter.weight.dtype))
        config = self.config
        if config.sections is not None:
            h = h + positions(latents.patches, config.sections, config.columns_first, config.stretch).to(h)
        told = self.conditions(time, prompt.pooled.index_select(0, latents.document), latents.number)
        layout, memory = _layout(latents, prompt)
        cross = config.backbone.block.cross is not None
        h = self.backbone(h, layout, memory=memory if cross else None, conditions=told)
        said = self.leave(h).float()
        if not config.variance:
            return said, None
        prediction, variance = said.unflatten(1, (math.prod(config.patch), 2, -1)).unbind(2)
        return prediction.flatten(1), variance.flatten(1)

    def conditions(self, time: Tensor, asked: Tensor, number: Tensor) -> list[Conditions] | Conditions:
        """time (S), asked (S, what stands for a text) -> what modulates the tokens, whose spans are number (T)."""
        if not self.config.apart:
            return Conditions(self.time(time) + asked, number)
        parts = zip([self.time, *self.times], asked.chunk(self.config.conditions, dim=1))
        return [Conditions(embed(time) + part, number) for embed, part in parts]


def _layout(latents: Latents, prompt: Prompt) -> tuple[Layout, Tensor]:
    """Tokens of a document see each other, and read all of its text. Documents without latents are left out."""
    device = latents.index.device
    owners, doc = torch.unique_consecutive(latents.document, return_inverse=True)
    present = owners.tolist()
    doc = doc[latents.number]
    starts = (torch.cumsum(torch.bincount(doc, minlength=len(present)), 0) - torch.bincount(doc)).tolist()
    spans = [
        Span("text", start, prompt.lengths[owner], 0, mode="memory")
        for owner, start in zip(present, starts) if prompt.lengths[owner]
    ]  # fmt: skip
    memory = prompt.memory
    if len(present) < len(prompt.lengths):
        pieces = memory.split(prompt.lengths)
        memory = torch.cat([memory[:0], *(pieces[owner] for owner in present)])
    zeros = torch.zeros(len(latents), dtype=torch.long, device=device)
    stream = Sequence(zeros, zeros.to(torch.uint8), latents.position, doc, zeros, zeros.float(), spans)
    return compile_layout(stream, AttentionRule("full", memory="all")), memory


def _check(config: Denoiser.Config) -> None:
    """Raise ValueError for parts that do not fit."""
    block, width = config.backbone.block, config.backbone.width
    if config.encoders or len({codec.width for codec in config.codecs.values()}) != 1:
        raise ValueError("a denoiser reads items through codecs, with latents of one width, and through no encoders: "
                         f"given codecs {list(config.codecs)}, encoders {list(config.encoders)}")  # fmt: skip
    if any(codec.codes for codec in config.codecs.values()):
        raise ValueError("a denoiser diffuses latents, and a codec of codes has none: give one without a codebook")
    if block.modulation is None or config.backbone.vocab:
        raise ValueError("the backbone of a denoiser is modulated and has no vocabulary: see nn.backbone.dit")
    if (config.sections is None) == (config.backbone.rope is None):
        raise ValueError("tokens have one kind of position: give either `sections`, or the backbone a rope")
    if config.sections is not None and sum(config.sections) != width:
        raise ValueError(f"sections {config.sections} must sum to the backbone's width {width}")
    if block.cross is not None and (block.cross.memory or width) != config.text.width:
        raise ValueError(f"cross-attention reads text states of width {config.text.width}: set its `memory`")
    whole = width * config.conditions
    if not config.project and config.text.width != whole:
        raise ValueError(f"labels of width {config.text.width} are added to a condition of {whole}: set `project`")
