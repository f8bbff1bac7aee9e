"""Sliding windows against a dense mask written down token by token, and in groups against one padded batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mask import dense, document
from test_mask import packed as any_packed
from test_mask_parts import drawn
from test_mask_parts import packed as uneven
from torch.testing import assert_close

from sensorium.mask import AttentionRule, compile_layout, windowed
from sensorium.nn.attention import attend_own


def within(allowed: torch.Tensor, window: int) -> torch.Tensor:
    """(T, T) allowed -> of what a token may see itself, the window - 1 before it and as many behind it."""
    near = torch.zeros_like(allowed)
    for query, row in enumerate(allowed):
        seen = row.nonzero()[:, 0].tolist()
        near[query, [key for key in seen if key <= query][-window:]] = True
        near[query, [key for key in seen if key > query][: window - 1]] = True
    return near


def spread(layout) -> torch.Tensor:
    """(T, T) that a kernel gets from the layout."""
    length, mask = layout.rows.shape[1], layout.mask
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool)
        mask = mask.tril() if layout.causal else mask
    allowed = torch.zeros(sum(layout.lengths), sum(layout.lengths), dtype=torch.bool)
    for members, count, own in zip(layout.rows, layout.lengths, mask.expand(len(layout.rows), 1, -1, -1)[:, 0]):
        assert own.any(-1).all(), "a query that sees nothing gives NaN"
        assert layout.mask is None or not own[:count, count:].any(), "padding is seen"
        members = members[:count]
        allowed[members[:, None], members[None, :]] = own[:count, :count]
    return allowed


@settings(max_examples=60, deadline=None)
@given(any_packed(), st.integers(1, 6), st.sampled_from(["causal", "full", "image"]))
def test_a_window_is_its_definition(sequence, window, kind):
    rule = AttentionRule(bidirectional=("image",)) if kind == "image" else AttentionRule(kind)
    near = compile_layout(sequence, rule).near(window)
    assert near.window == window
    assert torch.equal(spread(near), within(dense(sequence, rule), window))


def test_by_hand():
    layout = compile_layout(document([0] * 5))
    assert layout.near(2).mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]
    ]  # fmt: skip
    whole = layout.near(5)
    assert (whole.mask, whole.causal) == (None, True), "a window that holds the text needs no mask"
    near = compile_layout(document([0] * 4), AttentionRule("full")).near(2)
    assert near.mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    appended = windowed(torch.ones(1, 1, 2, 5, dtype=torch.bool).tril(3), torch.tensor([[3, 4]]), 3)
    assert appended[0, 0].int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_a_latent_that_nobody_sees_takes_no_room():
    """Three noised tokens stand between: the window of those behind it reaches as far as without them."""
    sequence = document([0] * 9, [(3, 3)])
    sequence.spans = [replace(sequence.spans[0], visible=False)]
    row = spread(compile_layout(sequence).near(4))[7]
    assert row.nonzero()[:, 0].tolist() == [1, 2, 6, 7]


@pytest.mark.parametrize("rule", [AttentionRule(), AttentionRule("full"), AttentionRule(bidirectional=("image",))])
def test_groups_attend_as_one_padded_batch_does(rule):
    torch.manual_seed(0)
    sequence = uneven()
    layout = compile_layout(sequence, rule).near(30)
    assert [part.rows.shape[1] for part in layout.parts] == [260, 90, 40, 9]
    q, k, v = (drawn(len(sequence)) for _ in range(3))
    whole = attend_own(q, k, v, replace(layout, parts=[]))
    assert_close(attend_own(q, k, v, layout), whole)
    assert not torch.allclose(whole, attend_own(q, k, v, compile_layout(sequence, rule)))
