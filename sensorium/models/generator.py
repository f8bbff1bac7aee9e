"""What makes the pictures of an answer: states at its signal tokens become the condition of a denoiser.

    backbone states at the signals -- connector -- condition -- denoiser -- picture
                                                       |
                     caption -- denoiser's own text stack: where the condition is to be

NExT-GPT (Wu et al. 2023, arXiv 2309.05519, section 3), GILL (Koh et al. 2023, arXiv 2305.17216).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sensorium.codecs.tokens import Signals
from sensorium.config import Config as Value
from sensorium.connectors.base import Connector
from sensorium.models.denoiser import Denoiser
from sensorium.models.prompt import Prompt
from sensorium.nn.part import Features, Grid, Part
from sensorium.sequence import KINDS, Item, Sequence, Span


@dataclass(slots=True)
class Generated:
    """N items that a generator is to make: what it is told, and what it should make of it.

    condition  (N, K, W) the connector's result, in place of the states of the denoiser's own text
    """

    generator: Generator
    items: list[Item]
    condition: Tensor

    def distances(self) -> Tensor:
        """(N) mean squared error to the denoiser's own states of the captions.

        Token by token where all its texts have one length (`Denoiser.Config.length`), which is then K; otherwise there
        is one mean of all states for each item, and the error is that of the mean.
        """
        with torch.no_grad():
            own = self.generator.captions(self.items)
        made = self.condition.float()
        if not self.generator.config.denoiser.length:
            made = made.mean(1, keepdim=True)
        return (made - own.float()).square().mean((1, 2))

    def errors(self) -> Tensor:
        """(N) squared error of what the denoiser predicts under the condition, the mean over the numbers of an item."""
        if not self.items:
            return self.condition.float().sum((1, 2))
        packed = self.generator.documents(self.items)
        denoised = self.generator.denoiser(packed, prompt=self.generator.prompt(self.condition))
        each = (denoised.output - denoised.target).square().mean(1)
        sums = each.new_zeros(len(self.items)).index_add(0, denoised.number, each)
        return sums / torch.bincount(denoised.number, minlength=len(self.items))


class Generator(Part):
    """An output connector in front of a denoiser, which is a wiring of its own."""

    class Config(Value):
        """connector  states of signals -> K tokens of the width of the denoiser's text states
        denoiser   what makes the item; where it was trained in a stage of its own, that is its wiring
        signals    the ids that call it
        layers     states that are read besides the last: after so many blocks of the backbone
        size       of what it makes: (height, width), or (frames, height, width)
        """

        connector: Connector.Config
        denoiser: Denoiser.Config
        signals: Signals
        layers: tuple[int, ...] = ()
        size: tuple[int, ...] = Field(min_length=2, max_length=3)

        @property
        def grid(self) -> Grid:
            """How the states of one item are laid out: a row for each layer, a column for each signal."""
            return Grid(1 + len(self.layers), self.signals.count)

        @property
        def tokens(self) -> int:
            """What the connector makes of them."""
            return self.connector.num_tokens(self.grid)

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if self.denoiser.length not in (0, self.tokens):
                raise ValueError(f"the denoiser's texts have {self.denoiser.length} tokens, the output connector makes "
                                 f"{self.tokens}: give both one number")  # fmt: skip
            return self

    def __init__(self, config: Config, width: int) -> None:
        """width: of the backbone's states."""
        super().__init__()
        self.config = config
        self.connector: Connector = config.connector.build(width, config.denoiser.text.width)
        self.denoiser: Denoiser = config.denoiser.build()

    def condition(self, states: Tensor) -> Tensor:
        """states (N, layers, signals, D) -> (N, K, W)."""
        made = self.connector(Features(states.flatten(0, 2), [self.config.grid] * len(states)))
        return made.view(len(states), self.config.tokens, self.config.denoiser.text.width)

    def prompt(self, condition: Tensor) -> Prompt:
        """condition (N, K, W) -> what the denoiser is told in place of a text."""
        count, length, _ = condition.shape
        condition = condition.to(self.denoiser.reference().dtype)
        pooled = condition[:, -1] if self.config.denoiser.pool == "last" else condition.mean(1)
        asked = torch.ones(count, dtype=torch.bool, device=condition.device)
        return Prompt(self.denoiser.prompt(pooled, asked), condition.flatten(0, 1), [length] * count)

    def captions(self, items: Many[Item]) -> Tensor:
        """(N, K, W) the denoiser's own states of the items' texts; (N, 1, W) their means where lengths differ."""
        width = self.config.denoiser.text.width
        if not items:
            return self.denoiser.reference().new_zeros(0, self.config.tokens, width)
        prompt = self.denoiser.read(self.documents(items))
        if self.config.denoiser.length:
            return prompt.memory.view(len(items), -1, width)
        if not all(prompt.lengths):
            raise ValueError("an item that a generator is to make has no caption: give its sample words")
        return torch.stack([states.mean(0, keepdim=True) for states in prompt.memory.split(prompt.lengths)])

    def documents(self, items: Many[Item]) -> Sequence:
        """The denoiser's own documents: each an item in its latent span, and the text of the item."""
        device = self.denoiser.reference().device
        [kind, *_] = self.denoiser.config.codecs
        parts = []
        for item in items:
            tokens = self.denoiser.config.plan(kind, item.shape).tokens
            text = torch.zeros(0, dtype=torch.long) if item.text is None else item.text
            ids = torch.cat([text.new_zeros(tokens), text])
            modality = torch.zeros(len(ids), dtype=torch.uint8)
            modality[:tokens] = KINDS.index(kind)
            zeros = torch.zeros(len(ids), dtype=torch.long)
            position = torch.arange(len(ids))[:, None].expand(-1, 3)
            span, own = Span(kind, 0, tokens, 0, mode="latent"), replace(item, text=None)
            parts.append(
                Sequence(ids.cpu(), modality, position, zeros, zeros, zeros.float(), [span], {kind: [own]})
            )  # fmt: skip
        return Sequence.pack(parts).to(device)

    def canvases(self, count: int) -> Sequence:
        """`count` documents of the denoiser with an item of the right size that is not there yet, and no text."""
        return self.documents([Item(None, self.config.size)] * count)
