"""What a comparison keeps, goes on with and claims, with scripted rows."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scripted
from rich.console import Console

from sensorium.compare.plot import plot_svg
from sensorium.compare.run import AVERAGE, compare
from sensorium.compare.significance import Scored, differences, holm, interval
from sensorium.compare.table import table_of
from sensorium.errors import UserError
from sensorium.train.trainer import Stopped


def done(plan, out, worker=None):
    return compare(plan, out, "test", scripted.QUIET, worker or scripted.Worker())


def test_rows_have_scores_and_costs_and_the_better_design_is_named(tmp_path: Path):
    found = done(scripted.plan(), tmp_path)
    assert [row.name for row in found.rows] == ["good", "poor"]
    good = found.rows[0]
    assert [score.task for score in good.scores] == ["names", "places", AVERAGE]
    assert good.scores[-1].score == pytest.approx(np.mean([score.score for score in good.scores[:2]]))
    assert good.scores[-1].low < good.scores[-1].score < good.scores[-1].high
    assert (good.samples, good.steps, good.flops, good.folder) == (80, 5, 1e9, "runs/good-seed0")
    assert [(one.one, one.other, one.better) for one in found.differences] == [("good", "poor", True)] * 3
    margin = found.differences[-1].margin.mean
    assert margin == pytest.approx(good.scores[-1].score - found.rows[1].scores[-1].score)
    assert "Holm" in " ".join(found.notes)
    assert found.budget == "80 samples each"
    json.dumps(found.to_json(), allow_nan=False)


def test_what_no_design_learned_is_said(tmp_path: Path):
    [said] = [note for note in done(scripted.plan(("idle",)), tmp_path / "idle").notes if "blind control" in note]
    assert "on names val, places val: within this budget" in said
    found = done(scripted.plan(("idle", "good")), tmp_path / "one")
    assert not any("blind control" in note for note in found.notes)


def test_stopped_between_rows_it_goes_on_and_says_the_same(tmp_path: Path):
    whole = done(scripted.plan(), tmp_path / "whole")
    with pytest.raises(Stopped):
        done(scripted.plan(), tmp_path / "cut", scripted.Worker(stops="poor-seed0"))
    worker = scripted.Worker()
    again = done(scripted.plan(), tmp_path / "cut", worker)
    assert worker.worked == ["poor-seed0"]
    assert again.to_json() == whole.to_json()


def test_a_design_that_fails_costs_the_others_nothing_and_is_tried_again(tmp_path: Path):
    found = done(scripted.plan(("good", "fair", "poor")), tmp_path, scripted.Worker(fails=["fair"]))
    assert [row.error for row in found.rows] == ["", "ValueError: loss is not finite", ""]
    assert "loss is not finite" in (tmp_path / "rows/fair-seed0.error.txt").read_text()
    assert {(one.one, one.other) for one in found.differences} == {("good", "poor")}
    shown = Console(record=True, width=120, file=StringIO())
    shown.print(table_of(found))
    assert "failed: ValueError" in shown.export_text()
    assert "no score" in plot_svg(found)
    worker = scripted.Worker()
    assert [row.error for row in done(scripted.plan(("good", "fair", "poor")), tmp_path, worker).rows] == ["", "", ""]
    assert worker.worked == ["fair-seed0"]


def test_a_folder_holds_one_comparison(tmp_path: Path):
    done(scripted.plan(), tmp_path)
    with pytest.raises(UserError, match=r"another comparison.*entries"):
        done(scripted.plan(("good", "fair")), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        done(scripted.plan(), tmp_path / "other")


def test_of_several_seeds_there_is_a_mean_with_its_spread(tmp_path: Path):
    found = done(scripted.plan(seeds=(0, 1, 2)), tmp_path)
    assert [(row.name, row.seed) for row in found.rows] == [
        (name, seed) for name in ("good", "poor") for seed in (0, 1, 2, None)
    ]
    each = [row.scores[0].score for row in found.rows[:3]]
    mean = found.rows[3]
    assert mean.scores[0].score == pytest.approx(np.mean(each))
    assert mean.spread[0] == pytest.approx(np.std(each, ddof=1))
    assert mean.scores[0].low < min(mean.scores[0].score, mean.scores[0].high)
    assert "seeds" in " ".join(found.notes)


def test_the_plot_is_a_drawing_with_every_design_and_task(tmp_path: Path):
    drawn = plot_svg(done(scripted.plan(("good", "fair", "poor")), tmp_path))
    words = " ".join(node.text or "" for node in ElementTree.fromstring(drawn).iter())
    for word in ("good", "fair", "poor", "names val", "places val", "chance", "blind control", "training FLOPs"):
        assert word in words
    assert "<script" not in drawn
    assert "href" not in drawn


def test_holm_is_stricter_than_each_alone():
    assert holm([0.04, 0.01, 0.03]) == [False, True, False]  # 0.01 <= 0.05 / 3, 0.03 > 0.05 / 2
    assert holm([0.04, 0.01, 0.02]) == [True, True, True]
    assert holm([]) == []


def test_pairs_cancel_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    ids = tuple(map(str, range(400)))
    one = Scored("task", ids, (hard < 0.60).astype(float)[None])
    other = Scored("task", ids, (hard < 0.55).astype(float)[None])
    (paired,) = differences([("one", [one]), ("other", [other])])
    assert paired.better is True
    assert paired.margin.low > 0
    apart = Scored("task", ids, (rng.random(400) < 0.55).astype(float)[None])
    (unpaired,) = differences([("one", [one]), ("other", [apart])])
    assert unpaired.better is None
    assert unpaired.margin.low < 0
    (lower,) = differences([("one", [Scored("task", ids, one.scores, lower=True)]), ("other", [other])])
    assert lower.better is False  # a higher score is worse


def test_seeds_that_disagree_widen_an_interval():
    rows = np.stack([np.full(200, 0.2), np.full(200, 0.8)])
    alone = interval(rows.mean(0, keepdims=True))
    both = interval(rows)
    assert alone.high - alone.low < 0.01
    assert both.high - both.low > 0.5
    grouped = interval((np.arange(200) < 100).astype(float)[None], ["a"] * 100 + ["b"] * 100)
    assert (grouped.low, grouped.high) == (0.0, 1.0)  # two groups are two items
