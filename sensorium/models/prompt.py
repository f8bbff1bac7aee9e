"""What a denoiser is told: the time, and what is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.backbone import Backbone
from sensorium.sequence import KINDS, Sequence

FREQUENCIES = 256
"""Numbers in which a time is written before it is embedded (DiT, arXiv 2212.09748, section 3.2)."""


@dataclass(slots=True)
class Prompt:
    """What the N documents of a sequence ask for.

    pooled   (N, D) one vector each
    memory   (M, text width) states of their tokens, document by document
    lengths  how many of these each document has, 0 where it asks for nothing
    """

    pooled: Tensor
    memory: Tensor
    lengths: list[int]

    @classmethod
    def join(cls, parts: list[Prompt]) -> Prompt:
        """The prompts of one sequence after another."""
        pooled, memory = torch.cat([part.pooled for part in parts]), torch.cat([part.memory for part in parts])
        return cls(pooled, memory, [length for part in parts for length in part.lengths])


class TimeEmbedding(nn.Module):
    """time (S) in steps of the schedule -> (S, D): cosines and sines of it, and two linear layers.

    closed  the periods run from 2 pi to 20,000 pi and reach it, as in DDPM's code; otherwise they stop before, as in
            that of GLIDE and DiT
    """

    def __init__(self, width: int, closed: bool = False) -> None:
        super().__init__()
        self.closed = closed
        self.up = nn.Linear(FREQUENCIES, width)
        self.down = nn.Linear(width, width)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, time: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        exponent = torch.arange(half, device=time.device, dtype=torch.float32) / (half - self.closed)
        angle = time.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
        wave = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(wave)))


class PromptEmbedding(nn.Module):
    """The state that stands for a text -> the condition's width, and what stands where nothing is asked for."""

    def __init__(self, text_width: int, width: int, project: bool) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, width) if project else None
        if self.project is not None:
            nn.init.normal_(self.project.weight, std=text_width**-0.5)
            nn.init.zeros_(self.project.bias)
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, pooled: Tensor, asked: Tensor) -> Tensor:
        """pooled (N, text width), asked (N) bool -> (N, D)."""
        made = pooled if self.project is None else self.project(pooled)
        return torch.where(asked[:, None], made, self.nothing.to(made.dtype))


def read(
    stack: Backbone, embed: PromptEmbedding, sequence: Sequence, rule: AttentionRule, last: bool,
    dropped: Tensor | None, length: int = 0,
) -> Prompt:  # fmt: skip
    """The texts of packed documents through the stack that reads them.

    last     the state of a text's last token stands for it, not the mean of all
    dropped  (N) bool, documents whose text is left out; it is read all the same, so that nothing depends on the draw
    length   texts are cut or filled with id 0 to so many tokens; 0: they are as long as they are
    """
    documents = sequence.documents
    places = (sequence.modality == KINDS.index("text")).nonzero(as_tuple=True)[0]
    ids, doc = sequence.ids[places], sequence.doc[places].long()
    counts = torch.bincount(doc, minlength=documents)
    if length:
        ids, doc, counts = _filled(ids, doc, counts, length)
    asked = counts > 0 if dropped is None else (counts > 0) & ~dropped
    states = stack.embed_tokens(ids)
    if len(ids):
        states = stack(states, compile_layout(_texts(ids, doc, counts), rule))
    if last:
        rows = (torch.cumsum(counts, 0) - 1).clamp(min=0)
        pooled = states.index_select(0, rows) if len(ids) else states.new_zeros(documents, states.shape[1])
    else:
        pooled = states.new_zeros(documents, states.shape[1]).index_add(0, doc, states)
        pooled = pooled / counts.clamp(min=1)[:, None].to(states.dtype)
    kept = asked[doc]
    return Prompt(embed(pooled, asked), states[kept], torch.where(asked, counts, torch.zeros_like(counts)).tolist())


def _filled(ids: Tensor, doc: Tensor, counts: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids (T), doc (T), counts (N) of texts -> the same with `length` tokens of every text that has any."""
    place = torch.arange(len(ids), device=ids.device) - (torch.cumsum(counts, 0) - counts)[doc]
    table = ids.new_zeros(len(counts), length)
    kept = place < length
    table[doc[kept], place[kept]] = ids[kept]
    some = counts > 0
    owners = some.nonzero(as_tuple=True)[0].repeat_interleave(length)
    return table[some].flatten(), owners, torch.where(some, length, 0)


def _texts(ids: Tensor, doc: Tensor, counts: Tensor) -> Sequence:
    """The text tokens of every document that has some, counted from its first."""
    first = torch.cumsum(counts, 0) - counts
    number = torch.cumsum(counts > 0, 0) - 1
    position = (torch.arange(len(ids), device=ids.device) - first[doc])[:, None].expand(-1, 3).contiguous()
    zeros = torch.zeros_like(doc)
    return Sequence(ids, zeros.to(torch.uint8), position, number[doc], zeros, zeros.float())
