"""Documents of very unlike lengths are attended in groups: the result is that of one padded batch."""

from dataclasses import replace

import pytest
import torch
from test_mask import document
from torch.testing import assert_close

from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.attention import attend_own, read_memory
from sensorium.sequence import Sequence

LENGTHS = (9, 260, 40, 7, 90, 40, 250, 8)


def packed(memory: bool = False, branched: bool = False) -> Sequence:
    documents = []
    for number, length in enumerate(LENGTHS):
        one = document([0] * (length - 2) + ([1, 2] if branched else [0, 0]), [(1, 3)], seed=number)
        if memory and number != 3:  # one document has nothing to read
            one = replace(one, spans=[replace(one.spans[0], mode="memory", length=2 + number % 3)])
        elif memory:
            one = replace(one, spans=[], items={})
        documents.append(one)
    return Sequence.pack(documents)


def drawn(count: int, heads: int = 2) -> torch.Tensor:
    return torch.randn(count, heads, 4, dtype=torch.float64, requires_grad=True)


RULES = [
    (AttentionRule(), False),
    (AttentionRule(), True),
    (AttentionRule("full"), False),
    (AttentionRule(bidirectional=("image",)), False),
]


@pytest.mark.parametrize(("rule", "branched"), RULES)
def test_groups_attend_as_one_padded_batch_does(rule: AttentionRule, branched: bool):
    torch.manual_seed(0)
    sequence = packed(branched=branched)
    layout = compile_layout(sequence, rule)
    assert sorted(length for part in layout.parts for length in part.lengths) == sorted(LENGTHS)
    assert [part.rows.shape[1] for part in layout.parts] == [260, 90, 40, 9]
    q, k, v = (drawn(len(sequence)) for _ in range(3))
    made = attend_own(q, k, v, layout)
    grads = torch.autograd.grad(made.square().sum(), (q, k, v))
    whole = attend_own(q, k, v, replace(layout, parts=[]))
    assert_close(made, whole)
    assert_close(grads, torch.autograd.grad(whole.square().sum(), (q, k, v)))


@pytest.mark.parametrize("reads", ["all", "before", "latest"])
def test_groups_read_memory_as_one_padded_batch_does(reads):
    torch.manual_seed(0)
    sequence = packed(memory=True)
    layout = compile_layout(sequence, AttentionRule(memory=reads))
    assert layout.parts
    count = sum(span.length for span in sequence.spans)
    q, k, v = drawn(len(sequence)), drawn(count), drawn(count)
    made = read_memory(q, k, v, layout)
    assert_close(made, read_memory(q, k, v, replace(layout, parts=[])))
    assert not made[sequence.doc == 3].any()


def test_documents_of_like_length_are_one_group():
    even = Sequence.pack([document([0] * length) for length in (200, 190, 180, 120)])
    assert compile_layout(even).parts == []
    few = Sequence.pack([document([0] * length) for length in (60, 10, 10)])  # little to save
    assert compile_layout(few).parts == []


def test_groups_move_with_their_layout():
    layout = compile_layout(packed(memory=True), AttentionRule(memory="all")).to("meta")
    assert all(part.rows.is_meta and part.memory.rows.is_meta for part in layout.parts)
    assert layout.back.is_meta
