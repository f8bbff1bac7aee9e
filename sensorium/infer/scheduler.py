"""Who is read and who says a token next: requests wait, are admitted as slots allow, and share what begins alike."""

from __future__ import annotations

from collections import deque

from sensorium.errors import UserError
from sensorium.infer.decoding import MANY, Decoder
from sensorium.infer.request import Request

CHUNK = 512  # tokens of prompts that are read between two steps of those who wait for their next token


class Scheduler:
    """The one generation loop: `submit` requests, call `step` until they are done, look at them meanwhile.

    tokens  of prompts in one pass while nobody waits for a token; else CHUNK at most (chunked prefill: Agrawal et al.
            2023, Sarathi, arXiv 2308.16369)
    items   most pictures (or other media) in one pass
    """

    def __init__(self, decoder: Decoder, tokens: int, items: int) -> None:
        self.decoder, self.tokens, self.items = decoder, tokens, items
        self.waiting: deque[Request] = deque()
        self._pass: list[Request] = []
        self._suspects: set[int] = set()

    def submit(self, request: Request) -> None:
        """Raises UserError for a request that takes more slots than there are."""
        if request.slots > self.decoder.cache.slots:
            raise UserError(f"a guided request takes {request.slots} slots of the cache, the engine has "
                            f"{self.decoder.cache.slots}: give it more")  # fmt: skip
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request as it is; its slots are free at once."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.decoder.active:
            self.decoder.remove(request)
        request.cancel()

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.decoder.active

    def step(self) -> None:
        """Admit, read a piece of what is to be read, and let everybody who can say one token."""
        decoder = self.decoder
        self._admit()
        if decoder.reading:
            room = min(self.tokens, CHUNK) if decoder.saying else self.tokens
            self._pass = decoder.reading
            alone = any(id(one) in self._suspects for one in self._pass)
            if alone:
                self._pass = self._pass[: self._pass[0].slots]
            decoder.read(room, self.items, 1 if alone else MANY)
        if decoder.saying:
            self._pass = decoder.active[: decoder.saying]
            decoder.step()

    def blamed(self) -> list[Request]:
        """After a step that failed: whose pass it was, to be cancelled by the caller. Where several prompts were read
        together nobody is blamed yet: they are read one by one next."""
        reading = [one for one in self._pass if one.rest is not None]
        if len(reading) > self._pass[0].slots and id(self._pass[0]) not in self._suspects:
            self._suspects = {id(one) for one in reading}
            return []
        leading = {id(one.against) for one in self._pass}
        return [one for one in self._pass if id(one) not in leading]

    def _admit(self) -> None:
        """Whoever has a slot, in their order; who begins as somebody that is being read waits until that is read."""
        later: list[Request] = []
        try:
            while self.waiting and self.waiting[0].slots <= self.decoder.free:
                request = self.waiting.popleft()
                self._pass = [request]
                if self.decoder.coming(request):
                    later.append(request)
                else:
                    self.decoder.enter([request])
        finally:
            self.waiting.extendleft(reversed(later))
