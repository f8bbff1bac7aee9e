"""The one data type: what every data source yields, and what every model reads.

    Sample(segments)  --render.py-->  Sequence: ids (T)  modality (T)  position (T, 3)  doc (T)  branch (T)  weight (T)
                                                spans [Span]   items {kind: [Item]}

Packed is the only layout: a batch is a longer Sequence, and `doc` keeps its samples apart. Within a document, tokens of
`branch` 0 are the trunk; every branch b > 0 continues from the end of the trunk and sees the trunk and itself only. So
ten questions about one picture cost one picture, and the four options of a multiple choice cost one prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sensorium.errors import UserError

KINDS = ("text", "image", "video", "audio", "points", "depth", "thermal", "imu", "box", "mask", "action", "state")
Kind = Literal["text", "image", "video", "audio", "points", "depth", "thermal", "imu", "box", "mask", "action", "state"]
PLAIN = ("box", "action", "state")
"""Kinds whose data are plain numbers."""
CLEAN = -1.0
"""The time of a latent that is given as it is, whatever the schedule."""
Mode = Literal["embed", "token", "latent", "memory", "signal"]


def made(kind: str) -> str:
    """The name under which items stand that a model is to make of a kind, apart from those that it reads."""
    return f"made.{kind}"


@runtime_checkable
class Media(Protocol):
    """A picture, clip or sound that is decoded only when it is needed."""

    def key(self) -> str:
        """sha256 (hex) of what the content is made from; equal keys mean equal decoded content."""
        ...

    def shape(self) -> tuple[int, ...]:
        """Extent of the decoded content, (height, width) for a picture, read without decoding pixels."""
        ...

    def load(self) -> Any:
        """Decoded content: a PIL image in mode RGB for a picture. Raises MediaError, which names the file."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """When the frames of a clip are.

    frames    how many the whole clip has
    rate      of these a second
    duration  of the whole, in seconds
    taken     numbers of those that are given, in order
    """

    frames: int
    rate: float
    duration: float
    taken: tuple[int, ...]

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds from the beginning, of each frame that is given."""
        return tuple(number / self.rate for number in self.taken)


@runtime_checkable
class Clip(Media, Protocol):
    """A clip that knows its times: shape() is (frames, height, width), load() its frames, PIL images in mode RGB."""

    @property
    def asked(self) -> bool:
        """Whether its user said which frames are given; otherwise that is the model's to say."""
        ...

    def timing(self) -> Timing:
        """Read without decoding pixels where the file says it. Raises MediaError where it cannot be known."""
        ...

    def taking(self, numbers: Many[int]) -> Clip:
        """The same clip with these frames of the whole, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Waveform:
    """A sound in memory, as Media: samples (S) float32 from -1 to 1, so many a second."""

    samples: Any
    rate: int

    def key(self) -> str:
        return hashlib.sha256(self.samples.tobytes() + str(self.rate).encode()).hexdigest()

    def shape(self) -> tuple[int]:
        return (len(self.samples),)

    def load(self) -> Waveform:
        return self


@dataclass(frozen=True, slots=True)
class Numbers:
    """Plain numbers in rows of equal length, as Media: the actions of a chunk, one a row; a state is one row."""

    rows: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, data: Any) -> Numbers:
        """data: numbers, or lists of them. Raises UserError for anything else."""
        try:
            table = torch.as_tensor(data, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"plain numbers are a list of numbers or of equal lists of them: {error}") from error
        if table.ndim not in (1, 2) or not table.numel():
            raise UserError(f"plain numbers are one list, or several of one length: given shape {tuple(table.shape)}")
        return cls(tuple(map(tuple, (table[None] if table.ndim == 1 else table).tolist())))

    def key(self) -> str:
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()

    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return len(self.rows), len(self.rows[0])

    def load(self) -> Tensor:
        """(rows, columns) float32."""
        return torch.tensor(self.rows)


class MediaError(UserError, ValueError):
    """A media file cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of an interleaved sample.

    kind   one of KINDS
    data   str for text; Media for a picture, clip or sound; plain numbers for boxes, states and actions
    role   "system", "user", "assistant", "tool"; None in plain (not chat) samples
    train  whether its tokens carry loss; None means the recipe's rule: only what the assistant says
    branch 0 for what every branch shares; segments of branch b > 0 see the trunk and their own branch only
    start, end  seconds, for content with time
    call_id, keep  the tool call a result answers, and how long it is retained
    """

    kind: Kind
    data: Any
    role: str | None = None
    train: bool | None = None
    branch: int = 0
    start: float | None = None
    end: float | None = None
    call_id: str | None = None
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Segments in order, with where they came from. `cost` estimates its tokens before anything is decoded."""

    segments: tuple[Segment, ...]
    id: str = ""
    source: str = ""
    cost: int | None = None
    info: dict[str, Any] = field(default_factory=dict)
    """What evaluation needs and the model never sees: expected answers, boxes, the concept's key."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the model is told of, as OpenAI's interface has them, where its chat template writes them."""


