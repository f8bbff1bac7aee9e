"""Gradient caching: many micro-batches are one big batch; over ranks too."""

from __future__ import annotations

import pytest
import torch
from tiny_training import Pictures, tiny_recipe, tiny_stage

from sensorium.connectors.global_pool import GlobalPool
from sensorium.encoders.vit import stack, vit
from sensorium.models.dual import Dual
from sensorium.nn.lora import LoRA
from sensorium.objectives.base import Share
from sensorium.objectives.contrastive import Contrastive
from sensorium.sequence import Sequence
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import build_model
from sensorium.train.caching import Cached, gradients
from sensorium.train.task import Task

OBJECTIVES = [Contrastive(), Contrastive(kind="sigmoid", labels=True)]


def dual_recipe(objective=OBJECTIVES[0], **changes):
    eye = vit(width=16, depth=1, heads=2, patch=8, size=16)
    model = Dual.Config(
        encoders={"image": eye},
        connectors={"image": GlobalPool.Config(by="mean")},
        backbone=stack(16, 2, 2, hidden=32).replace(vocab=259, positions=64),
        width=8,
        bias=-1.0,
    )
    fields = {"train": ("*",), "objectives": (objective,), "accumulate": 3, "items": 4, **changes}
    return tiny_recipe(tiny_stage("contrast", **fields), model=model)


def task_of(recipe) -> Task:
    tokenizer = Tokenizer.bytes()
    return Task(recipe, recipe.stages[0], build_model(recipe), tokenizer, None, torch.device("cpu"))


def batches(task: Task, sizes=(4, 1, 3)) -> list[Sequence]:
    source, made, start = Pictures().build(), [], 0
    for size in sizes:
        made.append(Sequence.pack([task.renderer.render(source[index]) for index in range(start, start + size)]))
        start += size
    return made


def gradients_of(task: Task) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["softmax", "sigmoid"])
def test_micro_batches_are_one_big_batch(objective):
    recipe = dual_recipe(objective)
    apart, together = task_of(recipe), task_of(recipe)
    parts = batches(apart)
    reports = [apart.backward(parts, apart.counts(parts))]
    whole = [Sequence.pack(batches(together))]
    reports.append(together.backward(whole, together.counts(whole)))
    assert reports[0]["contrastive"] == pytest.approx(reports[1]["contrastive"], rel=1e-5)
    assert reports[0]["contrastive"][1] == 8
    assert reports[0]["in_batch_accuracy"] == reports[1]["in_batch_accuracy"]
    left, right = gradients_of(apart), gradients_of(together)
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-5, rtol=1e-5, msg=name)
    assert max(float(one.abs().max()) for one in left.values()) > 1e-3


def test_without_the_cache_negatives_would_be_missing():
    recipe = dual_recipe()
    apart, together = task_of(recipe), task_of(recipe)
    parts, whole = batches(apart), [Sequence.pack(batches(together))]
    losses = [float(apart.loss(apart.complete(part))[0].sum.detach()) for part in parts]
    assert sum(losses) < float(together.loss(together.complete(whole[0]))[0].sum.detach()) - 1


def test_a_micro_batch_without_pairs_does_no_harm():
    from sensorium.sequence import Sample, Segment

    task = task_of(dual_recipe())
    parts = batches(task, (4, 3))
    expected = task.backward(parts, task.counts(parts))
    before = gradients_of(task)
    task.model.zero_grad()
    words = task.renderer.render(Sample((Segment("text", "words alone", "assistant"),)))
    parts = [*batches(task, (4, 3)), words]
    assert task.backward(parts, task.counts(parts)) == expected
    for name, gradient in gradients_of(task).items():
        torch.testing.assert_close(gradient, before[name], msg=name)


def test_both_passes_draw_the_same_random_numbers():
    adapters = {"backbone.blocks.*.attention.*": LoRA(rank=2, dropout=0.5)}
    task = task_of(dual_recipe(adapters=adapters))
    for name, parameter in task.model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    parts = [task.complete(part) for part in batches(task)]
    objective = task.stage.objectives[0]
    cached = Cached(task.model, parts, [objective], [1.0])
    torch.manual_seed(7)
    again = [objective.share(cached.outputs(index), part) for index, part in enumerate(parts)]
    joined = Share.join(again)
    loss, _ = gradients(objective, joined, 1.0)
    assert loss.sum.item() == cached.losses[0].sum.item()
    other = objective.share(task.model(parts[0]), parts[0])
    assert not torch.equal(other.rows["text"], again[0].rows["text"])  # dropout is on


class Rank:
    """One of several ranks whose rows are known beforehand; what a rank sums up is kept for the others."""

    def __init__(self, rank: int, shares: list[Share], posted: list[list[torch.Tensor]]) -> None:
        self.rank, self.world, self.shares, self.posted = rank, len(shares), shares, posted
        self.asked = 0

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        name = next(name for name, own in self.shares[self.rank].rows.items() if torch.equal(own, rows))
        return [share.rows[name] for share in self.shares]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        if len(self.posted) <= self.rank:
            self.posted.append([])
        self.posted[self.rank].append(value)
        self.asked += 1
        return torch.zeros_like(value)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["softmax", "sigmoid"])
def test_ranks_together_have_the_gradient_of_one_process(objective):
    torch.manual_seed(0)
    normal = torch.nn.functional.normalize
    rows = {"image": normal(torch.randn(9, 1, 4), dim=-1), "text": normal(torch.randn(9, 4), dim=-1)}
    rows["label"] = torch.randint(5, (9,))
    terms = {"scale": torch.tensor(5.0)}
    expected_loss, expected = gradients(objective, Share(rows, terms), 0.5)
    shares = [Share({name: one[start:stop] for name, one in rows.items()}, terms) for start, stop in ((0, 4), (4, 9))]
    posted: list[list[torch.Tensor]] = []
    found = [gradients(objective, share, 0.5, Rank(rank, shares, posted)) for rank, share in enumerate(shares)]
    assert sum(loss.sum.item() for loss, _ in found) == pytest.approx(expected_loss.sum.item(), rel=1e-5)
    for number, name in enumerate(("image", "text")):
        columns = posted[0][number] + posted[1][number]  # what all ranks say of all columns
        own = torch.cat([gradient.rows[name] for _, gradient in found]) + columns
        torch.testing.assert_close(own, expected.rows[name], atol=1e-5, rtol=1e-5)
    scale = sum(gradient.terms["scale"] for _, gradient in found)
    torch.testing.assert_close(scale, expected.terms["scale"])
