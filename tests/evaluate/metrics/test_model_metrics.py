"""Metrics that ask a model, or read what it finds likely: CLIPScore, perplexity; and METEOR, which asks a package."""

from __future__ import annotations

import importlib.util
import math

import pytest
import tiny_fused
import torch

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.perplexity import nats_by_modality, perplexities
from sensorium.infer.engine import Engine
from sensorium.infer.likelihoods import Likelihoods
from sensorium.infer.vectors import picture_vectors, text_vectors
from sensorium.objectives.language import log_likelihood
from sensorium.recipes.clip import clip
from sensorium.sequence import Sample, Segment
from sensorium.train.build import build_model, tokenizer_of
from sensorium.train.finish import subject_of


@pytest.fixture(scope="module")
def judge() -> Engine:
    recipe = clip("tiny")
    torch.manual_seed(0)
    return subject_of(recipe, build_model(recipe), tokenizer_of(recipe)).engine


def test_clipscore_is_the_papers_formula(judge):
    pictures = [tiny_fused.Picture(seed) for seed in range(3)]
    items = [TaskItem(id=str(n), media=(Segment("image", one, "user"),), answers=("a cat", "a red dog")[:n])
             for n, one in enumerate(pictures)]  # fmt: skip
    metric = metric_of("clipscore").judged_by(judge)
    parsed = [metric.parse(said, item) for said, item in zip(("a dog", "two cats", ""), items)]
    rows = metric.statistics(items, parsed)
    seen = picture_vectors(judge, pictures)[:, 0].numpy()
    said = ("a dog", "two cats", "a cat")
    words = {text: text_vectors(judge, [f"A photo depicts {text}"])[0].numpy() for text in said}
    one, two = (2.5 * max(float(seen[n] @ words[text]), 0) for n, text in enumerate(("a dog", "two cats")))
    near = max(float(words["two cats"] @ words["a cat"]), 0)
    both = 2 * two * near / (two + near) if two + near else 0
    assert metric.single(rows) == pytest.approx([one, two, 0], abs=1e-5)
    assert metric.scores(rows.sum(0)) == pytest.approx([(one + two) / 3, (both + 0) / 2], abs=1e-5)
    assert max(one, two) > 0


def test_clipscore_without_a_judge_or_a_picture_says_so(judge):
    metric = metric_of("clipscore")
    with pytest.raises(UserError, match="give it one as a judge"):
        metric.statistics([TaskItem(id="1")], ["a dog"])
    with pytest.raises(UserError, match="item 1 has no picture"):
        metric.judged_by(judge).statistics([TaskItem(id="1")], ["a dog"])


def test_perplexity():
    metric = metric_of("perplexity")
    items = [TaskItem(id="1", answers=("a", "b"), part="text"), TaskItem(id="2", info={"modality": "image"}),
             TaskItem(id="3", part="text")]  # fmt: skip
    assert metric.options(items[0]) == ("a",)
    said = (Likelihoods((-2.0,), (4.0,)), Likelihoods((-3.0,), (1.0,)), Likelihoods((float("-inf"),), (2.0,)))
    parsed = [metric.parse(one, item) for one, item in zip(said, items)]
    assert parsed[2] is None
    rows = metric.statistics(items, parsed)
    assert metric.scores(rows.sum(0)) == pytest.approx([math.exp(5 / 5)])
    (table,) = metric.tables(items, rows)
    assert table.rows == (("text", "4", f"{math.exp(0.5):.3f}"), ("image", "1", f"{math.exp(3):.3f}"))


def test_nats_by_modality_add_up_to_the_likelihood():
    model = tiny_fused.make()
    renderer = tiny_fused.renderer_of(model)
    sample = Sample((*tiny_fused.ask("what?", 1), Segment("text", "a dog", "assistant", train=True)))
    sequence = renderer.render(sample)
    with torch.no_grad():
        outputs = model(sequence)
        sums, counts = log_likelihood(outputs, sequence)
    found = nats_by_modality(outputs, sequence)
    assert found == {"text": (pytest.approx(-float(sums.sum()), rel=1e-5), float(counts.sum()))}
    places = (sequence.weight > 0).nonzero(as_tuple=True)[0]
    sequence.modality[places[:2]] = 1  # as if the first two were codes of a picture
    parts = nats_by_modality(outputs, sequence)
    assert (parts["image"][1], parts["text"][1]) == (2, float(counts.sum()) - 2)
    assert parts["image"][0] + parts["text"][0] == pytest.approx(found["text"][0], rel=1e-5)
    with torch.no_grad():
        log = torch.log_softmax(outputs.logits(places[:2] - 1).float(), -1)
    worked = -float(log[[0, 1], sequence.ids[places[:2]].long()].sum())
    assert perplexities(parts)["image"] == pytest.approx(math.exp(worked / 2), rel=1e-5)


def test_meteor_names_what_is_missing_or_scores():
    items = [TaskItem(id="1", answers=("the cat sat on the mat",))]
    metric = metric_of("meteor").replace(synonyms=False)
    if importlib.util.find_spec("nltk") is None:
        with pytest.raises(UserError, match="pip install nltk"):
            metric.statistics(items, ["on the mat sat the cat"])
    else:
        # All three words match in one run: F is 1, the penalty 0.5 * (1 / 3)^3.
        score = metric.single(metric.statistics([TaskItem(id="1", answers=("the cat sat",))], ["The cat sat."]))
        assert score[0] == pytest.approx(1 - 0.5 / 27)
