"""Next-token loss and likelihoods against cross-entropy written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from sensorium.models.wiring import Outputs
from sensorium.objectives import language
from sensorium.objectives.language import NextToken, log_likelihood, wanted
from sensorium.sequence import Sequence


def sequence_of(ids, doc, weight, branch=None):
    length = len(ids)
    return Sequence(
        ids=torch.tensor(ids),
        modality=torch.zeros(length, dtype=torch.uint8),
        position=torch.arange(length)[:, None].expand(-1, 3).contiguous(),
        doc=torch.tensor(doc),
        branch=torch.tensor(branch or [0] * length),
        weight=torch.tensor(weight, dtype=torch.float32),
    )


def outputs_of(length, vocab=5, seed=0):
    table = torch.randn(length, vocab, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    asked = []

    def logits(index):
        asked.append(index.tolist())
        return table[index]

    return Outputs(table, logits), table, asked


def test_by_hand():
    """Two documents; the first token of each is predicted by nothing, whatever its weight."""
    sequence = sequence_of([1, 2, 3, 4, 0], [0, 0, 0, 1, 1], [1, 0, 0.5, 1, 2])
    outputs, table, asked = outputs_of(5)
    loss = NextToken()(outputs, sequence)
    log = F.log_softmax(table.detach(), -1)
    assert float(loss.sum.detach()) == pytest.approx(float(-(0.5 * log[1, 3] + 2 * log[3, 0])))
    assert float(loss.count) == 2.5
    assert asked == [[1, 3]]  # the head runs only where a loss is wanted


def test_uniform_logits_cost_log_vocab():
    outputs = Outputs(torch.zeros(4, 8), lambda index: torch.zeros(len(index), 8))
    loss = NextToken()(outputs, sequence_of([1, 2, 3, 4], [0] * 4, [1] * 4))
    assert float(loss.sum / loss.count) == pytest.approx(math.log(8))


def test_the_first_token_of_a_branch_is_predicted_from_the_trunk():
    """Trunk 0 1, branch 1: 2 3, branch 2: 4."""
    sequence = sequence_of([0, 1, 2, 3, 4], [0] * 5, [0, 1, 1, 1, 1], [0, 0, 1, 1, 2])
    places, targets, weights = wanted(sequence)
    assert places.tolist() == [0, 1, 2, 1]
    assert targets.tolist() == [1, 2, 3, 4]
    assert weights.tolist() == [1, 1, 1, 1]


def test_likelihoods_per_document_and_branch():
    sequence = sequence_of([0, 1, 2, 3, 4, 0, 1], [0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 2, 0, 0])
    outputs, table, _ = outputs_of(7)
    sums, counts = log_likelihood(outputs, sequence)
    log = F.log_softmax(table.detach().double(), -1)
    expected = [[0.0, log[1, 2] + log[2, 3], log[1, 4]], [log[5, 1], 0.0, 0.0]]
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert counts.tolist() == [[0, 2, 1], [1, 0, 0]]


def test_in_pieces_it_is_the_same(monkeypatch):
    sequence = sequence_of([1, 2, 3, 4, 0, 1, 2], [0] * 7, [1] * 7)
    outputs, table, _ = outputs_of(7)
    whole = NextToken()(outputs, sequence)
    (expected,) = torch.autograd.grad(whole.sum, table)
    monkeypatch.setattr(language, "CHUNK", 2)
    outputs, table, asked = outputs_of(7)
    pieces = NextToken()(outputs, sequence)
    (found,) = torch.autograd.grad(pieces.sum, table)
    assert sorted(map(tuple, asked)) == [(0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5)]  # forward, then backward
    assert float(pieces.sum.detach()) == pytest.approx(float(whole.sum.detach()), rel=1e-6)
    torch.testing.assert_close(found, expected)


def test_in_pieces_no_more_logits_than_a_piece_has_are_kept(monkeypatch):
    """What autograd saves for the backward pass grows with the places, not with places times vocabulary."""
    head = torch.randn(500, 8, requires_grad=True)
    hidden = torch.randn(65, 8, requires_grad=True)
    outputs = Outputs(hidden, lambda index: hidden[index] @ head.T)
    sequence = sequence_of(list(range(65)), [0] * 65, [1] * 65)
    most = {}
    for rows in (100, 16):  # 64 places: in one piece, in four
        kept = [0]
        monkeypatch.setattr(language, "CHUNK", rows)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            NextToken()(outputs, sequence)
        most[rows] = max(kept)
    assert most[100] >= 64 * 500
    assert most[16] < 16 * 500


def test_likelihoods_in_pieces_are_the_same(monkeypatch):
    sequence = sequence_of([0, 1, 2, 3, 4, 0, 1], [0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 2, 0, 0])
    outputs, _, _ = outputs_of(7)
    sums, counts = log_likelihood(outputs, sequence)
    monkeypatch.setattr(language, "CHUNK", 3)
    again, same = log_likelihood(outputs, sequence)
    torch.testing.assert_close(again, sums)
    assert torch.equal(same, counts)


def test_nothing_to_learn_is_zero_with_a_gradient():
    outputs, table, asked = outputs_of(3)
    loss = NextToken()(outputs, sequence_of([1, 2, 3], [0] * 3, [0] * 3))
    loss.sum.backward()
    assert (loss.sum.item(), loss.count.item()) == (0.0, 0.0)
    assert asked == [[]]  # the head runs on no token, so that its parameters take part in every collective
    assert table.grad is not None
    assert table.grad.abs().sum() == 0


def test_the_count_is_of_what_the_sum_is_over():
    """A weight on a token that nothing predicts is in neither."""
    outputs, _, _ = outputs_of(2)
    loss = NextToken()(outputs, sequence_of([1, 2], [0, 1], [1, 1]))
    assert (loss.sum.item(), loss.count.item()) == (0.0, 0.0)


def test_a_sum_in_float32_from_half_precision_logits():
    table = torch.randn(4, 6).bfloat16()
    loss = NextToken()(Outputs(table, lambda index: table[index]), sequence_of([1, 2, 3, 4], [0] * 4, [1] * 4))
    assert loss.sum.dtype == torch.float32
    expected = F.cross_entropy(table[:3].float(), torch.tensor([2, 3, 4]), reduction="sum")
    torch.testing.assert_close(loss.sum, expected)
