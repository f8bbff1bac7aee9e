"""What a trained model is asked: answers, streams, likelihoods, logits, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sensorium.errors import UserError
from sensorium.infer.cache import Cache
from sensorium.infer.choosing import Chooser
from sensorium.infer.constrain import forget
from sensorium.infer.cutting import marks_of
from sensorium.infer.decoding import Decoder, cache_of
from sensorium.infer.drawing import Drawing, Drawn
from sensorium.infer.driving import drive
from sensorium.infer.kept import Kept
from sensorium.infer.likelihoods import Likelihoods, Question, choice
from sensorium.infer.request import Drafter, Request
from sensorium.infer.room import give_back
from sensorium.infer.sampling import Sampling, Text
from sensorium.infer.scheduler import Scheduler
from sensorium.infer.scoring import Scorer
from sensorium.models.wiring import Wiring
from sensorium.nn.part import Features
from sensorium.nn.pooler import Pooler
from sensorium.render import Renderer
from sensorium.sequence import Item, Media, Sample, Sequence

GREEDY = Sampling()


class Engine:
    """Inference with a model as it is now: make a new engine after its weights changed.

    What was read stays read: a prompt that begins as an earlier one costs what is new of it, and a picture is encoded
    once however often it is asked about.

    slots    conversations that advance together
    tokens   budget of one packed forward pass over prompts
    items    most pictures (or other media) in one pass
    kept     MiB of features of media that are kept for other prompts
    drafter  guesses how answers go on, which is verified: speculative decoding, see sensorium.infer.speculation
    context  longest prompt plus answer; earlier turns are dropped beyond it; None for no limit but the model's own
    """

    def __init__(
        self,
        model: Wiring,
        renderer: Renderer,
        *,
        slots: int = 16,
        tokens: int = 2048,
        items: int = 32,
        context: int | None = None,
        kept: int = 64,
        drafter: Drafter | None = None,
    ) -> None:
        self.drafter = drafter
        self.model, self.renderer = model, renderer
        self.features = Kept(kept << 20)
        load = None if renderer.load is None else self._load
        self._asking = Renderer(renderer.tokenizer, renderer.template, renderer.plan, load)
        self._scheduler: Scheduler | None = None
        self._scorer: Scorer | None = None
        self.slots, self.tokens, self.items = slots, tokens, items
        self.context = context or (model.config.stack.positions if model.config.reads_text else None) or None
        tokenizer, template = renderer.tokenizer, renderer.template
        closing = {tokenizer.special.get(one) for one in (template.stop, template.plain)}
        ends = {*closing, *map(tokenizer.id, template.ends), tokenizer.eos}
        self.stops = frozenset(id for id in ends if id is not None)
        self._encoders: dict[str, Callable[[list[Item]], Features]] = {}

    # ---- answers

    def generate(
        self,
        samples: Iterable[Sample],
        sampling: Sampling = GREEDY,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """One answer in words for each sample, in their order, whatever the number of slots.

        progress  called with the number of answers that are complete
        """
        return [request.text.text for request in self.answered(samples, sampling, progress)]

    def draw(
        self,
        samples: Iterable[Sample],
        sampling: Sampling = GREEDY,
        kind: str = "image",
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Image.Image]]:
        """What each sample asks for, drawn: the frames of one item, a picture being one frame.

        Raises UserError for a model whose words do not include the codes of this kind.
        """
        formats = self.model.config.formats
        if kind not in formats:
            raise UserError(f"the model says no {kind}: it says {sorted(formats) or 'words alone'}")
        if not formats[kind].codes:
            raise UserError(f"the model has no codes of {kind}, a generator makes it: see infer.handover.reply")
        done = self.answered(samples, sampling, progress, drawn=(1, kind))
        return [self.pictures(drawn) for request in done for drawn in request.drawing.drawn]  # type: ignore[union-attr]

    def pictures(self, drawn: Drawn) -> list[Image.Image]:
        """The frames of an item of an answer."""
        codec = self.model.codec(drawn.kind)
        frames = codec.config.temporal if drawn.kind == "video" else 1
        return codec.pictures(drawn.codes[:, None], drawn.grid, frames * drawn.grid.frames)

    def answered(
        self,
        samples: Iterable[Sample],
        sampling: Sampling,
        progress: Callable[[int], None] | None,
        drawn: tuple[int, str | None] = (0, None),
    ) -> list[Request]:
        """The answered requests. drawn: items of an answer at most, and a kind that is drawn at once."""
        requests: list[Request] = []
        ended = 0

        def opened() -> Iterator[Request]:
            for index, sample in enumerate(samples):
                requests.append(self.open(sample, sampling.replace(seed=sampling.seed + index), drawn))
                yield requests[-1]

        def tell(request: Request) -> None:
            nonlocal ended
            ended += 1
            if request.error is not None:
                raise request.error
            if progress is not None:
                progress(ended)

        drive(self, opened(), tell)
        return requests

    def stream(self, sample: Sample, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The answer in pieces, each as soon as its text is certain. Closing the iterator stops it."""
        yield from self.run(self.open(sample, sampling))

    def run(self, request: Request) -> Iterator[str]:
        """Drive one request to its end, yielding its text; others that are under way advance with it."""
        with self._evaluating(), self._freeing([request]):
            self.scheduler.submit(request)
            while True:
                piece = request.new_text()
                if piece:
                    yield piece
                if request.error is not None:
                    raise request.error
                if request.done:
                    return
                self.scheduler.step()

    @contextmanager
    def _freeing(self, requests: list[Request]) -> Iterator[None]:
        """Whatever happens, no request stays behind in a slot."""
        try:
            yield
        finally:
            for request in requests:
                self.scheduler.cancel(request)

    @property
    def scheduler(self) -> Scheduler:
        """The generation loop and its cache, made when something is generated first."""
        if self._scheduler is None:
            decoder = Decoder(self.model, self.cache(self.slots), self.prepare)
            self._scheduler = Scheduler(decoder, self.tokens, self.items)
        return self._scheduler

    def rest(self) -> None:
        """Give back the memory of what was read."""
        if self._scheduler is not None and self._scheduler.idle:
            self._scheduler = None
        self._scorer = None
        self.features = Kept(self.features.limit)
        if self.drafter is not None:
            self.drafter.rest()
        forget()

    def open(self, sample: Sample, sampling: Sampling, drawn: tuple[int, str | None] = (0, None)) -> Request:
        """A request: the sample is rendered and its media decoded, but for those whose features are known.

        drawn  items of an answer at most, and a kind that is drawn at once
        """
        request = self.request(self.prompt(sample, sampling), sampling, drawn)
        if sampling.guidance != 1 and drawn[1] is not None:
            request.against = self.request(self._unconditional(sample, sampling, drawn[1]), sampling)
        return request

    def prompt(self, sample: Sample, sampling: Sampling, items: bool = True) -> Sequence:
        """A sample rendered with the assistant's turn open, cut to the context by whole turns."""
        if any(segment.branch for segment in sample.segments):
            raise UserError("a sample with branches has several endings: score them with log_likelihoods")
        if self.context is None:
            return self._asking.render(sample, generate=True, items=items)
        room = self.context - sampling.max_tokens
        if room < 1:
            raise UserError(
                f"max_tokens={sampling.max_tokens} leaves no room for a prompt in a context of {self.context} tokens"
            )
        return self._asking.render(sample, generate=True, items=items, max_tokens=room)

    def _unconditional(self, sample: Sample, sampling: Sampling, kind: str) -> Sequence:
        """The prompt with nothing said: what a guided request is compared with."""
        tokens = self.model.config.formats[kind]
        if tokens.blank is None:
            empty = (replace(part, data="") if part.kind == "text" else part for part in sample.segments)
            return self.prompt(replace(sample, segments=tuple(empty)), sampling)
        prompt = self.prompt(sample, sampling)
        kept = [id for id in (tokens.open, self.renderer.tokenizer.bos) if id is not None]
        blank = torch.isin(prompt.ids, torch.tensor(kept), invert=True)
        return replace(prompt, ids=prompt.ids.masked_fill(blank, tokens.blank))

    def request(self, sequence: Sequence, sampling: Sampling, drawn: tuple[int, str | None] = (0, None)) -> Request:
        """A request of a rendered prompt."""
        text = Text(self.renderer.tokenizer, sampling.stop)
        config = self.model.config
        said = [kind for kind in config.formats if drawn[0] or kind not in config.aside]
        formats = {kind: (config.formats[kind], config.said(kind)) for kind in said}
        drawing = Drawing(formats, *drawn) if formats else None
        marks = marks_of(sequence, config.rule)
        words = sequence.ids[sequence.modality == 0].tolist() if sequence.ids.dim() == 1 else []
        chooser = Chooser(sampling, self.renderer.tokenizer, words, sampling.seed, self.stops)
        drafter = self.drafter if drawing is None and self.model.streams is None else None
        return Request(
            sequence, sampling, text, self.stops, chooser, marks, drawing=drawing, words=words, drafter=drafter
        )

    def cache(self, slots: int) -> Cache:
        return cache_of(self.model, slots, 512)

    # ---- likelihoods

    def log_likelihoods(
        self, questions: Iterable[Question], progress: Callable[[int], None] | None = None
    ) -> list[Likelihoods]:
        """Multiple choice by likelihood: each question costs its prompt once, the options are branches behind it.

        The prompt's segments must be on the trunk (branch 0). Raises UserError for a question without options.
        """
        results: list[Likelihoods] = []
        pending: list[Sequence] = []
        for number, (prompt, options) in enumerate(questions):
            sequence = self.renderer.render(choice(number, prompt, options))
            tokens = sum(map(len, pending)) + len(sequence)
            items = sum(len(member.spans) for member in pending) + len(sequence.spans)
            if pending and (tokens > self.tokens or items > self.items):
                results += self._score(pending)
                pending = []
                if progress is not None:
                    progress(len(results))
            pending.append(sequence)
        results += self._score(pending)
        if progress is not None:
            progress(len(results))
        return results

    def _score(self, pending: list[Sequence]) -> list[Likelihoods]:
        if self._scorer is None:
            self._scorer = Scorer(self.model, self.prepare)
        with self._evaluating():
            return self._scorer.score(pending)

    # ---- numbers inside

    @torch.inference_mode()
    def logits(self, sample: Sample, generate: bool = False) -> tuple[Tensor, Tensor]:
        """ids (T) of the rendered sample and the logits (T, vocab) float32 of what follows each of them, or of a masked
        model of what stands there."""
        packed, outputs = self._forward([self.renderer.render(sample, generate=generate, max_tokens=self.context)])
        places = torch.arange(len(packed), device=packed.ids.device)
        return packed.ids, outputs.logits(places).float()

    @torch.inference_mode()
    def embed(self, samples: Iterable[Sample], pooled: bool = False) -> Tensor:
        """(N, D) float32: the last hidden states of each sample, averaged over all its tokens; not normalised.

        pooled  what the stack's own pooler makes of the first of them instead. Raises UserError where it has none
        """
        pooler = self.model.stack.pooler if pooled else None
        if pooled and pooler is None:
            raise UserError("this model has no pooler: leave out `pooled`")
        whole = not self.model.config.speaks  # what reads a text to its end reads what ends it
        vectors: list[Tensor] = []
        pending: list[Sequence] = []
        for sample in samples:
            sequence = self.renderer.render(sample, generate=not whole, max_tokens=self.context)
            if pending and sum(map(len, pending)) + len(sequence) > self.tokens:
                vectors.append(self._vectors(pending, pooler))
                pending = []
            pending.append(sequence)
        if pending:
            vectors.append(self._vectors(pending, pooler))
        return torch.cat(vectors) if vectors else torch.zeros(0, self.model.config.stack.width)

    def _vectors(self, sequences: list[Sequence], pooler: Pooler | None) -> Tensor:
        packed, outputs = self._forward(sequences)
        if pooler is not None:
            counts = torch.bincount(packed.doc)
            return pooler(outputs.hidden.index_select(0, counts.cumsum(0) - counts)).float()
        hidden = outputs.hidden.float()
        sums = hidden.new_zeros(packed.documents, hidden.shape[1]).index_add_(0, packed.doc, hidden)
        return sums / torch.bincount(packed.doc)[:, None]

    def outputs(self, sequences: list[Sequence]) -> Any:
        """What the model makes of rendered sequences, packed together."""
        return self._forward(sequences)[1]

    def _forward(self, sequences: list[Sequence]) -> tuple[Sequence, Any]:
        with self._evaluating():
            packed = Sequence.pack(self.prepare(sequences))
            return packed, self.model(packed)

    # ---- media

    def _load(self, kind: str, media: Media) -> Item:
        """An item ready for its encoder; where its features are known, that is all there is to it."""
        assert self.renderer.load is not None
        known = None if kind in self.model.config.codecs else self.features.get(kind, media.key())
        if known is None:
            return self.renderer.load(kind, media)
        return Item(None, media.shape(), media.key(), features=known)

    @torch.inference_mode()
    def prepare(self, sequences: list[Sequence]) -> list[Sequence]:
        """The sequences on the model's device, their media encoded together; equal content is encoded once."""
        device = self.model.reference().device
        sequences = [sequence.to(device) for sequence in sequences]
        made: dict[str, dict[object, Tensor]] = {}
        for kind in self.model.config.kinds:
            waiting: dict[object, Item] = {}
            for item in (item for sequence in sequences for item in sequence.members(kind) if item.features is None):
                known = self.features.get(kind, item.key)
                if known is None:
                    waiting[item.key or id(item)] = item
                else:
                    made.setdefault(kind, {})[item.key] = known
            if waiting:
                new = dict(zip(waiting, self._encode(kind, list(waiting.values()))))
                made.setdefault(kind, {}).update(new)
                for key, item in waiting.items():
                    self.features.put(kind, item.key, new[key])
                if device.type == "cpu":
                    give_back()  # an encoder's states: tens of megabytes beside some of features
        coded = self.model.config.codecs  # a codec may read the same items, later
        return [self.model.config.written(_filled(sequence, made, coded)) for sequence in sequences]

    def _encode(self, kind: str, items: list[Item]) -> list[Tensor]:
        """The features of each item. On a CPU one item at a time, which costs a few percent there: sums of many rows
        are added up in an order that the number of rows decides, and what is kept of a picture must not depend on those
        it came with."""
        reference = self.model.reference()
        if kind not in self._encoders:
            # the language model's precision: what a frozen encoder computes in during training too
            self._encoders[kind] = self.model.reader(kind).prepare_inference(reference.dtype)
        encoder = self._encoders[kind]
        if reference.device.type == "cpu":
            return [encoder([item]).values for item in items]
        features = encoder(items)
        return list(features.values.split(features.lengths))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Dropout off while the model is asked; every module then returns to the mode it was in."""
        learning = [module for module in self.model.modules() if module.training]
        if learning:
            self.model.eval()
        try:
            yield
        finally:
            for module in learning:
                module.training = True


def _filled(sequence: Sequence, made: dict[str, dict[object, Tensor]], kept: Iterable[str]) -> Sequence:
    """The features in their items, which no longer need what they were made of, but for items of the kinds `kept`."""
    for kind, features in made.items():
        items = [
            item
            if item.features is not None
            else replace(item, data=item.data if kind in kept else None, features=features[item.key or id(item)])
            for item in sequence.members(kind)
        ]
        sequence = sequence.with_members(kind, items)
    return sequence
