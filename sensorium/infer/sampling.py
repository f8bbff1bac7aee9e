"""What is asked of the choice of tokens, and where a text ends."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from pydantic import Field, field_validator

from sensorium.config import Config
from sensorium.infer.constrain import Constraint
from sensorium.tokenizer import Tokenizer


class Sampling(Config):
    """Decoding options; the names are those of the OpenAI and Hugging Face interfaces.

    temperature         divides the logits; 0 takes the likeliest token (greedy)
    top_k               only the k likeliest tokens; None for all
    top_p               the smallest set of likeliest tokens with this much probability, of those that top_k left
                        (Holtzman et al. 2020)
    min_p               only tokens with at least this share of the likeliest token's probability, at this temperature
                        (Nguyen et al. 2024, arXiv 2407.01082, section 3); 0 keeps all
    repetition_penalty  logits of tokens seen before, in the prompt or the answer, are divided (positive) or multiplied
                        (negative) by it (Keskar et al. 2019, section 4.1); 1 changes nothing, 0.01 to 100
    presence_penalty    subtracted from the logits of tokens that the answer so far has
    frequency_penalty   subtracted from them once for each time it has them
    logit_bias          {id: number added to its logit}; -100 rules a token out, 100 all others
    n                   answers to each prompt; each draws from a generator of its own, see `answer`
    logprobs            the logarithm of the probability of each token that was chosen, with as many of the likeliest
                        beside it; None for none at all. They are the model's own: of its logits as they are, before
                        anything said here changes them
    constraint          the form of the answer: one of some texts, a regular expression, a JSON schema
    seed                of the first answer's generator; of request i of a call it is seed + i
    max_tokens          longest answer, in tokens
    stop                texts that end the answer; they are not part of it
    guidance            of what is drawn: how far the logits go from those without the words of the prompt towards those
                        with them, and beyond (classifier-free guidance); 1 reads the prompt as it is
    """

    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = {}
    n: int = Field(default=1, gt=0)
    logprobs: int | None = Field(default=None, ge=0, strict=True)  # True of chat interfaces is no number
    constraint: Constraint | None = None
    seed: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=256, gt=0)
    stop: tuple[str, ...] = ()
    guidance: float = Field(default=1.0, ge=0)

    def answer(self, number: int) -> Sampling:
        """Of n answers to one prompt, counted from 0, one by itself: the first has the seed as it is. The others have
        seeds that are hashes of both, so that none is that of an answer beside it, or of the next request's."""
        if number == 0:
            return self.replace(n=1)
        told = blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest()
        return self.replace(n=1, seed=int.from_bytes(told, "big") >> 1)

    @field_validator("stop", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _visible(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop text would end every answer before it begins")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _bounded(cls, value: dict[int, float]) -> dict[int, float]:
        for id, bias in value.items():
            if id < 0 or not -100 <= bias <= 100:
                raise ValueError(
                    f"a bias is a number from -100 to 100 for the id of a token, this one is {bias} for {id}"
                )
        return value


class Text:
    """The text of an answer, made from ids one by one, up to a stop text.

    What may yet turn out to be the beginning of a stop text, or half a character, is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()) -> None:
        self._tokenizer, self._stream = tokenizer, tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """The text that became certain with this id."""
        return self._add(self._stream.push(id), final=False)

    def of(self, id: int) -> str:
        """The text of one token by itself."""
        return self._tokenizer.decode([id], skip_special=False)

    def finish(self) -> str:
        """The rest, once no id follows."""
        return self._add(self._stream.flush(), final=True)

    def _add(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if final else self._unsettled()
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += ready
        return ready

    def _unsettled(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
