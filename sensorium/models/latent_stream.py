"""What a wiring has whose stream holds latents: where they stand, how they are noised, enter and leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sensorium.models.latent_head import LatentHead
from sensorium.models.latents import Denoised, Latents, Noised, locate, noised, numbers, patched, tokens_of
from sensorium.models.placing import places
from sensorium.models.wiring import Wiring
from sensorium.sequence import CLEAN, Plan, Sequence, Span


class LatentStream(Wiring):
    """Base of `Fused`: the part of it that BAGEL, Transfusion and pi0 need."""

    class Config(Wiring.Config):
        """latents  kinds whose items are latents of their codec in the stream, which the stack denoises. An encoder may
        read the same items: its tokens then stand behind the latent
        """

        latents: dict[str, LatentHead.Config] = {}

        def denoised(self, kind: str, shape: tuple[int, ...], together: bool, read: tuple[Plan, ...]) -> Plan:
            """A latent, noised and as it is where the head wants both, then what an encoder reads of the item."""
            owner = self.owner(kind)
            head = self.latents[owner]
            given = Plan(patched(self.codecs[owner].grid(shape), head.patch).tokens, "latent", head.route, together,
                         time=CLEAN)  # fmt: skip
            if not head.says:
                return replace(given, also=read)
            if not head.clean:
                return replace(given, time=None, also=read)
            return replace(given, time=None, visible=False, learned=True, also=(given, *read))

        def check_latents(self) -> None:
            """Latents need a codec that makes some, and one way to prepare what an encoder reads as well."""
            for kind in self.latents:
                if kind not in self.codecs or self.codecs[kind].codes:
                    raise ValueError(f"latents of kind {kind} are those of a codec without a codebook: give it one "
                                     f"among `codecs` (given {sorted(self.codecs)})")  # fmt: skip
                if kind in self.encoders and self.encoders[kind].transform != self.codecs[kind].transform:
                    raise ValueError(f"an item of kind {kind} is prepared once, for its encoder and for its codec: "
                                     "give both one transform")  # fmt: skip

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._heads = config.latents
        self.latents = nn.ModuleDict({kind: self._build(kind) for kind in config.latents})

    def _build(self, kind: str) -> LatentHead:
        stack, head = self.config.stack, self._heads[kind]
        width = stack.block.width_of(head.route, stack.width)
        return head.build(self.config.codecs[kind].width, width, stack.width)

    def locate(self, kind: str, sequence: Sequence) -> Latents:
        """Where the latent spans of a kind stand."""
        spans = [span for span in sequence.spans if span.kind == kind and span.mode == "latent"]
        owner = self.config.owner(kind)
        grids = [self.config.codecs[owner].grid(item.shape) for item in sequence.items.get(kind, [])]
        return locate(replace(sequence, spans=spans), {kind: grids}, self._heads[owner].patch)

    def clean(self, kind: str, sequence: Sequence, spans: list[Span]) -> list[Tensor]:
        """(N, P) float32 of each of these spans: the latent of its item as it is."""
        both = not self.config.coded(kind)
        wanted = sorted({span.item for span in spans})
        items = [sequence.items[kind][item] for item in wanted]
        items = [replace(item, features=item.latents) for item in items] if both else items
        made = dict(zip(wanted, tokens_of(self.codec(kind), items, self.head(kind).config.patch)))
        return [made[span.item] for span in spans]

    def noise(self, kind: str, sequence: Sequence, noise: Tensor | None = None, time: Tensor | None = None) -> Noised:
        """The latents of a kind that are learned, noised at random times or those that spans say.

        noise (N, P), time (S): drawn from torch's generator unless they are given
        """
        head, spans = self.head(kind), noisy(self.locate(kind, sequence).spans)
        device, config = sequence.ids.device, head.config
        clean = torch.cat([torch.zeros(0, head.numbers, device=device), *self.clean(kind, sequence, spans)])
        return noised(clean, spans, numbers(spans).to(device), config.schedule, config.predictor, noise, time)

    def enter(
        self, x: Tensor, sequence: Sequence, noised: Mapping[str, Noised]
    ) -> tuple[Tensor, dict[str, tuple[Noised, Tensor, Tensor]]]:
        """Latents are placed in the stream x (T, D), noised and clean ones.

        Of each kind that is said also the noised ones, (N) where they stand, and (N) of which span each token is.
        """
        placed = {}
        for kind in self.config.kinds:
            if self.config.owner(kind) not in self._heads:
                continue
            latents, head = self.locate(kind, sequence), self.head(kind)
            given = noised.get(kind) or self.noise(kind, sequence)
            moving, still = noisy(latents.spans), [span for span in latents.spans if span.time == CLEAN]
            pieces = dict(zip(map(id, moving), given.x.split([span.length for span in moving])))
            pieces |= dict(zip(map(id, still), self.clean(kind, sequence, still)))
            times = dict(zip(map(id, moving), given.time))
            rest = given.time.new_tensor(head.config.schedule.clean)
            values = torch.cat([given.x[:0], *(pieces[id(span)] for span in latents.spans)])
            time = torch.stack([rest, *(times.get(id(span), rest) for span in latents.spans)])[1:]
            tokens = head(values, time, latents).to(x.dtype)
            x = x.index_copy(0, latents.index, tokens) if len(tokens) else x + tokens.sum()
            if head.config.says:
                placed[kind] = (given, places(moving, x.device), numbers(moving).to(x.device))
        return x, placed

    def leave(self, kind: str, hidden: Tensor, noised: Noised, index: Tensor, number: Tensor) -> Denoised:
        """What the states hidden (T, D) say of noised latents that stand at index (N)."""
        output = self.head(kind).predict(hidden.index_select(0, index))
        return Denoised(output, noised.target, noised.time, number)

    def head(self, kind: str) -> LatentHead:
        """How latents of a kind enter and leave."""
        head = self.latents[self.config.owner(kind)]
        assert isinstance(head, LatentHead)
        return head


def noisy(spans: list[Span]) -> list[Span]:
    """Of latent spans those that are noised."""
    return [span for span in spans if span.time != CLEAN]
