"""A conversation: each turn costs its own tokens only, since the engine keeps what it has read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from typing import Any

from sensorium.data.media import PictureFile
from sensorium.infer.engine import GREEDY, Engine
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Media, Sample, Segment


class Session:
    """Several turns, several pictures.

    The conversation is rendered anew for each turn, as a fresh request would be, and begins as what a slot of the
    engine's cache still holds. Only what differs is read: normally the new turn; everything behind the first difference
    where a sampled answer has other tokens than its text, or an old turn was dropped to fit the context.

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

    def send(self, text: str, images: Many[Any] = (), sampling: Sampling | None = None) -> Iterator[str]:
        """Ask the next question about all pictures so far; the answer comes in pieces.

        Raises MediaError for a picture that cannot be read, before anything is asked: the conversation is then as it
        was. The turn becomes part of the conversation with its answer, or the part of it that was read.
        """
        pictures = [image if isinstance(image, Media) else self.picture(image) for image in images]
        turn = (*(Segment("image", image, role="user") for image in pictures), Segment("text", text, role="user"))
        sample = Sample((*self.segments, *turn))
        return self._answer(sample, self.engine.open(sample, sampling or self.sampling))

    def _answer(self, sample: Sample, request: Request) -> Iterator[str]:
        try:
            yield from self.engine.run(request)
        finally:
            if request.ids or request.finish not in (None, "cancelled"):
                self.segments = (*sample.segments, Segment("text", request.text.text, role="assistant"))

    def reset(self) -> None:
        """Back to the beginning of the conversation."""
        self.segments = self._first
