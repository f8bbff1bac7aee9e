"""Contrastive losses: by hand, in pieces, over ranks, and with labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sensorium.objectives import contrastive
from sensorium.objectives.base import Share
from sensorium.objectives.contrastive import Contrastive, fingerprints, similarity
from sensorium.sequence import Sequence

KINDS = [
    Contrastive(),
    Contrastive(labels=True),
    Contrastive(kind="sigmoid"),
    Contrastive(kind="sigmoid", labels=True),
]
every_kind = pytest.mark.parametrize("objective", KINDS, ids=lambda one: f"{one.kind}{' labels' * one.labels}")


def share(pairs: int = 7, queries: int = 1, seed: int = 0, labels: int = 4, grad: bool = False) -> Share:
    torch.manual_seed(seed)
    image = F.normalize(torch.randn(pairs, queries, 5), dim=-1).requires_grad_(grad)
    text = F.normalize(torch.randn(pairs, 5), dim=-1).requires_grad_(grad)
    terms = {"scale": torch.tensor(9.0, requires_grad=grad), "bias": torch.tensor(-2.0, requires_grad=grad)}
    return Share({"image": image, "text": text, "label": torch.randint(labels, (pairs,))}, terms)


def own_rows(every: Share, start: int, stop: int) -> Share:
    return Share({name: rows[start:stop] for name, rows in every.rows.items()}, every.terms)


def test_softmax_is_the_mean_of_two_cross_entropies():
    one = share()
    logits = 9.0 * one.rows["image"][:, 0] @ one.rows["text"].T - 2.0
    target = torch.arange(7)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss = Contrastive().over(one, one, 0)
    assert loss.count == 7
    assert loss.sum / loss.count == pytest.approx(expected.item(), abs=1e-5)


def test_sigmoid_is_log_sigmoid_over_the_whole_table_per_pair():
    one = share()
    logits = 9.0 * one.rows["image"][:, 0] @ one.rows["text"].T - 2.0
    sign = 2 * torch.eye(7) - 1
    expected = -F.logsigmoid(sign * logits).sum() / 7
    loss = Contrastive(kind="sigmoid").over(one, one, 0)
    assert loss.sum / loss.count == pytest.approx(expected.item(), rel=1e-5)


def test_labels_make_all_of_one_label_positives_by_hand():
    """Two pictures, two texts, one label: whatever the similarities, the target is one half each."""
    image = torch.tensor([[[1.0, 0]], [[0.0, 1]]])
    text = torch.tensor([[1.0, 0], [0.0, 1]])
    terms = {"scale": torch.tensor(1.0)}
    one = Share({"image": image, "text": text, "label": torch.tensor([5, 5])}, terms)
    row = math.log(math.e + 1) - 0.5  # log-sum-exp of (1, 0), minus the mean logit
    assert Contrastive(labels=True).over(one, one, 0).sum == pytest.approx(2 * row)
    one.rows["label"] = torch.tensor([5, 6])
    assert Contrastive(labels=True).over(one, one, 0).sum == pytest.approx(2 * (math.log(math.e + 1) - 1))
    one.rows["label"] = torch.tensor([5, 5])
    sigmoid = -2 * F.logsigmoid(torch.tensor(1.0)) - 2 * F.logsigmoid(torch.tensor(0.0))
    assert Contrastive(kind="sigmoid", labels=True).over(one, one, 0).sum == pytest.approx(sigmoid.item())


@every_kind
def test_without_two_of_a_label_labels_change_nothing(objective):
    one = share()
    one.rows["label"] = torch.arange(7)
    plain = objective.replace(labels=False)
    assert objective.over(one, one, 0).sum == pytest.approx(plain.over(one, one, 0).sum.item())


@every_kind
def test_a_batch_over_ranks_is_the_whole_batch(objective):
    """Each rank measures its rows alone; sums and gradients of all together are those of one process."""
    whole = share(grad=True, queries=3)
    expected = objective.over(whole, whole, 0)
    expected.sum.backward()
    parts = share(grad=True, queries=3)
    total = 0.0
    for start, stop in ((0, 2), (2, 2), (2, 7)):
        total = total + objective.over(own_rows(parts, start, stop), parts, start).sum
    total.backward()
    assert total.item() == pytest.approx(expected.sum.item(), rel=1e-5)
    for name in ("image", "text"):
        torch.testing.assert_close(parts.rows[name].grad, whole.rows[name].grad, atol=1e-5, rtol=1e-5)
    for name in ("scale", "bias"):
        torch.testing.assert_close(parts.terms[name].grad, whole.terms[name].grad, atol=1e-5, rtol=1e-5)


@every_kind
def test_pieces_change_nothing(objective, monkeypatch):
    whole, pieces = share(grad=True), share(grad=True)
    expected = objective.over(whole, whole, 0)
    expected.sum.backward()
    monkeypatch.setattr(contrastive, "CELLS", 21)  # three rows at a time
    loss = objective.over(pieces, pieces, 0)
    loss.sum.backward()
    assert loss.sum.item() == pytest.approx(expected.sum.item(), rel=1e-6)
    assert loss.report["in_batch_accuracy"] == expected.report["in_batch_accuracy"]
    torch.testing.assert_close(pieces.rows["image"].grad, whole.rows["image"].grad)


def test_the_most_similar_query_counts():
    image = torch.tensor([[[1.0, 0], [0, 1]], [[0.6, 0.8], [0.8, 0.6]]])
    assert similarity(image, torch.tensor([[0.0, 1]])).tolist() == [[1.0], [pytest.approx(0.8)]]


def test_nothing_to_compare_is_zero_and_keeps_the_graph():
    none = share(pairs=0, grad=True)
    loss = Contrastive().over(none, none, 0)
    loss.sum.backward()
    assert loss.sum == 0
    assert none.rows["image"].grad is not None
    assert none.terms["scale"].grad == 0


def packed(*documents: list[int]) -> Sequence:
    ids = torch.tensor([token for document in documents for token in document])
    doc = torch.tensor([number for number, document in enumerate(documents) for _ in document])
    zeros = torch.zeros(len(ids), dtype=torch.long)
    return Sequence(ids, zeros.to(torch.uint8), zeros[:, None].expand(-1, 3), doc, zeros, zeros.float())


def test_equal_texts_have_equal_labels_wherever_they_stand():
    first = fingerprints(packed([1, 2, 3], [3, 2, 1], [1, 2, 3], [1, 2], [1, 2, 3, 0]))
    assert first[0] == first[2]
    assert len(set(first.tolist())) == 4
    assert fingerprints(packed([9], [1, 2, 3]))[1] == first[0]
    many = fingerprints(packed(*[[i, j] for i in range(60) for j in range(60)]))
    assert len(set(many.tolist())) == 3600
