"""How the next token of one answer is chosen from the model's logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensorium.errors import UserError
from sensorium.infer.constrain import Guide
from sensorium.infer.sampling import Sampling
from sensorium.tokenizer import Tokenizer

FEW = 1024
"""Of a whole vocabulary so many of the likeliest are sorted at first; nearly always they settle the draw."""


class Choice(NamedTuple):
    """A chosen token.

    logprob  natural logarithm of its probability under the model; None unless asked for
    top      (id, logprob) of the likeliest tokens, likeliest first, as many as asked for
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses the tokens of one answer, one after another.

    The logits are changed in the order of vLLM: constraint, bias, penalties (repetition, frequency, presence),
    temperature; of what is then likeliest top_k, top_p and min_p keep some, in this order. Log-probabilities are of the
    logits as they come (what vLLM calls raw, and gives), so a token that was forced may be an unlikely one.

    prompt  ids of the prompt's words, which the repetition penalty counts as seen
    seed    of the answer's generator: the same logits give the same answer, whatever else is generated beside it
    stops   ids that end the answer

    Raises UserError for a bias of a token that does not exist, and for a constraint that cannot be followed here.
    """

    def __init__(
        self, sampling: Sampling, tokenizer: Tokenizer, prompt: list[int], seed: int, stops: frozenset[int]
    ) -> None:
        self.sampling = sampling
        beyond = [id for id in sampling.logit_bias if id >= len(tokenizer)]
        if beyond:
            raise UserError(f"logit_bias: there is no token {beyond[0]}, the vocabulary has {len(tokenizer)}")
        self._generator = torch.Generator().manual_seed(seed) if sampling.temperature > 0 else None
        self._bias = _Table(sampling.logit_bias)
        self._seen = _Table(dict.fromkeys(prompt, 1.0) if sampling.repetition_penalty != 1 else {})
        self._said = _Table({})
        self._penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._guide = Guide(sampling.constraint, tokenizer, stops) if sampling.constraint is not None else None
        changed = (
            self._guide is not None or bool(sampling.logit_bias) or self._penalised or sampling.repetition_penalty != 1
        )
        self.greedy = sampling.temperature == 0 and sampling.logprobs is None and not changed
        """The likeliest token is all there is to say: the caller may take the argmax itself, and need not `take`."""

    def choose(self, logits: Tensor) -> Choice:
        """logits (vocab) float32 -> the next token. Changes nothing but the generator: `take` makes it part of the
        answer. Raises ValueError for logits that are no numbers, UserError where the constraint leaves no token."""
        return self.logprobs(logits, self.draw(self._changed(logits.float().cpu())))

    def take(self, id: int) -> None:
        """The token that was chosen: penalties count it, the grammar of a constraint advances. Raises ValueError for
        one that the constraint forbids."""
        if self._guide is not None:
            self._guide.take(id)
        if self.sampling.repetition_penalty != 1:
            self._seen.count(id)
        if self._penalised:
            self._said.count(id)

    @property
    def complete(self) -> bool:
        """A constraint is fulfilled, and only a token that ends the answer may follow: no need to ask for it."""
        return self._guide is not None and self._guide.complete

    def logprobs(self, logits: Tensor, id: int) -> Choice:
        """The token `id` with what `Sampling.logprobs` asks about it. logits (vocab) float32."""
        count = self.sampling.logprobs
        if count is None:
            return Choice(id)
        logits = logits.float()
        total = logits.logsumexp(-1)
        if count == 0:
            return Choice(id, float(logits[id] - total))
        values, ids = logits.topk(min(count, len(logits)))
        return Choice(id, float(logits[id] - total), tuple(zip(ids.tolist(), (values - total).tolist())))

    def draw(self, logits: Tensor) -> int:
        """logits (vocab) float32 -> an id, by temperature, top_k, top_p and min_p alone: for what is no word of the
        answer, codes of a picture or of a parallel stream."""
        if self._generator is None:
            return int(logits.argmax())
        return _drawn(logits.float().cpu(), self.sampling, self._generator)

    def _changed(self, logits: Tensor) -> Tensor:
        """The logits (vocab) with constraint, bias and penalties, the caller's as they were."""
        if not (self._guide or self._bias or self._seen or self._said):
            return logits
        logits, sampling = logits.clone(), self.sampling
        if self._guide is not None:
            allowed = self._guide.allowed()[: len(logits)]
            logits[len(allowed) :] = -torch.inf  # rows of an embedding beyond the vocabulary
            logits[: len(allowed)].masked_fill_(~allowed, -torch.inf)
        if self._bias:
            ids, bias = self._bias.below(len(logits))
            logits[ids] += bias
        if self._seen:
            ids, _ = self._seen.below(len(logits))
            values, penalty = logits[ids], sampling.repetition_penalty
            logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
        if self._said:
            ids, counts = self._said.below(len(logits))
            logits[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty
        return logits


class _Table:
    """A number for each of some ids."""

    def __init__(self, numbers: dict[int, float]) -> None:
        self._places = {id: place for place, id in enumerate(numbers)}
        self._ids = torch.tensor(list(numbers), dtype=torch.long)
        self._values = torch.tensor(list(numbers.values()), dtype=torch.float32)
        self._most = max(numbers, default=-1)

    def __bool__(self) -> bool:
        return bool(self._places)

    def count(self, id: int) -> None:
        """One more of this id."""
        place = self._places.setdefault(id, len(self._places))
        if place < len(self._ids):
            self._values[place] += 1
        else:
            self._ids = torch.cat([self._ids, torch.tensor([id])])
            self._values = torch.cat([self._values, torch.ones(1)])
            self._most = max(self._most, id)

    def below(self, size: int) -> tuple[Tensor, Tensor]:
        """ids (N) and numbers (N) of those that the model can say: some prompts have marks that it only reads."""
        if self._most < size:
            return self._ids, self._values
        kept = self._ids < size
        return self._ids[kept], self._values[kept]


def _drawn(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """An id drawn from logits (vocab) float32 on the CPU.

    A race: every token has an exponentially distributed time divided by its probability, the first wins with just that
    probability. `torch.multinomial` draws so, and this draws what it would from the sorted probabilities, a number of
    the generator for each rank that top_k leaves. But the vocabulary is sorted only as far as it decides: what is kept
    are always the first ranks, and once the best of those is ahead of what any later rank could reach, it has won.
    """
    size = len(logits)
    kept = size if sampling.top_k is None else min(sampling.top_k, size)
    times = torch.empty(kept).exponential_(generator=generator)
    sorted_ = kept if sampling.top_k is not None else min(kept, FEW)
    highest = float(logits.max())
    if not math.isfinite(highest):
        raise ValueError(f"the largest logit is {highest}: the model's numbers overflowed, or all tokens are ruled out")
    total = None
    while True:
        top, ids = logits.topk(sorted_)  # likeliest first
        weights = ((top - highest) / sampling.temperature).exp()
        stays = weights >= sampling.min_p  # the likeliest weighs 1
        if sampling.top_p < 1:
            if total is None:
                every = weights if sorted_ == kept else ((logits - highest) / sampling.temperature).exp()
                total = every.sum()
            share = weights / total
            # a token stays while those before it have less than top_p together, so one always stays
            stays &= share.cumsum(-1) - share < sampling.top_p
        speed = (weights / times[:sorted_]).masked_fill(~stays, 0.0)
        best, place = speed.max(-1)
        if sorted_ == kept or not stays[-1] or weights[-1] / times[sorted_:].min() < best:
            return int(ids[place])
        sorted_ = min(kept, 8 * sorted_)
