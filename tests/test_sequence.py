"""Packing and its inverse; which token each token is predicted from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.sequence import Item, Sequence, Span


def sequence_of(length, spans=(), items=None, branch=None, doc=None):
    return Sequence(
        ids=torch.arange(length) + 7,
        modality=torch.zeros(length, dtype=torch.uint8),
        position=torch.arange(length)[:, None].expand(-1, 3).contiguous(),
        doc=torch.tensor(doc) if doc is not None else torch.zeros(length, dtype=torch.long),
        branch=torch.tensor(branch) if branch is not None else torch.zeros(length, dtype=torch.long),
        weight=torch.rand(length),
        spans=list(spans),
        items=items or {},
    )


def item(number):
    return Item(torch.full((1,), float(number)), (1, 1), str(number))


@st.composite
def documents(draw):
    """A document of a few pieces: text, pictures and sounds of a few tokens each; some pictures placed twice."""
    spans, items, length = [], {}, 0
    for kind in draw(st.lists(st.sampled_from(["text", "image", "audio", "again"]), min_size=1, max_size=6)):
        size = draw(st.integers(1, 4))
        members = items.setdefault("image", []) if kind == "again" else items.setdefault(kind, [])
        if kind == "text":
            del items["text"]
        elif kind == "again" and members:
            spans.append(Span("image", length, size, 0, layer=2))
        elif kind == "again":
            del items["image"]
        else:
            members.append(item(draw(st.integers(0, 99))))
            spans.append(Span(kind, length, size, len(members) - 1))
        length += size
    return sequence_of(length, spans, items)


def same(left, right):
    names = ("ids", "modality", "position", "doc", "branch", "weight")
    assert all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)
    assert left.spans == right.spans
    assert {k: [one.key for one in v] for k, v in left.items.items()} == {
        k: [one.key for one in v] for k, v in right.items.items()
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=5))
def test_unpack_is_the_inverse_of_pack(parts):
    packed = Sequence.pack(parts)
    assert len(packed) == sum(map(len, parts))
    assert packed.documents == len(parts)
    again = list(packed.unpack())
    for left, right in zip(parts, again, strict=True):
        same(left, right)
    same(Sequence.pack(again), packed)


@settings(max_examples=30, deadline=None)
@given(st.lists(documents(), min_size=3, max_size=5))
def test_packing_packs_is_packing_all(parts):
    same(Sequence.pack([Sequence.pack(parts[:2]), *parts[2:]]), Sequence.pack(parts))


def test_spans_and_items_are_moved_by_hand():
    one = sequence_of(5, [Span("image", 1, 2, 0)], {"image": [item(1)]})
    two = sequence_of(4, [Span("audio", 0, 1, 0), Span("image", 2, 2, 0)], {"audio": [item(2)], "image": [item(3)]})
    packed = Sequence.pack([one, two])
    assert packed.spans == [Span("image", 1, 2, 0), Span("audio", 5, 1, 0), Span("image", 7, 2, 1)]
    assert [member.key for member in packed.items["image"]] == ["1", "3"]
    assert packed.doc.tolist() == [0] * 5 + [1] * 4


def test_nothing_to_pack_is_an_error():
    with pytest.raises(ValueError, match="nothing to pack"):
        Sequence.pack([])


def test_predecessors_of_plain_documents():
    assert sequence_of(5, doc=[0, 0, 0, 1, 1]).predecessor().tolist() == [-1, 0, 1, -1, 3]


def test_predecessors_with_branches_by_hand():
    """Document 0: trunk 0 1 2, branches 3 4 and 5; document 1: trunk 6, branches 7 and 8 9."""
    sequence = sequence_of(10, doc=[0] * 6 + [1] * 4, branch=[0, 0, 0, 1, 1, 2, 0, 1, 2, 2])
    assert sequence.predecessor().tolist() == [-1, 0, 1, 2, 3, 2, -1, 6, 6, 8]


def test_branches_of_neighbouring_documents_do_not_touch():
    """A document that ends in branch 1 before one that is all trunk; and branches without a trunk."""
    assert sequence_of(4, doc=[0, 0, 1, 1], branch=[0, 1, 0, 0]).predecessor().tolist() == [-1, 0, -1, 2]
    assert sequence_of(4, doc=[0, 0, 0, 0], branch=[1, 1, 2, 2]).predecessor().tolist() == [-1, 0, -1, 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=4))
def test_predecessors_packed_are_predecessors_apart(shapes):
    """shapes: for each document the lengths of its trunk and branches."""
    parts = []
    for lengths in shapes:
        branch = [number for number, length in enumerate(lengths) for _ in range(length)]
        parts.append(sequence_of(len(branch), branch=branch))
    apart, start = [], 0
    for part in parts:
        apart += [index + start if index >= 0 else -1 for index in part.predecessor().tolist()]
        start += len(part)
    assert Sequence.pack(parts).predecessor().tolist() == apart


def test_to_moves_tensors_and_items():
    moved = sequence_of(2, [Span("image", 0, 1, 0)], {"image": [item(1)]}).to("meta")
    assert moved.ids.is_meta
    assert moved.items["image"][0].data.is_meta
    assert moved.spans == [Span("image", 0, 1, 0)]
