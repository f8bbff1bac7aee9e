"""A model as the server has it: its name, its loop, what it reads, and who is on the way to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from sensorium.api import Model
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.loop import Loop
from sensorium.models.denoiser import Denoiser
from sensorium.models.dual import Dual
from sensorium.sequence import Sample
from sensorium.serve.answers import ModelCard
from sensorium.serve.errors import ApiError, busy, wrong
from sensorium.serve.limits import Limits

T = TypeVar("T")

READERS = 4
"""Threads that read the prompts of one model; each may hold the pixels of one request."""


@dataclass
class Hosted:
    """One model under its name.

    loop     what answers; None for a model that says nothing, and is asked for vectors alone
    ahead    requests that are being read, or wait to be: on their way to the loop
    """

    name: str
    model: Model
    loop: Loop | None
    limits: Limits
    created: int = field(default_factory=lambda: int(time.time()))
    ahead: int = 0
    _one: threading.Lock = field(default_factory=threading.Lock)
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(READERS, thread_name_prefix="prompts")
    )

    @classmethod
    def of(cls, name: str, model: Model, limits: Limits) -> Hosted:
        """Raises UserError for a model that reads no text."""
        if isinstance(model.network, Denoiser):
            raise UserError(f"{name}: {model.recipe.title} paints, and there is no route for that: leave it out")
        loop = Loop(model.engine, waiting=limits.waiting).start() if model.recipe.model.speaks else None
        return cls(name, model, loop, limits)

    @property
    def engine(self) -> Engine:
        return self.model.engine

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return min(self.engine.context or self.limits.context, self.limits.context)

    @property
    def numbers(self) -> str:
        """What it computes in, as --precision says it."""
        dtype = self.model.network.reference().dtype
        return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(dtype, str(dtype).removeprefix("torch."))

    @property
    def reads(self) -> tuple[str, ...]:
        """Kinds of items besides text."""
        return tuple(self.model.recipe.model.kinds)

    @property
    def dual(self) -> bool:
        """Whether pictures and texts are vectors in one space, so that neither is read with the other."""
        return isinstance(self.model.network, Dual)

    def card(self) -> ModelCard:
        reads = ["text", *(kind for kind in self.reads if kind in ("image", "audio"))]
        return ModelCard(
            id=self.name, created=self.created, max_model_len=self.context, reads=reads,
            answers=self.loop is not None,
        )  # fmt: skip

    def must_answer(self) -> Loop:
        """Raises ApiError (400) for a model of vectors alone."""
        if self.loop is None:
            raise wrong(f"{self.name} does not answer in words: ask /v1/embeddings", "model", "model_not_supported")
        return self.loop

    def must_read(self, kind: str, place: str) -> None:
        """Raises ApiError (400) where the model reads no items of a kind."""
        if kind not in self.reads:
            names = {"image": "pictures", "audio": "sounds"}
            raise wrong(f"{place}: {self.name} reads no {names[kind]}", place, "unsupported_content")

    @contextmanager
    def admitted(self, requests: int = 1) -> Iterator[None]:
        """While prompts are being read. Raises ApiError (429) where too many wait already."""
        waiting = self.ahead + (self.loop.waiting if self.loop is not None else 0)
        if waiting + requests > self.limits.waiting and waiting:
            raise busy(f"{waiting} requests wait for {self.name} already")
        self.ahead += requests
        try:
            yield
        finally:
            self.ahead -= requests

    def ask(self, work: Callable[[], T]) -> T:
        """The model does something else than answer, between two steps of its answers. Not on the event loop's thread.
        Raises Closed."""
        if self.loop is not None:
            return self.loop.call(work).result()
        with self._one:
            return work()

    def tokens(self, sample: Sample, generate: bool) -> int:
        """How many tokens a prompt takes, by rendering it without its pixels."""
        return len(self.engine.renderer.render(sample, generate=generate, items=False))

    def room(self, sample: Sample, wanted: int | None, param: str) -> int:
        """The longest answer to a prompt: as wanted, within what is served and what the context has room for.

        Raises ApiError (400) where more is wanted than is served, or the prompt leaves no room at all.
        """
        most = self.limits.max_tokens
        if wanted is not None and wanted > most:
            raise wrong(f"{param} is {wanted}, this server's longest answer has {most} tokens", param, "too_large")
        context, taken = self.context, self.tokens(sample, generate=True)
        if taken >= context:
            raise self.too_long(taken, "messages")
        return min(wanted or most, context - taken)

    def too_long(self, taken: int, param: str) -> ApiError:
        return wrong(
            f"{self.name} reads at most {self.context} tokens, answer included; what was sent takes {taken}: shorten "
            "it, or send fewer pictures", param, "context_length_exceeded",
        )  # fmt: skip

    def rest(self) -> None:
        """Give back what was kept of earlier requests; a loop does so by itself."""
        if self.loop is None:
            with self._one:
                self.engine.rest()

    def close(self, drain: float = 0.0) -> None:
        if self.loop is not None:
            self.loop.close(drain)
        self.threads.shutdown(wait=False, cancel_futures=True)


def chosen(models: Sequence[Hosted], name: str) -> Hosted:
    """Raises ApiError (404) for a name that none has."""
    for one in models:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in models)
    raise ApiError(404, f"there is no model {name[:200]!r} here: known are {known}", param="model",
                   code="model_not_found")  # fmt: skip
