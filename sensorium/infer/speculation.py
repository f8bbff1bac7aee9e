"""Guesses at how an answer goes on, which a step of the model verifies: the same is said, sooner."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from sensorium.errors import UserError
from sensorium.infer.choosing import Chooser
from sensorium.infer.cutting import Mark
from sensorium.infer.decoding import Decoder, cache_of
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling, Text
from sensorium.models.wiring import Wiring
from sensorium.sequence import Sequence
from sensorium.tokenizer import Tokenizer


class PromptLookup:
    """An answer that repeats its prompt or itself goes on as it went on there (prompt lookup: Saxena 2023; over a
    reference text: Yang et al. 2023, arXiv 2304.04487).

    longest, shortest  tokens of the end of the answer that are looked for, the longest first
    tokens             that are guessed at once
    """

    def __init__(self, longest: int = 4, shortest: int = 2, tokens: int = 6) -> None:
        if not 1 <= shortest <= longest or tokens < 1:
            raise ValueError(
                f"ends of {shortest} to {longest} tokens and {tokens} guessed ones: give at least 1 of each"
            )
        self.longest, self.shortest, self.tokens = longest, shortest, tokens

    def draft(self, requests: Many[Request]) -> list[list[int]]:
        return [self.following([*request.words, *request.ids]) for request in requests]

    def following(self, said: list[int]) -> list[int]:
        """What may follow the ids so far."""
        for length in range(min(self.longest, len(said) - 1), self.shortest - 1, -1):
            end = said[-length:]
            for start in range(len(said) - length - 1, -1, -1):
                if said[start : start + length] == end:
                    return said[start + length :][: self.tokens]
        return []

    def rest(self) -> None:
        """Nothing is kept."""


class DraftModel:
    """A smaller model of the same tokenizer says what it would say next, the likeliest token each time (Leviathan et
    al. 2023, arXiv 2211.17192, Chen et al. 2023, arXiv 2302.01318).

    Whatever it reads besides, it reads the words of a prompt alone, without pictures: a language model guesses about as
    well what a model says of a picture (Gagrani et al. 2024, arXiv 2404.08856). It runs in a decoder of its own: what
    a slot of that holds of a conversation is kept as long as it proves right, so each guess reads what is new.

    model      answers in words, from left to right
    tokenizer  its tokenizer
    target     the tokenizer of the model whose answers are guessed
    tokens     that are guessed at once
    slots      conversations that are held; of more that are asked for at once the earlier ones are read again

    Raises UserError where the two tokenizers do not mean the same by an id, and for a model that cannot draft.
    """

    def __init__(
        self, model: Wiring, tokenizer: Tokenizer, target: Tokenizer, tokens: int = 4, slots: int = 16
    ) -> None:
        if tokens < 1 or slots < 1:
            raise ValueError(f"{tokens} tokens guessed at once for {slots} conversations: give at least 1 of each")
        config = model.config
        if not config.speaks or config.reads_source or model.streams is not None or config.rule.kind != "causal":
            raise UserError("the draft model does not go on with a text, word by word: give a causal language model")
        check_same(tokenizer, target)
        self.model, self.tokenizer, self.tokens, self.slots = model, tokenizer, tokens, slots
        self._words = min(len(tokenizer), len(target))
        self._most = config.stack.positions or None
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """The draft model's own cache and passes, made when something is guessed first."""
        if self._decoder is None:
            self.model.eval()
            device = self.model.reference().device
            cache = cache_of(self.model, self.slots, 512)
            self._decoder = Decoder(self.model, cache, lambda texts: [text.to(device) for text in texts])
        return self._decoder

    def rest(self) -> None:
        """Give back the memory of what was read."""
        self._decoder = None

    def draft(self, requests: Many[Request]) -> list[list[int]]:
        own = [self._own(request) for request in requests]
        asked = [one for one in own if one is not None]
        for first in range(0, len(asked), self.slots):
            self._answer(asked[first : first + self.slots])
        return [[] if one is None else self._known(one.ids) for one in own]

    def _answer(self, asked: list[_Own]) -> None:
        decoder = self.decoder
        try:
            decoder.admit(asked)
            while decoder.saying:
                decoder.step()
        finally:
            for one in [one for one in asked if one in decoder.active]:
                decoder.remove(one)

    def _own(self, request: Request) -> _Own | None:
        """The request as the draft model is asked it: a text that goes on, for some tokens. None where it is too long
        for this model, or nothing was said that it knows."""
        said = self._shared([*request.words, *request.ids])
        tokens = min(self.tokens, request.room)
        if not said or (self._most is not None and len(said) + tokens > self._most):
            return None
        sampling = Sampling(max_tokens=tokens)
        chooser = Chooser(sampling, self.tokenizer, [], 0, request.stops)
        return _Own(_text(said), sampling, Text(self.tokenizer), request.stops, chooser, said)

    def _shared(self, ids: list[int]) -> list[int]:
        """Those that both tokenizers know: one may have marks, for pictures say, that the other lacks."""
        return [id for id in ids if id < self._words] if max(ids, default=0) >= self._words else ids

    def _known(self, ids: list[int]) -> list[int]:
        """Up to the first that the other tokenizer does not know."""
        unknown = (place for place, id in enumerate(ids) if id >= self._words)
        return ids[: next(unknown, len(ids))]


class _Own(Request):
    """What the draft model is asked. Its slot keeps what was said, not what is guessed: so it is always the beginning
    of what is asked next, and read on where it stands."""

    def held(self, length: int) -> list[Mark]:
        return [] if self.marks is None else self.marks[:length]


def check_same(tokenizer: Tokenizer, target: Tokenizer) -> None:
    """Raises UserError where an id that both tokenizers have is not the same token. One may have further tokens behind
    those of the other."""
    ids = range(min(len(tokenizer), len(target)))
    other = next((id for id in ids if tokenizer.token(id) != target.token(id)), None)
    if other is not None:
        raise UserError(
            f"the draft model has another tokenizer: its token {other} is {tokenizer.token(other)!r} and the model's "
            f"{target.token(other)!r} (vocabularies of {len(tokenizer)} and {len(target)}). Give a smaller model of "
            "the same family"
        )


def _text(ids: list[int]) -> Sequence:
    """A document of words."""
    count = len(ids)
    zeros = torch.zeros(count, dtype=torch.long)
    position = torch.arange(count)[:, None].expand(-1, 3)
    return Sequence(torch.tensor(ids), zeros.to(torch.uint8), position, zeros, zeros, zeros.float())
