"""Who is asked the questions of a task: a model in this process, or one behind an address (evaluate/endpoint.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch

import sensorium
from sensorium.errors import UserError
from sensorium.evaluate.task import Subject
from sensorium.infer.driving import drive
from sensorium.infer.engine import Engine
from sensorium.infer.likelihoods import Likelihoods, Question
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Media, Sample, Segment


class Said(NamedTuple):
    """An answer in words, or why there is none: then it is never right.

    error  begins with ENDPOINT where it is the fault of who was asked, not of the item
    """

    text: str
    error: str = ""


ENDPOINT = "endpoint: "
TOGETHER = 32  # questions whose options are scored in a few passes; so many a kill may cost


class Answerer(Protocol):
    """Answers questions, in any order and number at once; an answer depends on its question alone.

    title        for people
    fingerprint  of all that an answer depends on besides the question: weights, tokenizer, template, precision; or an
                 address and the name of a model there
    """

    @property
    def title(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def generate(self, samples: Sequence[Sample], sampling: Sampling, heard: Callable[[int, Said], None]) -> None:
        """`heard` is called once with the number and the answer of each sample, as they come."""
        ...

    def likelihoods(self, questions: Sequence[Question], heard: Callable[[int, Likelihoods | Said], None]) -> None:
        """The same with the likelihoods of the options, or a Said with an error. Raises UserError where they cannot be
        known."""
        ...


class Local:
    """A model in this process.

    batch        conversations that advance together; None: as many as the subject's engine has
    fingerprint  of the files of a checkpoint, where it was opened from files; None: of the weights in memory
    """

    def __init__(
        self, subject: Subject, *, title: str = "model", fingerprint: str | None = None, batch: int | None = None
    ) -> None:
        self.subject, self.title, self._fingerprint, self.batch = subject, title, fingerprint, batch

    @cached_property
    def engine(self) -> Engine:
        one = self.subject
        if self.batch is None:
            return one.engine
        return Engine(one.model, one.renderer, tokens=one.tokens, items=one.items, slots=self.batch)

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.subject)
        return self._fingerprint

    def generate(self, samples: Sequence[Sample], sampling: Sampling, heard: Callable[[int, Said], None]) -> None:
        self._must_speak()
        numbers: dict[int, int] = {}

        def opened() -> Iterator[Request]:
            for number, sample in enumerate(samples):
                try:
                    request = self.engine.open(sample, seeded(sampling, sample))
                except UserError as error:  # a picture that cannot be read, a prompt that is too long
                    heard(number, Said("", str(error)))
                    continue
                numbers[id(request)] = number
                yield request

        def ended(request: Request) -> None:
            said = Said(request.text.text) if request.error is None else Said("", str(request.error))
            heard(numbers.pop(id(request)), said)

        drive(self.engine, opened(), ended)

    def likelihoods(self, questions: Sequence[Question], heard: Callable[[int, Likelihoods | Said], None]) -> None:
        self._must_speak()
        # On a CPU nothing depends on what is scored beside it. Elsewhere sums of many rows are added up in an order
        # that their number decides, and what is likely must be the same to the last bit, also after a kill.
        together = TOGETHER if self.subject.model.reference().device.type == "cpu" else 1
        for first in range(0, len(questions), together):
            some = questions[first : first + together]
            for number, found in enumerate(self._scored(some), first):
                heard(number, found)

    def _scored(self, questions: Sequence[Question]) -> list[Likelihoods | Said]:
        """Where one of them cannot be scored the others still are."""
        try:
            return [*self.engine.log_likelihoods(questions)]
        except UserError as error:
            if len(questions) == 1:
                return [Said("", str(error))]
            half = len(questions) // 2
            return self._scored(questions[:half]) + self._scored(questions[half:])

    def _must_speak(self) -> None:
        if not self.subject.model.config.speaks:
            raise UserError(f"{self.title} does not answer in words: leave out --task, and its recipe's evaluations "
                            "are run")  # fmt: skip


def fingerprint_of(subject: Subject) -> str:
    """sha256 over a model's value and weights, tokenizer, template, device and the version of this package."""
    model, renderer = subject.model, subject.renderer
    about = (model.config.to_json(), renderer.template.to_json(), str(model.reference().device), sensorium.__version__)
    tokenizer = json.dumps([renderer.tokenizer.description(), renderer.tokenizer.chat_template], sort_keys=True)
    digest = hashlib.sha256("\0".join((*about, tokenizer)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- what a question is, to the last bit


def written(segments: Sequence[Segment]) -> list[Any]:
    """Segments in plain JSON; a picture is its key. Raises MediaError for media that cannot be read."""
    found = []
    for one in segments:
        data = one.data.key() if isinstance(one.data, Media) else one.data
        found.append([one.kind, one.role, data, one.start, one.end])
    return found


def question_key(fingerprint: str, segments: Sequence[Segment], asked: Any) -> str:
    """sha256 of who is asked, the prompt with the keys of its media, and what is asked: settings, or options."""
    text = json.dumps([fingerprint, written(segments), asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seeded(sampling: Sampling, sample: Sample) -> Sampling:
    """The settings of one answer: what is drawn for it depends on its prompt, never on what is asked before it."""
    if sampling.temperature == 0:
        return sampling
    mark = hashlib.sha256(json.dumps(written(sample.segments)).encode()).digest()
    return sampling.replace(seed=(sampling.seed + int.from_bytes(mark[:4])) % 2**31)