def turn_of(segments: tuple[Segment, ...], media: Segment) -> list[Segment]:
    """The words of the turn that an item stands in; none where samples have no turns."""
    if media.role is None:
        return []
    at = next(index for index, one in enumerate(segments) if one is media)
    first = last = at
    while first > 0 and segments[first - 1].role == media.role:
        first -= 1
    while last + 1 < len(segments) and segments[last + 1].role == media.role:
        last += 1
    return [one for one in segments[first : last + 1] if one.kind == "text" and one.branch == media.branch]


@dataclass(frozen=True, slots=True)
class Plan:
    """How an item enters the stream, known before it is decoded; the model's own answer, asked by the renderer.

    tokens    how many it takes
    mode      embed: they stand in the stream; memory: they stand beside it, for cross-attention to read; token: they
              are ids, of codes and their marks, which are filled in when the codes are known; latent: a codec's latents
    route     which weights they take in a routed block; None is the first, text's
    together  all of them share one position (CogVLM section 2.1)
    grid      (frames, rows, columns) of them: each has its own place in time, row and column behind what comes before,
              and what follows goes on after the last of any (M-RoPE, Qwen2-VL section 2.1)
    read      the connector also reads the words of the item's turn (InstructBLIP section 2.3)
    weight    loss weight of each of its tokens where it is to be learned (mode token)
    visible   whether tokens outside of its span may see it. One that is not takes no room: what follows stands where it
              would stand without it
    time      of a latent that is not noised at random: CLEAN, or its schedule's
    learned   the span is there only where the item is to be learned: a noised latent (BAGEL, arXiv 2505.14683, 3.2)
    also      further spans of the same item, in order behind this one
    ids       of each token: the id of a mark that stands among what the connector makes (where a row or a
              tile begins or ends), None for what the connector makes; () where it makes all of them
    filler    id at the places of what the connector makes; None: the tokenizer's padding
    signals   ids that stand for an item of the model's own, in place of all this: by their states a generator is told
              what to make, and the item is what it is to be (mode signal, as an item of kind `made(kind)`)
    """

    tokens: int
    mode: Mode = "embed"
    route: int | None = None
    together: bool = False
    read: bool = False
    grid: tuple[int, int, int] | None = None
    weight: float = 1.0
    visible: bool = True
    time: float | None = None
    learned: bool = False
    also: tuple[Plan, ...] = ()
    ids: tuple[int | None, ...] = ()
    filler: int | None = None
    signals: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Where an item stands.

    signal  ids of their own stand at `ids[start : start + length]`
    embed, token, latent  it fills `ids[start : start + length]`, which are placeholders
    memory  its `length` tokens stand beside the stream, at the token `start`: that one and what follows may read them

    time     of a latent on its schedule, CLEAN for one that is given as it is; None: noised, drawn in training
    visible  False: tokens outside of it never see it, so a cache does not keep it (a noised latent)
    marks    places in it, from 0, of ids that are no placeholders: they stand among what a connector makes
    """

    kind: Kind | str
    start: int
    length: int
    item: int
    mode: Mode = "embed"
    op: Literal["replace", "add"] = "replace"
    layer: int | None = None
    route: int | None = None
    time: float | None = None
    visible: bool = True
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One picture, clip or sound, ready for its encoder; or, of kind text, what an encoder-decoder's encoder reads.

    data      what the encoder reads; a picture is (views, 3, H, W), the first view the whole picture, then its tiles
    shape     extent of the original, (height, width) for a picture
    key       content hash; with the encoder's fingerprint it addresses the feature cache
    features  (N, D) what a frozen encoder made of it earlier; then `data` may be None
    latents   (N, W) what a codec made of it, where an encoder reads it too and `features` are the encoder's
    text      (M) ids of the words of its turn, where the plan says that the connector reads them; of what a generator
              is to make, what its denoiser reads: those words, or of samples without turns all
    source    of kind text alone: one document with items of its own, of which the decoder reads the encoder's states
    """

    data: Tensor | None
    shape: tuple[int, ...]
    key: str = ""
    features: Tensor | None = None
    text: Tensor | None = None
    source: Sequence | None = None
    latents: Tensor | None = None

    def to(self, device: torch.device | str) -> Item:
        names = ("data", "features", "text", "source", "latents")
        moved = {name: None if getattr(self, name) is None else getattr(self, name).to(device) for name in names}
        return replace(self, **moved)


