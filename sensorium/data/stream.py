"""A mixture whose order is its own: which sample comes n-th does not depend on who trains on it."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from sensorium.data.mixture import Mixture, MixtureSource
from sensorium.data.source import SourceConfig
from sensorium.sequence import Sample


class Stream(Mixture):
    """A mixture in an order given with it, entered behind its first samples.

    A stage's order else depends on the run's seed and on which stage it is, so designs with unlike stages would see
    unlike samples.

    order  what decides the order, in place of the run's seed
    skip   samples that others took before: those of the stages before, say
    """

    order: int = 0
    skip: int = Field(default=0, ge=0)

    @classmethod
    def over(cls, source: SourceConfig, order: int, skip: int = 0) -> Stream:
        """The source, or the parts of the mixture that it is, in this order."""
        mixture = Mixture.of(source)
        fields = {name: getattr(mixture, name) for name in Mixture.model_fields}
        return cls(**fields, order=order, skip=skip)

    def build(self, cost: Callable[[Sample], float] | None = None) -> StreamSource:
        return StreamSource(self, cost)


class StreamSource(MixtureSource):
    """The built stream: position 0 of a stage is place `skip` of the order, and no seed but its own counts."""

    config: Stream

    def stream(self, position: int, epoch: int) -> tuple[int, int]:
        if not 0 <= position < self.samples:
            raise IndexError(f"position {position} of an epoch of {self.samples} samples")
        epoch, place = divmod(epoch * self.samples + position + self.config.skip, self.samples)
        return super().stream(place, epoch)

    def stream_row(self, part: int, stream: int, seed: int) -> int:
        return super().stream_row(part, stream, self.config.order)
