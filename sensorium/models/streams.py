"""Streams that run in parallel: every step has an id of each, and a small decoder says them one after another."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.backbone import Backbone
from sensorium.nn.part import Part


class Streams(Part):
    """Further streams beside a backbone's own (Moshi, arXiv 2410.00037, section 3.4; RQ-Transformer, 2203.01941).

    A step of K streams is one token of the backbone: their embeddings are summed. From its state the backbone's head
    says the first stream of the next step, its text; then a depth decoder says the others, each given those before.
    """

    class Config(Value):
        """codes   how many codes each further stream has; one more id stands for none
        delays  steps by which each of them comes late, so that it is said when the others' earlier codes are known
                (acoustic delay: there, section 3.4.3)
        says    how many of the further streams the model says, the first ones; the rest is heard from outside
        depth   the decoder's blocks, without vocabulary
        """

        codes: tuple[int, ...] = Field(min_length=1)
        delays: tuple[int, ...]
        says: int = Field(ge=1)
        depth: Backbone.Config

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if len(self.delays) != len(self.codes) or any(delay < 0 for delay in self.delays):
                raise ValueError(f"each of {len(self.codes)} streams has a delay of 0 or more: given {self.delays}")
            if self.says > len(self.codes) or self.depth.vocab:
                raise ValueError(f"of {len(self.codes)} streams {self.says} are said, by blocks without vocabulary "
                                 f"(given {self.depth.vocab})")  # fmt: skip
            return self

        def delayed(self, ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
            """ids (T, K) as they sound together -> (1 + T + longest delay, K) as they are read, and their weight.

            The first step is `first` and no codes; codes that are not there yet, or no longer, weigh nothing, and
            neither does the first stream where it has ended (it is `first` there again).
            """
            shifts = (0, *self.delays)
            steps = 1 + len(ids) + max(shifts)
            none = torch.tensor([first, *self.codes], device=ids.device)
            read, weight = none.repeat(steps, 1), torch.zeros(steps, len(shifts), device=ids.device)
            for stream, shift in enumerate(shifts):
                place = slice(1 + shift, 1 + shift + len(ids))
                read[place, stream] = ids[:, stream]
                weight[place, stream] = float(stream <= self.says)
            return read, weight

        def together(self, read: Tensor) -> Tensor:
            """The inverse of `delayed`: (1 + T + longest delay, K) -> (T, K)."""
            shifts = (0, *self.delays)
            length = len(read) - 1 - max(shifts)
            return torch.stack([read[1 + by : 1 + by + length, stream] for stream, by in enumerate(shifts)], dim=1)

    def __init__(self, config: Config, words: int, width: int) -> None:
        """words, width: of the backbone."""
        super().__init__()
        self.config = config
        inner = config.depth.width
        self.tables = nn.ModuleList(nn.Embedding(codes + 1, width) for codes in config.codes)
        said = config.codes[: config.says]
        self.enter = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in said)
        self.before = nn.ModuleList(nn.Embedding(size, inner) for size in (words, *(codes + 1 for codes in said[:-1])))
        self.depth: Backbone = config.depth.build()
        self.heads = nn.ModuleList(nn.Linear(inner, codes, bias=False) for codes in said)
        for module in (*self.tables, *self.enter, *self.before, *self.heads):
            nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]

    def embed(self, ids: Tensor) -> Tensor:
        """ids (T, K - 1) of the further streams -> (T, D), summed."""
        return torch.stack([table(ids[:, stream]) for stream, table in enumerate(self.tables)]).sum(0)

    def read(self, stream: int, hidden: Tensor, before: Tensor) -> Tensor:
        """What the depth decoder reads before it says a further stream (0, 1, ...): the state hidden (N, D), and what
        the stream before it says, before (N) -> (N, depth width)."""
        return self.enter[stream](hidden) + self.before[stream](before)

    def logits(self, hidden: Tensor, said: Tensor) -> list[Tensor]:
        """Of each further stream that is said (N, codes), together: hidden (N, D), said (N, K) the next step's ids."""
        count, streams = len(hidden), self.config.says
        x = torch.stack([self.read(stream, hidden, said[:, stream]) for stream in range(streams)], dim=1)
        rows = torch.arange(count * streams, device=hidden.device).view(count, streams)
        position = torch.arange(streams, device=hidden.device).repeat(count)[:, None].expand(-1, 3)
        layout = Layout(rows, None, None, True, position, lengths=[streams] * count)
        states = self.depth(x.flatten(0, 1), layout).view(count, streams, -1)
        return [head(states[:, stream]) for stream, head in enumerate(self.heads)]
