"""A prompt in pieces, and what each of its tokens stands for, so that two prompts can be compared."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

from sensorium.mask import AttentionRule
from sensorium.sequence import Item, Sequence

Mark = Any
"""What a token stands for: its id, or (kind, content, place inside the span). Equal beginnings of marks are equal
beginnings of prompts, and leave the same keys and values."""

LEAST = 32
"""Tokens that a shared beginning must have to be worth a copy, or waiting for who reads it."""

FIELDS = ("ids", "modality", "position", "doc", "branch", "weight")


def head(sequence: Sequence, stop: int) -> Sequence:
    """The first `stop` tokens of one document. A span must not be cut."""
    cut = [span for span in sequence.spans if span.mode != "memory" and span.start < stop < span.start + span.length]
    if cut:
        raise ValueError(f"token {stop} lies inside the {cut[0].kind} at {cut[0].start}, which cannot be cut")
    spans = [span for span in sequence.spans if span.start < stop]
    whole = Sequence(spans=spans, items=sequence.items, **{name: getattr(sequence, name)[:stop] for name in FIELDS})
    return next(whole.unpack())


def tail(sequence: Sequence, start: int) -> Sequence:
    """What follows the first `start` tokens of one document. A span must not be cut."""
    spans, items = [], {}
    for span in sequence.spans:
        if span.start >= start:
            members = items.setdefault(span.kind, [])
            spans.append(replace(span, start=span.start - start, item=len(members)))
            members.append(sequence.items[span.kind][span.item])
        elif span.mode != "memory" and span.start + span.length > start:
            raise ValueError(f"token {start} lies inside the {span.kind} at {span.start}, which cannot be cut")
    cut = {name: getattr(sequence, name)[start:] for name in FIELDS}
    return Sequence(spans=spans, items=items, **cut)


def piece(sequence: Sequence, room: int, rule: AttentionRule) -> int:
    """How many leading tokens of one document to read at once: `room` at most, but no span is cut, and nothing where
    what comes later is read by what stands before it."""
    if room >= len(sequence):
        return len(sequence)
    memory = any(span.mode == "memory" for span in sequence.spans)
    if rule.kind == "prefix" or (rule.memory == "all" and memory):
        return len(sequence)
    stop = max(room, 1)
    for span in sorted(sequence.spans, key=lambda span: span.start):
        if span.mode != "memory" and span.start < stop < span.start + span.length:
            stop = span.start or span.length
    return stop


def marks_of(sequence: Sequence, rule: AttentionRule) -> list[Mark] | None:
    """What the tokens of one document stand for; None where equal beginnings do not mean equal states, or the stream
    has several ids a token."""
    if rule.kind == "prefix" or sequence.ids.dim() > 1:
        return None
    marks: list[Mark] = sequence.ids.tolist()
    for span in sequence.spans:
        content = _content(sequence.items[span.kind][span.item])
        if span.mode == "memory":  # what stands beside a token is part of what the token stands for
            marks[span.start] = (marks[span.start], span.kind, content)
            continue
        for place in range(span.length):
            marks[span.start + place] = (span.kind, content, place)
    return marks


def owned(marks: list[Mark] | None, owner: str) -> list[Mark] | None:
    """Marks that are equal to none of another owner's, from the first on."""
    return marks if not marks or not owner else [(owner, marks[0]), *marks[1:]]


def _content(item: Item) -> Any:
    """What features are made of: the media and, where the connector reads it, a text; equal to nothing if unnamed."""
    if not item.key:
        return object()
    return item.key if item.text is None else (item.key, *item.text.tolist())


def shared(marks: Many[Mark], held: Many[Mark], sequence: Sequence, rule: AttentionRule) -> int:
    """How many leading tokens of a document with these marks are held already; not all of them, since an answer needs
    the state of the last."""
    limit = min(len(held), len(marks) - 1)
    common = 0
    step = 1 << max(limit.bit_length() - 1, 0)
    while step and common < limit:  # whole runs are compared at once, halved where they differ
        stop = min(common + step, limit)
        if marks[common:stop] == held[common:stop]:
            common = stop
        else:
            step //= 2
    for span in sequence.spans:
        if span.mode != "memory" and span.start < common < span.start + span.length:
            common = span.start
    late = any(span.mode == "memory" and span.start >= common for span in sequence.spans)
    return 0 if late and rule.memory == "all" else common
