"""Intervals against closed forms and hand-computed values."""

from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.evaluate.statistics import (
    Evaluation,
    Score,
    bootstrap,
    bootstrap_scores,
    evaluations,
    mean_interval,
    paired_difference,
    paired_scores,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_gives_published_values(right, n, low, high):
    # 15 of 148 is the first example of Newcombe 1998, Statistics in Medicine 17, table I (method 3).
    interval = wilson(right, n)
    assert interval.mean == right / n
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_its_mean_and_mirrors(case):
    right, n = case
    one, other = wilson(right, n), wilson(n - right, n)
    assert 0 <= one.low <= one.mean <= one.high <= 1
    assert one.low < one.high
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(right, n):
    with pytest.raises(ValueError, match=f"n={n}"):
        wilson(right, n)


def test_mean_interval_of_right_and_wrong_is_wilson():
    assert mean_interval([1] * 8 + [0] * 2) == wilson(8, 10)
    assert mean_interval([True, False, True]) == wilson(2, 3)


def test_bootstrap_matches_the_normal_approximation():
    scores = np.random.default_rng(1).beta(2, 3, size=2000)
    interval = bootstrap(scores)
    half = 1.959964 * scores.std() / sqrt(len(scores))
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.low == pytest.approx(scores.mean() - half, abs=half / 20)
    assert interval.high == pytest.approx(scores.mean() + half, abs=half / 20)


def test_bootstrap_of_two_items_is_the_exact_distribution():
    # Two items draw (0,0), (0,1), (1,0), (1,1): a quarter of the resampled means is 0 and a quarter is 1.
    assert bootstrap([0.0, 1.0])[1:] == (0.0, 1.0)
    assert bootstrap([0.0, 1.0], level=0.4)[1:] == (0.5, 0.5)


def test_grouped_items_count_once():
    scores = np.random.default_rng(2).integers(0, 2, size=100).astype(float)
    alone = bootstrap(scores)
    tenfold = bootstrap(np.repeat(scores, 10), groups=np.repeat(np.arange(100), 10).tolist())
    assert tenfold.low == pytest.approx(alone.low)
    assert tenfold.high == pytest.approx(alone.high)
    independent = bootstrap(np.repeat(scores, 10))
    assert independent.high - independent.low < 0.5 * (alone.high - alone.low)


def test_groups_weigh_by_their_items():
    # Resamples of the groups {0} and {1, 1, 1}: mean 0, 3/4 or 1, never the mean of group means 1/2.
    values = bootstrap([0.0, 1.0, 1.0, 1.0], groups="abbb", level=0.3)
    assert values == (0.75, 0.75, 0.75)


def test_all_right_in_groups_is_wilson_over_groups():
    assert mean_interval([1.0] * 6, groups="aabbcc") == wilson(3, 3)


def test_paired_difference_is_tighter_than_unpaired():
    generator = np.random.default_rng(3)
    blind = generator.integers(0, 2, size=400).astype(float)
    model = np.where(generator.random(400) < 0.1, 1.0, blind)
    margin = paired_difference(model, blind)
    difference = model - blind
    half = 1.959964 * difference.std() / sqrt(400)
    assert margin.mean == pytest.approx(difference.mean())
    assert margin.low == pytest.approx(difference.mean() - half, abs=half / 10)
    assert margin.low > 0
    assert mean_interval(model).low < mean_interval(blind).high


def test_a_mean_is_a_score_of_two_sums():
    values, groups = np.random.default_rng(5).random(60), (np.arange(60) // 3).tolist()
    (found,) = bootstrap_scores(np.stack([values, np.ones(60)], 1), lambda sums: sums[..., :1] / sums[..., 1:], groups)
    assert bootstrap(values, groups)[1:] == found[1:]
    assert bootstrap(values, groups).mean == values.mean() == pytest.approx(found.mean)


def test_same_seed_same_interval_other_seed_other():
    scores = np.random.default_rng(4).random(300)
    assert bootstrap(scores, seed=7) == bootstrap(scores, seed=7)
    assert bootstrap(scores, seed=7) != bootstrap(scores, seed=8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_interval_stays_within_the_scores(scores, seed):
    interval = bootstrap(scores, resamples=200, seed=seed)
    assert min(scores) - 1e-12 <= interval.low <= interval.high <= max(scores) + 1e-12


def test_evaluation_by_hand():
    result = Evaluation.of("count", "val_artist", [1, 1, 1, 0], blind=[0, 1, 0, 0], chance=[0.5, 0.25, 0.25, 0.2])
    assert (result.n, result.score, result.blind, result.margin) == (4, 0.75, 0.25, 0.5)
    assert result.chance == pytest.approx(0.3)
    assert (result.low, result.high) == wilson(3, 4)[1:]
    assert result.margin_low is not None
    assert result.margin_high is not None
    assert result.margin_low == 0.0
    assert result.margin_high == 1.0
    assert not result.beats_blind
    stored = json.loads(json.dumps(result.to_json()))
    assert set(stored) == {
        *("task", "split", "n", "score", "low", "high", "blind", "chance"),
        *("margin", "margin_low", "margin_high", "metric", "percent", "better"),
    }
    assert Evaluation(**stored) == result
    before = {name: value for name, value in stored.items() if name not in ("metric", "percent", "better")}
    assert Evaluation(**before) == result  # as runs of before have it


def test_evaluation_without_control():
    result = Evaluation.of("caption", "val_concept", [0.3, 0.5])
    assert (result.blind, result.chance, result.margin, result.margin_low) == (None, None, None, None)
    assert not result.beats_blind


@pytest.mark.parametrize(
    ("scores", "blind", "message"),
    [
        ([], None, "at least one item"),
        ([[1.0]], None, "shape"),
        ([float("nan")], None, "not finite"),
        ([61.0], None, "not percents"),
        ([1, 0], [1], "2 scores, 1 of the control"),
    ],
)
def test_unusable_scores_are_refused(scores, blind, message):
    with pytest.raises(ValueError, match=message):
        Evaluation.of("t", "s", scores, blind=blind)


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 groups, 3 items"):
        bootstrap([0, 1, 1], groups="ab")


def f1(sums):
    """(..., 3): matched, said, wanted."""
    return 2 * sums[..., :1] / (sums[..., 1:2] + sums[..., 2:3])


def test_a_mean_is_a_score_like_any_other():
    values = np.random.default_rng(5).random(300)
    groups = np.repeat(np.arange(100), 3).tolist()
    rows = np.stack([values, np.ones_like(values)], axis=1)
    for known in (None, groups):
        [found] = bootstrap_scores(rows, lambda sums: sums[..., :1] / sums[..., 1:], known, seed=3)
        assert found == pytest.approx(bootstrap(values, known, seed=3), abs=1e-12)


def test_corpus_scores_vary_as_their_resamples_do():
    rng = np.random.default_rng(6)
    rows = np.stack([rng.integers(0, 3, 200), rng.integers(2, 5, 200), rng.integers(2, 5, 200)], axis=1).astype(float)
    [found] = bootstrap_scores(rows, f1, resamples=2000)
    slow = [f1(rows[rng.integers(0, 200, 200)].sum(0))[0] for _ in range(2000)]
    assert found.mean == f1(rows.sum(0))[0]
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.01)


def test_pairs_are_drawn_together():
    rng = np.random.default_rng(7)
    theirs = np.stack([rng.integers(0, 2, 400), np.full(400, 2), np.full(400, 2)], axis=1).astype(float)
    ours = theirs.copy()
    ours[:40, 0] = 2
    [margin] = paired_scores(ours, theirs, f1)
    assert margin.mean == pytest.approx(f1(ours.sum(0))[0] - f1(theirs.sum(0))[0])
    assert 0 < margin.low < margin.mean < margin.high
    alone = bootstrap_scores(ours, f1)[0]
    assert margin.high - margin.low < alone.high - alone.low
    assert paired_scores(ours, ours, f1)[0] == (0, 0, 0)
    with pytest.raises(ValueError, match="same items"):
        paired_scores(ours, theirs[:-1], f1)


@pytest.mark.parametrize("rows", [[1.0, 2.0], np.zeros((0, 2)), [[1.0, np.nan]]])
def test_statistics_have_to_be_rows_of_numbers(rows):
    with pytest.raises(ValueError, match="statistics"):
        bootstrap_scores(rows, f1)


def test_evaluations_of_several_scores():
    names = (Score("F1"), Score("error", percent=False, better="lower"), Score("of nothing"))

    def scores(sums):
        with np.errstate(invalid="ignore"):
            return np.stack([f1(sums)[..., 0], 1.5 - f1(sums)[..., 0], sums[..., 0] * 0 / (sums[..., 0] * 0)], axis=-1)

    ours, theirs = (np.tile([[a, 1.0, 1.0], [1.0, 1.0, 1.0]], (20, 1)) for a in (1.0, 0.0))
    found = evaluations("task", "val", names, ours, scores, blind=theirs, chance=0.25)
    assert [(one.metric, one.percent, one.better) for one in found] == [
        ("F1", True, "higher"),
        ("error", False, "lower"),
    ]
    first, second = found
    assert (first.score, first.blind, first.margin, first.chance) == (1, 0.5, 0.5, 0.25)
    assert (first.low, first.high) == wilson(40, 40)[1:]  # nothing to vary: not an interval of no width
    assert (second.score, second.blind, second.chance) == (0.5, 1.0, None)
    assert first.beats_blind
    assert second.beats_blind  # lower is better
    assert not evaluations("task", "val", names, theirs, scores, blind=ours)[1].beats_blind
    assert "nan" not in json.dumps([one.to_json() for one in found]).lower()


def test_evaluations_of_right_and_wrong_are_those_of_means():
    right = [1.0, 0.0, 1.0, 1.0, 0.0]
    [one] = evaluations("t", "s", (Score("accuracy"),), [(score, 1.0) for score in right],
                        lambda sums: sums[..., :1] / sums[..., 1:], blind=[(0.0, 1.0)] * 5, chance=0.5)  # fmt: skip
    assert one == Evaluation.of("t", "s", right, blind=[0.0] * 5, chance=0.5)
