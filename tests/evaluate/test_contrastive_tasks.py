"""Zero-shot classification and retrieval with vectors that are known."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sensorium.data.emoji import concepts
from sensorium.errors import UserError
from sensorium.evaluate import contrastive
from sensorium.evaluate.contrastive import Retrieval, ZeroShot, ranks
from sensorium.evaluate.task import EvaluationTask, Subject, shuffled
from sensorium.evaluate.wording import places
from sensorium.infer.vectors import picture_vectors, text_vectors
from sensorium.recipes.clip import clip
from sensorium.recipes.common import evaluations_of
from sensorium.recipes.llava import llava
from sensorium.train.build import build_model, tokenizer_of
from sensorium.train.finish import evaluate, subject_of


def knowing(monkeypatch, wrong: frozenset[str] = frozenset()) -> None:
    """A model that has one direction for each concept; it sees the concepts in `wrong` as another."""
    place = {concept.key: index for index, concept in enumerate(concepts())}
    named = sorted(((concept.captions["en"], concept.key) for concept in concepts()), key=lambda pair: -len(pair[0]))

    def key_of(text: str) -> str:
        return next(key for name, key in named if text.endswith(name))

    def unit(keys: list[str]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([place[key] for key in keys]), len(place)).float()

    def seen(engine, media, progress=None):
        keys = [one.concept if one.concept not in wrong else concepts()[0].key for one in media]
        return unit(keys)[:, None]

    monkeypatch.setattr(contrastive, "picture_vectors", seen)
    monkeypatch.setattr(contrastive, "text_vectors", lambda engine, texts: unit([key_of(text) for text in texts]))


@pytest.fixture
def subject() -> Subject:
    recipe = clip("tiny")
    return subject_of(recipe, build_model(recipe), tokenizer_of(recipe))


def test_zero_shot_of_one_who_knows_is_right_and_blind_is_not(monkeypatch, subject):
    knowing(monkeypatch)
    result = ZeroShot(split="dev_artist", n=120).run(subject)
    [one] = result.evaluations
    assert (one.score, one.n, one.chance) == (1.0, 100, 0.02)
    assert one.blind == 0.0
    assert len(result.examples) == 16
    assert all(example.right and not example.blind_right for example in result.examples)
    assert dict(result.tables[0].rows)["{name}"] == "100.0%"


def test_zero_shot_cuts_a_split_into_groups_of_classes():
    items = ZeroShot(split="val_concept", n=1000).items()
    groups = Counter(group for _, _, group in items)
    assert set(groups.values()) == {150}  # 50 concepts by three artists
    assert len({concept.key for concept, _, _ in items}) == 50 * len(groups)
    with pytest.raises(UserError, match="fewer than the 500 classes"):
        ZeroShot(split="val_concept", n=1000, classes=500).items()


def test_what_is_wrong_counts_item_by_item(monkeypatch, subject):
    task = ZeroShot(split="dev_artist", n=50)
    wrong = frozenset(concept.key for concept, _, _ in task.items()[:10])
    knowing(monkeypatch, wrong)
    result = task.run(subject)
    assert result.evaluations[0].score == pytest.approx(0.8)
    records = {one.id: one for one in result.records}
    assert records.keys() == result.items.keys() == task.shown_items().keys()
    assert {one.group for one in result.records if not one.score} == wrong
    assert all(one.said == one.expected for one in result.records if one.score)
    assert all(one.blind_said == one.expected for one in result.records if one.blind_score)
    assert all(len(result.items[one.id].media) == 1 for one in result.records)


def test_retrieval_finds_each_picture_once_and_blind_finds_none(monkeypatch, subject):
    knowing(monkeypatch)
    result = Retrieval(split="val_concept").run(subject)
    assert [one.task for one in result.evaluations] == [
        "image_to_text_R@1", "image_to_text_R@5", "text_to_image_R@1", "text_to_image_R@5",
    ]  # fmt: skip
    count = len({concept.key for concept, _ in Retrieval(split="val_concept").items()})
    for one, k in zip(result.evaluations, (1, 5, 1, 5)):
        assert (one.score, one.blind, one.n, one.chance) == (1.0, 0.0, count, k / count)
    assert len(Retrieval(split="val_artist").items()) == 500


def test_what_was_found_is_recorded_picture_by_picture(monkeypatch, subject):
    task = Retrieval(split="dev_concept", n=40, at=(2, 1))
    keys = [concept.key for concept, _ in task.items()]
    knowing(monkeypatch, frozenset(keys[:10]))
    result = task.run(subject)
    records = {one.id: one for one in result.records}
    assert list(records) == list(result.items) == list(task.shown_items())
    assert [one.group for one in result.records if not one.score] == keys[:10]
    assert task.headline == result.evaluations[0].task == "image_to_text_R@2"
    for kind, mean in (("score", result.evaluations[0].score), ("blind_score", result.evaluations[0].blind)):
        assert sum(getattr(one, kind) for one in result.records) / 40 == pytest.approx(mean)
    assert all(one.said == one.expected for one in result.records if one.score)
    assert all(one.pictures == places(result.items[one.id]) for one in result.records)


def test_equal_scores_are_no_hit():
    assert ranks(torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.2, 0.1]]), torch.tensor([0, 1])).tolist() == [1, 1]


def test_shuffling_leaves_nobody_its_own():
    order = shuffled(50, 3)
    assert sorted(order) == list(range(50))
    assert all(item != other for item, other in enumerate(order))


def test_a_real_model_is_asked_in_batches_and_answers_the_same(subject):
    task = Retrieval(split="dev_concept", n=12)
    media = [picture for _, picture in task.items()]
    together = picture_vectors(subject.engine, media)
    assert together.shape == (12, 1, 64)
    subject.engine.items = 5
    torch.testing.assert_close(picture_vectors(subject.engine, media), together, atol=1e-5, rtol=0)
    done = []
    words = text_vectors(subject.engine, ["a cat", "a dog"], progress=done.append)
    torch.testing.assert_close(words[1:], text_vectors(subject.engine, ["a dog"]), atol=1e-5, rtol=0)
    assert done[-1] == 2
    recipe = clip("tiny").replace(evaluations=(task, ZeroShot(split="dev_artist", n=50)))
    results = evaluate(recipe, subject)
    assert [len(result.evaluations) for result in results] == [4, 1]


def test_a_model_without_a_shared_space_is_told_so():
    recipe = llava("tiny")
    subject = subject_of(recipe, build_model(recipe), tokenizer_of(recipe))
    with pytest.raises(UserError, match="no space that pictures and texts share"):
        Retrieval(split="dev_concept", n=3).run(subject)


def test_every_model_has_tasks_that_fit_it():
    assert all(isinstance(task, EvaluationTask) for task in evaluations_of(llava("tiny").model, 5))
    assert {type(task) for task in evaluations_of(clip("tiny").model, 5)} == {ZeroShot, Retrieval}
