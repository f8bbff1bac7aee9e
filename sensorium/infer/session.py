"""A conversation that keeps what it has read: each turn costs its own tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from typing import Any

from sensorium.data.media import PictureFile
from sensorium.infer.decoding import Decoder, tail
from sensorium.infer.engine import GREEDY, Engine
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Media, Sample, Segment, Sequence

Mark = Any
"""What one cached token stands for: its id, or (kind, content key, place inside the span)."""


class Session:
    """Several turns, several pictures, one slot of a cache that grows with the conversation.

    The conversation is rendered anew for each turn, as a fresh request would be, and compared with what the cache
    holds. Only what differs is read: normally the new turn; everything behind the first difference where a sampled
    answer has other tokens than its text, or an old turn was dropped to fit the context.

    segments  the conversation so far, answers included
    picture   makes Media of what `send` is given as an image
    """

    def __init__(
        self,
        engine: Engine,
        segments: Many[Segment] = (),
        sampling: Sampling = GREEDY,
        picture: Callable[[Any], Media] = PictureFile,
    ) -> None:
        self.engine, self.sampling, self.picture = engine, sampling, picture
        self.segments = tuple(segments)
        self._first = self.segments
        self._decoder = Decoder(engine.model, engine.cache(1))
        self._held: list[Mark] = []

    def send(self, text: str, images: Many[Any] = (), sampling: Sampling | None = None) -> Iterator[str]:
        """Ask the next question about all pictures so far; the answer comes in pieces.

        Raises MediaError for a picture that cannot be read, before anything is asked: the conversation is then as it
        was. The turn becomes part of the conversation with its answer, or the part of it that was read.
        """
        pictures = [image if isinstance(image, Media) else self.picture(image) for image in images]
        turn = (*(Segment("image", image, role="user") for image in pictures), Segment("text", text, role="user"))
        sampling = sampling or self.sampling
        sample = Sample((*self.segments, *turn))
        plan = self.engine.prompt(sample, sampling, items=False)
        marks = _marks(plan)
        common = self._shared(marks, plan)
        rest = tail(plan, common)
        media = {segment.data.key(): segment.data for segment in sample.segments if segment.kind != "text"}
        load = self.engine.renderer.load
        if load is not None:
            rest.items = {kind: [load(kind, media[item.key]) for item in held] for kind, held in rest.items.items()}
        [rest] = self.engine.prepare([rest])
        request = self.engine.request(rest, sampling, sampling.seed, common)
        request.seen = plan.ids[plan.modality == 0].tolist()
        return self._answer(sample, marks, request)

    def _answer(self, sample: Sample, marks: list[Mark], request: Any) -> Iterator[str]:
        cache = self._decoder.cache
        cache.truncate(0, request.cached)
        try:
            yield from self.engine.run(self._decoder, request)
        finally:
            self._held = (marks + request.ids)[: cache.lengths[0]]
            if request.ids or request.done:
                self.segments = (*sample.segments, Segment("text", request.text.text, role="assistant"))

    def _shared(self, marks: list[Mark], plan: Sequence) -> int:
        """How many leading tokens the cache holds already; the last token is always read, an answer needs its state."""
        limit = min(len(self._held), len(marks) - 1)
        common = next((place for place in range(limit) if self._held[place] != marks[place]), limit)
        for span in plan.spans:
            if span.mode != "memory" and span.start < common < span.start + span.length:
                common = span.start
        late = any(span.mode == "memory" and span.start >= common for span in plan.spans)
        rule = self.engine.model.config.rule
        # what was read before would have read what comes now
        return 0 if (late and rule.memory == "all") or rule.kind == "prefix" else common

    def reset(self) -> None:
        """Back to the beginning of the conversation."""
        self.segments = self._first


def _marks(sequence: Sequence) -> list[Mark]:
    marks: list[Mark] = sequence.ids.tolist()
    for span in sequence.spans:
        key = sequence.items[span.kind][span.item].key
        if span.mode == "memory":  # what stands beside a token is part of what the token stands for
            marks[span.start] = (marks[span.start], span.kind, key)
            continue
        for place in range(span.length):
            marks[span.start + place] = (span.kind, key, place)
    return marks
