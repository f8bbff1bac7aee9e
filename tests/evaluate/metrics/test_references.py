"""Each metric beside its reference implementation on a thousand items; scripts/metric_references.py made the values."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_answers import made_boxes, made_features, made_masks, made_rankings, made_transcripts, made_yes_no
from made_captions import made_captions

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.distance import edits
from sensorium.evaluate.metrics.distributions import fid, kid
from sensorium.evaluate.metrics.grounding import overlaps
from sensorium.evaluate.metrics.retrieval import average_precisions, recalls
from sensorium.evaluate.metrics.segmentation import MeanIou
from sensorium.evaluate.metrics.tokenize import caption_tokens

COUNT = 1000


@cache
def references() -> dict[str, Any]:
    return json.loads(gzip.decompress((Path(__file__).parent / "references.json.gz").read_bytes()))


def measured(name, said, items):
    metric = metric_of(name)
    rows = metric.statistics(items, [metric.parse(one, item) for one, item in zip(said, items)])
    return metric.scores(rows.sum(0)), metric.single(rows)


@cache
def captions():
    made = made_captions(COUNT)
    items = [TaskItem(id=str(number), answers=one.references) for number, one in enumerate(made)]
    return [one.said for one in made], items


def test_captions_are_taken_apart_as_the_coco_evaluation_does():
    said, items = captions()
    for one, item, right in zip(said, items, references()["captions"]["tokens"]):
        assert [" ".join(caption_tokens(text)) for text in (one, *item.answers)] == right


def test_cider():
    right = references()["captions"]
    score, each = measured("cider", *captions())
    assert score[0] == pytest.approx(right["cider"], abs=1e-6)
    assert each == pytest.approx(right["ciders"], abs=1e-6)


def test_bleu():
    right = references()["captions"]
    score, each = measured("bleu", *captions())
    assert score[::-1] == pytest.approx(right["bleu"], abs=1e-6)
    assert each == pytest.approx(right["bleus"], abs=1e-6)


def test_rouge():
    right = references()["captions"]
    score, each = measured("rouge_l", *captions())
    assert score[0] == pytest.approx(right["rouge"], abs=1e-6)
    assert each == pytest.approx(right["rouges"], abs=1e-6)


def test_transcripts():
    said, right = made_transcripts(COUNT)
    items = [TaskItem(id=str(number), answers=(one,)) for number, one in enumerate(right)]
    known = references()["transcripts"]
    assert [edits(one, other) for one, other in zip(said, right)] == known["edits"]
    for name in ("wer", "cer"):
        score, _ = measured(name, said, items)
        assert score[0] == pytest.approx(known[name], abs=1e-6)
        assert score[0] == pytest.approx(known[f"{name}_torchmetrics"], abs=1e-6)


def test_anls():
    said, right = made_transcripts(COUNT)
    items = [TaskItem(id=str(number), answers=(one,)) for number, one in enumerate(right)]
    _, each = measured("anls", said, items)
    assert each == pytest.approx([one if one > 0.5 else 0 for one in references()["transcripts"]["similar"]], abs=1e-6)


def test_yes_and_no():
    said, right = made_yes_no(COUNT)
    items = [TaskItem(id=str(number), answers=("yes" if one else "no",)) for number, one in enumerate(right)]
    score, _ = measured("pope", ["Yes, it is." if one else "No." for one in said], items)
    known = references()["yes_no"]
    assert score == pytest.approx([known[name] for name in ("accuracy", "precision", "recall", "f1", "yes")], abs=1e-6)


def test_masks():
    said, right = made_masks(COUNT)
    items = [TaskItem(id=str(number), info={"mask": mask.tolist()}) for number, mask in enumerate(right)]
    metric = MeanIou(classes=5)
    rows = metric.statistics(items, [metric.parse(json.dumps(mask.tolist()), item) for mask, item in zip(said, items)])
    known = references()["masks"]
    assert metric.scores(rows.sum(0)) == pytest.approx([known["miou"], known["accuracy"]], abs=1e-6)


def test_rankings():
    scores, right = made_rankings(COUNT)
    known = references()["rankings"]
    assert average_precisions(scores, right) == pytest.approx(known["ap"], abs=1e-6)
    hits = recalls(scores, right, (1, 5, 10)).mean(0)
    assert hits == pytest.approx([known[f"hit@{k}"] for k in (1, 5, 10)], abs=1e-6)


def test_distributions():
    real, made = made_features(2 * COUNT)
    known = references()["distributions"]
    assert fid(real, made) == pytest.approx(known["fid"], abs=1e-3)
    assert fid(real, made) == pytest.approx(known["fid_scipy"], abs=1e-6)
    assert kid(real, made, subsets=1, size=2 * COUNT).mean == pytest.approx(known["kid"], abs=1e-6)


def test_boxes_overlap_as_their_cells_do():
    for one, other in made_boxes(COUNT):
        grid = np.zeros((2, 200, 200), dtype=bool)
        for cells, edges in zip(grid, (one, other)):
            x0, y0, x1, y1 = (round(edge * 200) for edge in edges)
            cells[y0:y1, x0:x1] = True
        share = (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()
        assert overlaps([one], [other])[0, 0] == pytest.approx(share, abs=1e-9)