@dataclass(slots=True)
class Sequence:
    """Packed tokens of one or more documents.

    ids       (T) or (T, K) for K parallel streams, long
    modality  (T) uint8, an index into KINDS
    position  (T, 3) long: time, row, column; one-dimensional schemes read column 0
    doc       (T) int, non-decreasing
    branch    (T) int, 0 on the trunk
    weight    (T) or (T, K) float, the loss weight of predicting this token
    """

    ids: Tensor
    modality: Tensor
    position: Tensor
    doc: Tensor
    branch: Tensor
    weight: Tensor
    spans: list[Span] = field(default_factory=list)
    items: dict[str, list[Item]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def documents(self) -> int:
        return int(self.doc[-1]) + 1 if len(self) else 0

    @classmethod
    def pack(cls, parts: Many[Sequence]) -> Sequence:
        """Concatenate; documents and items are renumbered, spans are moved along."""
        if not parts:
            raise ValueError("nothing to pack: give at least one Sequence")
        docs, spans, items = [], [], {}
        tokens = documents = 0
        for part in parts:
            docs.append(part.doc + documents)
            for span in part.spans:
                offset = len(items.get(span.kind, ()))
                spans.append(replace(span, start=span.start + tokens, item=span.item + offset))
            for kind, members in part.items.items():
                items.setdefault(kind, []).extend(members)
            tokens += len(part)
            documents += part.documents
        names = ("ids", "modality", "position", "branch", "weight")
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(doc=torch.cat(docs), spans=spans, items=items, **joined)

    def unpack(self) -> Iterator[Sequence]:
        """The documents one by one: the inverse of `pack`."""
        lengths = torch.bincount(self.doc, minlength=self.documents).tolist()
        start = 0
        for number, length in enumerate(lengths):
            stop = start + length
            inside = [span for span in self.spans if start <= span.start < stop]
            used = {kind: sorted({span.item for span in inside if span.kind == kind}) for kind in self.items}
            items = {kind: [self.items[kind][item] for item in chosen] for kind, chosen in used.items() if chosen}
            spans = [replace(span, start=span.start - start, item=used[span.kind].index(span.item)) for span in inside]
            names = ("ids", "modality", "position", "branch", "weight")
            cut = {name: getattr(self, name)[start:stop] for name in names}
            yield Sequence(doc=self.doc[start:stop] - number, spans=spans, items=items, **cut)
            start = stop

    def members(self, kind: str) -> list[Item]:
        """The items of a kind, then those of that kind inside the sources of encoder-decoders."""
        inner = [item.source for item in self.items.get("text", ()) if item.source is not None]
        return [*self.items.get(kind, ()), *(item for source in inner for item in source.items.get(kind, ()))]

    def with_members(self, kind: str, members: Many[Item]) -> Sequence:
        """The same with other items of a kind, in the order of `members`."""
        own = len(self.items.get(kind, ()))
        items = {**self.items, kind: list(members[:own])} if kind in self.items else dict(self.items)
        texts, first = [], own
        for item in self.items.get("text", ()):
            if item.source is not None and kind in item.source.items:
                count = len(item.source.items[kind])
                inside = {**item.source.items, kind: list(members[first : first + count])}
                item, first = replace(item, source=replace(item.source, items=inside)), first + count
            texts.append(item)
        return replace(self, items={**items, "text": texts} if texts else items)

    def predecessor(self) -> Tensor:
        """(T) the index of the token each token is predicted from, -1 for the first of a document.

        That is the token before, except for the first token of a branch, which continues from the trunk's last.
        """
        index = torch.arange(len(self), device=self.ids.device)
        before = index - 1
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = self.doc[1:] != self.doc[:-1]
        before = torch.where(first, -1, before)
        starts = torch.zeros_like(first)
        starts[1:] = (self.branch[1:] != self.branch[:-1]) & ~first[1:]
        if bool(starts.any()):
            trunk = torch.full((self.documents,), -1, dtype=before.dtype, device=before.device)
            on_trunk = self.branch == 0
            trunk.scatter_reduce_(0, self.doc[on_trunk].long(), index[on_trunk], "amax")
            before = torch.where(starts, trunk[self.doc.long()], before)
        return before

    def to(self, device: torch.device | str) -> Sequence:
        names = ("ids", "modality", "position", "doc", "branch", "weight")
        moved = {name: getattr(self, name).to(device) for name in names}
        items = {kind: [item.to(device) for item in members] for kind, members in self.items.items()}
        return Sequence(spans=self.spans, items=items, **moved)
