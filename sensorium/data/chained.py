"""Several samples in one document: interleaved pictures and texts, as few-shot prompts are written."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sensorium.data.builtin_names import draw
from sensorium.data.source import Source, SourceConfig
from sensorium.sequence import Sample, Segment


class Chained(SourceConfig):
    """Document i is sample i of `source` behind up to `most` - 1 others of it, drawn at random, each a turn before it.

    How many there are is drawn from `fewest` to `most`. The branches of a sample become turns one after another.
    """

    source: SourceConfig
    fewest: int = Field(default=1, ge=1)
    most: int = Field(default=4, ge=1)
    seed: int = 0

    def build(self) -> _Chained:
        return _Chained(self)


class _Chained:
    def __init__(self, config: Chained) -> None:
        self.config = config
        self.rows: Source = config.source.build()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        rng = draw("chained", config.seed, index)
        count = rng.randint(config.fewest, max(config.fewest, config.most))
        others = [rng.randrange(len(self.rows)) for _ in range(count - 1)]
        samples = [self.rows[other] for other in (*others, index)]
        last = samples[-1]
        segments = tuple(part for sample in samples for part in in_turns(sample))
        return replace(last, segments=segments, id=f"chained/{config.seed}/{last.id}", cost=None)


def in_turns(sample: Sample) -> list[Segment]:
    """The segments of a sample, its branches one after another."""
    ordered = sorted(sample.segments, key=lambda segment: segment.branch)
    return [replace(segment, branch=0) if segment.branch else segment for segment in ordered]
