"""Who may attend to whom. A rule is a value; `Layout` compiles it, with the packed documents, to what a kernel reads.

Masks are never stored with the data: `AttentionRule` says what a token may see inside its own document, and `compile`
turns packed documents (T) into padded rows (B, L) for scaled-dot-product attention. A causal rule over documents
without branches needs no mask at all (padding sits to the right, where causal queries never look); everything else
gets one boolean mask per batch, shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sensorium.sequence import Sequence

Rule = Literal["causal", "full", "prefix"]


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """What a token sees within its document (never across documents, never another branch).

    kind           causal: what came before; full: everything; prefix: the first `prefix` tokens see each other fully,
                   the rest is causal
    bidirectional  kinds of spans whose own tokens see each other both ways (a picture inside causal text)
    """

    kind: Rule = "causal"
    bidirectional: tuple[str, ...] = ()


@dataclass(slots=True)
class Layout:
    """A compiled rule.

    rows      (B, L) index of the packed token in each padded place; padding points at token 0
    inverse   (T) place of each packed token in the flattened (B * L) rows; None when rows are the packed order itself
    mask      (B, 1, L, L) bool, True where attention is allowed; None when `causal` alone says it
    causal    whether the kernel's own causal flag is enough
    position  (T, 3) positions for rotary and learned embeddings
    """

    rows: Tensor
    inverse: Tensor | None
    mask: Tensor | None
    causal: bool
    position: Tensor
    lengths: list[int] = field(default_factory=list)

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

    prefix  (documents) long, how many leading tokens of each document see each other fully (rule "prefix" only)
    """
    rows, inverse, lengths = rows_of(sequence.doc, sequence.documents)
    layout = Layout(rows, inverse, None, True, sequence.position, lengths=lengths)
    branched = bool((sequence.branch != 0).any())
    if rule.kind == "causal" and not branched and not rule.bidirectional:
        return layout
    layout.causal = False
    length = rows.shape[1]
    place = torch.arange(length, device=rows.device)
    counts = torch.tensor(lengths, device=rows.device)
    valid = place[None, :] < counts[:, None]  # (B, L)
    if rule.kind == "full" and not branched:
        if inverse is not None:
            layout.mask = valid[:, None, None, :].expand(-1, 1, length, -1)
        return layout
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=rows.device)
    if rule.kind != "full":
        allowed = (place[:, None] >= place[None, :])[None]
    if rule.kind == "prefix":
        if prefix is None:
            raise ValueError("rule 'prefix' needs the prefix length of every document: pass prefix (documents)")
        inside = place[None, :] < prefix[:, None]
        allowed = allowed | (inside[:, :, None] & inside[:, None, :])
    if rule.bidirectional:
        together = _span_numbers(sequence, rule.bidirectional)[rows]
        allowed = allowed | ((together[:, :, None] == together[:, None, :]) & (together >= 0)[:, :, None])
    if branched:
        branch = sequence.branch[rows]
        allowed = allowed & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    allowed = allowed & valid[:, None, :]
    own = torch.eye(length, dtype=torch.bool, device=rows.device)  # a padded query must see something: itself
    layout.mask = (allowed | own)[:, None]
    return layout


def _span_numbers(sequence: Sequence, kinds: tuple[str, ...]) -> Tensor:
    """(T) the number of the span a token lies in, -1 outside spans of `kinds`."""
    numbers = torch.full((len(sequence),), -1, dtype=torch.long, device=sequence.ids.device)
    for number, span in enumerate(sequence.spans):
        if span.kind in kinds:
            numbers[span.start : span.start + span.length] = number
    return numbers
