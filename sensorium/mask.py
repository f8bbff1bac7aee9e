"""Who may attend to whom. A rule is a value; `Layout` compiles it, with the packed documents, to what a kernel reads.

Masks are never stored with the data: `AttentionRule` says what a token may see inside its own document, and `compile`
turns packed documents (T) into padded rows (B, L) for scaled-dot-product attention. A causal rule over documents
without branches needs no mask at all (padding sits to the right, where causal queries never look); everything else
gets one boolean mask per batch, shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sensorium.sequence import Sequence

Rule = Literal["causal", "full", "prefix"]
SAID = "said"
"""What ends a prefix in place of a kind."""
Reads = Literal["all", "before", "latest"]


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """What a token sees within its document (never across documents, never another branch).

    kind           causal: what came before; full: everything; prefix: the first `prefix` tokens see each other fully,
                   the rest is causal
    bidirectional  kinds of spans whose own tokens see each other both ways (a picture inside causal text)
    A span that is not `visible` (a noised latent) is seen by its own tokens alone, under every rule.
    until          rule prefix: kinds whose first span ends the prefix, where its length is not given, or "said": the
                   first token that is to be said does (a prefix-LM's answer: Raffel et al. 2020, arXiv 1910.10683,
                   3.2.1). Without one the prefix is the document
    memory         which memory spans cross-attention reads: all of the document; those that stand before the token; of
                   those the latest alone (Flamingo section 2.3)
    """

    kind: Rule = "causal"
    bidirectional: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    memory: Reads = "before"


@dataclass(slots=True)
class MemoryLayout:
    """Who reads which memory tokens, for M of them in the order of the memory spans.

    rows     (B, S) index of the memory token in each padded place of a document
    mask     (B, 1, L, S) bool, True where a token of the padded stream reads it; a token that reads none has all True
    sees     (T) bool, False for tokens that read none; None when all read some
    starts   (M) the token each memory token stands at, counted within its document
    spans    (M) the number of the span it belongs to, rising
    lengths  memory tokens of each document
    reads    the rule it was compiled from
    """

    rows: Tensor
    mask: Tensor
    sees: Tensor | None
    starts: Tensor
    spans: Tensor
    lengths: list[int]
    reads: Reads


@dataclass(slots=True)
class Routes:
    """Tokens sorted by the weights they take: x[order] splits into `sizes`, one part a route; `inverse` undoes it."""

    order: Tensor
    inverse: Tensor
    sizes: list[int]


@dataclass(slots=True)
class Layout:
    """A compiled rule.

    rows      (B, L) index of the packed token in each padded place; padding points at token 0
    inverse   (T) place of each packed token in the flattened (B * L) rows; None when rows are the packed order itself
    mask      (B, 1, L, L) bool, True where attention is allowed; None when `causal` alone says it
    causal    whether the kernel's own causal flag is enough
    plain     whether the mask only hides padding
    position  (T, 3) positions for rotary and learned embeddings
    routes    None: every token takes the first weights of a routed block
    memory    None: there is nothing for cross-attention to read
    hidden    (T) bool, the tokens of spans that are not visible: no later token ever sees them, so no cache keeps them;
              None when there are none
    bias      (B, heads, L, S) added to the scores by a stack with relative positions; it holds `mask` and `causal` too
    parts     the same documents in groups of like length, where padding all to the longest would be most of the work:
              each a layout with `rows`, `mask` and `memory` of its own; empty: one group
    back      (T) place of each packed token in the flattened rows of all parts, one after another
    window    None: a token sees all that the rule allows; else only what stands less than so many tokens away (`near`)
    """

    rows: Tensor
    inverse: Tensor | None
    mask: Tensor | None
    causal: bool
    position: Tensor
    lengths: list[int] = field(default_factory=list)
    routes: Routes | None = None
    memory: MemoryLayout | None = None
    hidden: Tensor | None = None
    bias: Tensor | None = None
    plain: bool = False
    parts: list[Layout] = field(default_factory=list)
    back: Tensor | None = None
    window: int | None = None

    @property
    def plainly_causal(self) -> bool:
        """Whether a token sees itself and all before it, and nothing else is to be known."""
        return self.causal and self.routes is None and self.memory is None and self.hidden is None

    def near(self, window: int, mutual: bool = False) -> Layout:
        """The same documents under a sliding window (Beltagy et al. 2020, arXiv 2004.05150): a token sees itself and
        what the rule allows of the `window` - 1 tokens before it, and as many behind it.

        Counted are tokens that it may see, so that other branches and latents of earlier steps take no room.

        mutual  those that see each other both ways do so at any distance
        """
        near = replace(self, window=window, parts=[part.near(window, mutual) for part in self.parts])
        length = self.rows.shape[1]
        if length <= window:
            return near
        at = torch.arange(length, device=self.rows.device)
        away = at[:, None] - at[None, :]
        if self.mask is not None:
            near.mask = windowed(self.mask, at[None], window)
            if mutual:
                near.mask |= self.mask & self.mask.transpose(-1, -2)
        else:
            near.mask = (away < window)[None, None] & ((away >= 0) if self.causal else (away > -window))
        near.causal = near.plain = False
        return near

    def pad(self, x: Tensor) -> Tensor:
        """(T, ...) packed -> (B, L, ...) padded."""
        batch, length = self.rows.shape
        if self.inverse is None:
            return x.view(batch, length, *x.shape[1:])
        return x.index_select(0, self.rows.flatten()).view(batch, length, *x.shape[1:])

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, ...) padded -> (T, ...) packed."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.inverse is None else flat.index_select(0, self.inverse)

    def take(self, x: Tensor) -> Tensor:
        """(T, ...) packed -> (B, L, ...) of the documents of this part."""
        return x.index_select(0, self.rows.flatten()).view(*self.rows.shape, *x.shape[1:])

    def join(self, made: list[Tensor]) -> Tensor:
        """Of each part (B, L, ...) -> (T, ...) packed."""
        assert self.back is not None
        return torch.cat([one.flatten(0, 1) for one in made]).index_select(0, self.back)

    def to(self, device: torch.device | str) -> Layout:
        """The same on another device: compiled where the lengths are known, it costs no waiting there."""
        moved = replace(self, rows=self.rows.to(device), position=self.position.to(device))
        moved.parts = [part.to(device) for part in self.parts]
        for name in ("inverse", "mask", "hidden", "bias", "back"):
            tensor = getattr(self, name)
            setattr(moved, name, None if tensor is None else tensor.to(device))
        for name, names in (("routes", ("order", "inverse")), ("memory", ("rows", "mask", "sees", "starts", "spans"))):
            part = getattr(self, name)
            if part is not None:
                tensors = {one: getattr(part, one) for one in names if getattr(part, one) is not None}
                setattr(moved, name, replace(part, **{one: tensor.to(device) for one, tensor in tensors.items()}))
        return moved

    def of_route(self, route: int) -> Tensor:
        """(N) the tokens that take a route, rising."""
        if self.routes is None:
            count = len(self.position) if route == 0 else 0
            return torch.arange(count, device=self.position.device)
        first = sum(self.routes.sizes[:route])
        return self.routes.order[first : sum(self.routes.sizes[: route + 1])]


def windowed(mask: Tensor, at: Tensor, window: int) -> Tensor:
    """mask (B, 1, L, S) bool, and of each query its own place among the S keys, (B or 1, L): what remains of the mask
    when a token sees only what stands less than `window` tokens away, counted over tokens that it may see."""
    key = torch.arange(mask.shape[-1], device=mask.device)
    before = key <= at[:, None, :, None]
    past, future = mask & before, mask & ~before
    passed = past.cumsum(-1, dtype=torch.int32)
    near = passed[..., -1:] - passed < window  # tokens between this key and the query, the latter counted
    return (past & near) | (future & (future.cumsum(-1, dtype=torch.int32) < window))


def rows_of(doc: Tensor, documents: int) -> tuple[Tensor, Tensor | None, list[int]]:
    """(T) document numbers -> rows (B, L), inverse (T) or None, lengths."""
    counts = torch.bincount(doc.long(), minlength=documents)
    lengths = counts.tolist()
    longest = max(lengths) if lengths else 0
    starts = torch.cumsum(counts, 0) - counts
    place = torch.arange(longest, device=doc.device)
    rows = starts[:, None] + place[None, :]
    if all(length == longest for length in lengths):
        return rows, None, lengths
    valid = place[None, :] < counts[:, None]
    rows = torch.where(valid, rows, 0)
    return rows, valid.flatten().nonzero(as_tuple=True)[0], lengths


def compile_layout(sequence: Sequence, rule: AttentionRule = AttentionRule(), prefix: Tensor | None = None) -> Layout:
    """Compile `rule` for the packed documents of `sequence`.

    prefix  (documents) long, how many leading tokens of each document see each other fully (rule "prefix" only); None:
            what stands before the first span of the kinds `rule.until`
    """
    layout = _compiled(sequence, rule, prefix)
    _part(layout)
    return layout


LEAST = 1 << 17
"""Scores that grouping documents must save, or it costs more than it brings."""


def _part(layout: Layout) -> None:
    """Group documents of like length: none is shorter than half the longest of its group."""
    lengths = layout.lengths
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if not groups or 2 * lengths[index] < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(index)
    cells = sum(len(group) * lengths[group[0]] ** 2 for group in groups)
    whole = layout.rows.numel() * layout.rows.shape[1]
    if len(groups) < 2 or whole - cells < max(LEAST, whole // 2):
        return
    device = layout.rows.device
    back, first = torch.zeros(sum(lengths), dtype=torch.long, device=device), 0
    for group in groups:
        chosen, longest = torch.tensor(group, device=device), lengths[group[0]]
        rows, own = layout.rows[chosen, :longest], [lengths[index] for index in group]
        even = own[-1] == longest
        mask = layout.mask
        if mask is not None:
            mask = None if layout.plain and even else mask[chosen, :, :longest, :longest]
        part = Layout(rows, None, mask, layout.causal, layout.position, lengths=own)
        if layout.memory is not None:
            memory = layout.memory
            part.memory = replace(memory, rows=memory.rows[chosen], mask=memory.mask[chosen, :, :longest])
        valid = torch.arange(longest, device=device)[None, :] < torch.tensor(own, device=device)[:, None]
        back[rows[valid]] = first + valid.flatten().nonzero(as_tuple=True)[0]
        first += rows.numel()
        layout.parts.append(part)
    layout.back = back


def _compiled(sequence: Sequence, rule: AttentionRule, prefix: Tensor | None) -> Layout:
    rows, inverse, lengths = rows_of(sequence.doc, sequence.documents)
    layout = Layout(rows, inverse, None, True, sequence.position, lengths=lengths)
    layout.routes = _routes(sequence)
    layout.memory = _memory(sequence, rule, layout)
    branched = bool((sequence.branch != 0).any())
    unseen = [span.mode != "memory" and not span.visible for span in sequence.spans]
    apart = _span_numbers(sequence, unseen) if any(unseen) else None
    layout.hidden = None if apart is None else apart >= 0
    if rule.kind == "causal" and not branched and not rule.bidirectional and apart is None:
        return layout
    layout.causal = False
    length = rows.shape[1]
    place = torch.arange(length, device=rows.device)
    counts = torch.tensor(lengths, device=rows.device)
    valid = place[None, :] < counts[:, None]  # (B, L)
    if rule.kind == "full" and not branched and apart is None:
        if inverse is not None:
            layout.mask, layout.plain = valid[:, None, None, :].expand(-1, 1, length, -1), True
        return layout
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=rows.device)
    if rule.kind != "full":
        allowed = (place[:, None] >= place[None, :])[None]
    if rule.kind == "prefix":
        prefix = _prefix(sequence, rule, counts) if prefix is None else prefix
        inside = place[None, :] < prefix[:, None]
        allowed = allowed | (inside[:, :, None] & inside[:, None, :])
    if rule.bidirectional:
        together = _span_numbers(sequence, [span.kind in rule.bidirectional for span in sequence.spans])[rows]
        allowed = allowed | ((together[:, :, None] == together[:, None, :]) & (together >= 0)[:, :, None])
    if apart is not None:
        apart = apart[rows]
        allowed = allowed & ((apart[:, None, :] < 0) | (apart[:, None, :] == apart[:, :, None]))
    if branched:
        branch = sequence.branch[rows]
        allowed = allowed & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    allowed = allowed & valid[:, None, :]
    own = torch.eye(length, dtype=torch.bool, device=rows.device)  # a padded query must see something: itself
    layout.mask = (allowed | own)[:, None]
    return layout


def _prefix(sequence: Sequence, rule: AttentionRule, counts: Tensor) -> Tensor:
    """(documents) tokens before the first span of the kinds that end the prefix."""
    if not rule.until:
        raise ValueError("rule 'prefix' needs the prefix length of every document: pass prefix (documents), or name in "
                         "rule.until the kinds whose first span ends it")  # fmt: skip
    starts, prefix = torch.cumsum(counts, 0) - counts, counts.clone()
    for span in sequence.spans:
        if span.kind in rule.until:
            doc = int(sequence.doc[span.start])
            prefix[doc] = torch.minimum(prefix[doc], span.start - starts[doc])
    if SAID in rule.until:
        for at in (sequence.weight > 0).nonzero()[:, 0].tolist():
            doc = int(sequence.doc[at])
            prefix[doc] = torch.minimum(prefix[doc], at - starts[doc])
    return prefix


def _span_numbers(sequence: Sequence, chosen: list[bool]) -> Tensor:
    """(T) the number of the span a token lies in, -1 outside the chosen spans."""
    numbers = torch.full((len(sequence),), -1, dtype=torch.long)
    for number, (span, one) in enumerate(zip(sequence.spans, chosen)):
        if one:
            numbers[span.start : span.start + span.length] = number
    return numbers.to(sequence.ids.device)


def _routes(sequence: Sequence) -> Routes | None:
    spans = [span for span in sequence.spans if span.route and span.mode != "memory"]
    if not spans:
        return None
    route = torch.zeros(len(sequence), dtype=torch.long)
    for span in spans:
        assert span.route is not None
        route[span.start : span.start + span.length] = span.route
    return routes_of(route.to(sequence.ids.device))


def routes_of(route: Tensor) -> Routes:
    """(T) the route of each token -> tokens sorted by it."""
    order = torch.argsort(route, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return Routes(order, inverse, torch.bincount(route).tolist())


def _memory(sequence: Sequence, rule: AttentionRule, layout: Layout) -> MemoryLayout | None:
    """Compile who reads what; in a branch only what stands on its trunk or in itself."""
    spans = [span for span in sequence.spans if span.mode == "memory"]
    if not spans:
        return None
    device = sequence.ids.device
    at = torch.tensor([span.start for span in spans], device=device)
    length = torch.tensor([span.length for span in spans], device=device)
    first = torch.cumsum(torch.bincount(sequence.doc.long(), minlength=sequence.documents), 0)
    first = first - torch.bincount(sequence.doc.long(), minlength=sequence.documents)
    doc = sequence.doc[at].long()
    if bool((doc[1:] < doc[:-1]).any()):
        raise ValueError("memory spans must stand in the order of their documents")
    token_doc, starts = doc.repeat_interleave(length), (at - first[doc]).repeat_interleave(length)
    branch = sequence.branch[at].repeat_interleave(length)
    span = torch.arange(len(spans), device=device).repeat_interleave(length)
    rows, _, lengths = rows_of(token_doc, sequence.documents)
    counts = torch.tensor(lengths, device=device)
    valid = (torch.arange(rows.shape[1], device=device)[None, :] < counts[:, None])[:, None, :]  # (B, 1, S)
    place = torch.arange(layout.rows.shape[1], device=device)[None, :, None]
    own = sequence.branch[layout.rows][:, :, None]  # (B, L, 1)
    theirs = branch[rows][:, None, :]
    allowed = valid & ((theirs == 0) | (theirs == own))
    if rule.memory != "all":
        allowed = allowed & (starts[rows][:, None, :] <= place)
    if rule.memory == "latest":
        number = torch.where(allowed, span[rows][:, None, :], -1)
        allowed = allowed & (number == number.amax(-1, keepdim=True))
    some = allowed.any(-1)
    sees = layout.pack(some[:, :, None])[:, 0]
    return MemoryLayout(rows, (allowed | ~some[:, :, None])[:, None], None if bool(sees.all()) else sees, starts,
                        span, lengths, rule.memory)  # fmt: skip
