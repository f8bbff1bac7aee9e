"""What holds of every metric: whatever is said is read without an exception, and what cannot be read is not right."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import METRICS, metric_of
from sensorium.infer.likelihoods import Likelihoods

ITEM = TaskItem(
    id="1",
    question="Is there a dog?",
    answers=("yes",) * 10,
    options=("yes", "no"),
    answer=0,
    boxes=((0.1, 0.1, 0.5, 0.5),),
    part="existence",
    group="picture 1",
    info={"length": 100, "depth": 0.5, "objects": ["dog"]},
)
WORDS = sorted(name for name, metric in METRICS.items() if metric.needs == "words")
PIECES = ("yes", "no", "A", "(B)", "[0.1, 0.2, nan]", "<loc_5>", "{<1><2>", "1e999", "%", "\\boxed{", "犬", "\x00", "'",
          "n't", ".", "\ud83d", "<", "[[", "NaN", '{"size":', "A or B")  # fmt: skip
pieces = st.sampled_from(PIECES)
texts = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=12).map("".join), st.lists(pieces).map(" ".join))


@pytest.mark.parametrize("name", WORDS)
@settings(max_examples=60, deadline=None)
@given(said=texts)
def test_any_text_is_read(name, said):
    metric = metric_of(name)
    parsed = metric.parse(said, ITEM)
    json.dumps(parsed, allow_nan=False)
    rows = metric.statistics([ITEM, ITEM], [parsed, None])
    assert rows.shape[0] == 2
    assert np.isfinite(rows).all()
    assert metric.scores(rows.sum(0)).shape == (len(metric.names),)
    assert metric.single(rows).shape == (2,)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("said", ["", " \n\t "])
def test_nothing_said_is_unreadable(name, said):
    assert metric_of(name).parse(said, ITEM) is None


def test_likelihoods_that_are_no_numbers_are_unreadable():
    metric = metric_of("likelihood")
    assert metric.parse(Likelihoods((-1.0, -2.0), (1.0, 4.0)), ITEM) == 0
    assert metric.replace(scoring="mean").parse(Likelihoods((-1.0, -2.0), (1.0, 4.0)), ITEM) == 1
    for bad in (
        Likelihoods((float("nan"), -2.0), (1, 1)),
        Likelihoods((-1.0,), (1,)),
        Likelihoods((-1.0, -2.0), (0, 1)),
    ):
        assert metric.parse(bad, ITEM) is None


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cider'"):
        metric_of("ciderd")
