"""Where tokens of items go: into the stream by their spans, or beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.sequence import Sequence, Span


def spans_of(kind: str, sequence: Sequence, tokens: Tensor) -> list[Span]:
    """The spans of a kind in the order of their items.

    Raises ValueError with both numbers when spans and tokens (N, D) differ: counts are planned once, and checked here.
    """
    inside = (span for span in sequence.spans if span.kind == kind and span.mode != "latent")
    spans = sorted(inside, key=lambda span: span.item)
    planned = sum(span.length - len(span.marks) for span in spans)
    if planned != tokens.shape[0]:
        raise ValueError(
            f"{len(spans)} {kind} spans were planned with {planned} tokens, the connector made {tokens.shape[0]}: "
            "the sequence was rendered for another model, or an item was changed after rendering"
        )
    return spans


def place(x: Tensor, tokens: Tensor, kind: str, sequence: Sequence) -> Tensor:
    """Write item tokens (N, D) over the embeddings x (T, D) at the spans of `kind`, in the order of the items."""
    spans = spans_of(kind, sequence, tokens)
    tokens = tokens.to(x.dtype)
    if not len(tokens):  # no item here: the connector still takes part in every collective
        return x + tokens.sum()
    return x.index_copy(0, places(spans, x.device), tokens)


def places(spans: list[Span], device: torch.device) -> Tensor:
    """(N) the tokens of spans, one after another, marks left out."""
    ranges = [_free(span, device) for span in spans]
    return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.long, device=device)


def _free(span: Span, device: torch.device) -> Tensor:
    inside = torch.arange(span.start, span.start + span.length, device=device)
    if not span.marks:
        return inside
    free = torch.ones(span.length, dtype=torch.bool, device=device)
    free[list(span.marks)] = False
    return inside[free]


def gather_memory(tokens: dict[str, Tensor], sequence: Sequence) -> Tensor | None:
    """Item tokens (N, D) of each kind -> memory (M, D) in the order of the memory spans; None without such kinds."""
    if not tokens:
        return None
    pieces: dict[int, Tensor] = {}
    for kind, values in tokens.items():
        spans = spans_of(kind, sequence, values)
        pieces |= {id(span): part for span, part in zip(spans, values.split([span.length for span in spans]))}
    ordered = [pieces[id(span)] for span in sequence.spans if id(span) in pieces]
    return torch.cat(ordered) if ordered else torch.cat(list(tokens.values()))


def sources(sequence: Sequence) -> Sequence:
    """The sources of all documents, packed in their order."""
    read = [item.source for item in sequence.items.get("text", ()) if item.source is not None]
    if not read:
        raise ValueError("the model reads a source, the sequence has none: render it with the template's `start`")
    return Sequence.pack(read)
