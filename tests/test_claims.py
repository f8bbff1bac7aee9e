"""Claims: what an effect, its interval and a verdict are, and that every design is one that can be trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.claims.claim import REFUTED, REPRODUCED, UNDECIDED, Claim, Effect, Judged, Scores, verdict
from benchmarks.claims.designs import CLAIMS
from benchmarks.claims.table import document, in_words
from sensorium.compare.significance import Scored
from sensorium.evaluate.result import ComparedRow, Comparison
from sensorium.evaluate.statistics import Evaluation
from sensorium.nn.part import Grid
from sensorium.recipes.common import closed_evaluations
from sensorium.train.build import build_model
from sensorium.train.task import check_stages

IDS = tuple(map(str, range(200)))


def scored(values, label="counting val_scene"):
    return Scored(label, IDS, np.asarray(values, dtype=np.float64)[None])


def effect(mean, spread=0.01, decides=True):
    drawn = np.random.default_rng(0).normal(mean, spread, 2000)
    return Effect("it", np.append(mean, drawn), decides)


def test_verdicts_hang_on_the_deciding_effects_alone():
    assert verdict([effect(0.1), effect(0.05), effect(-0.3, decides=False)]) == REPRODUCED
    assert verdict([effect(0.1), effect(0.01)]) == UNDECIDED
    assert verdict([effect(0.1), effect(-0.1)]) == REFUTED
    # 2.1 standard errors below zero: enough for one effect, not for one of five
    assert verdict([effect(-0.0215)]) == REFUTED
    assert verdict([effect(-0.0215), *[effect(0.0)] * 4]) == UNDECIDED
    assert verdict([]) == UNDECIDED


def test_differences_of_designs_are_of_the_same_items():
    right = np.random.default_rng(1).random(200) < 0.5
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True
    scores = Scores({"one": [[scored(right)]], "other": [[scored(better)]]}, ["counting val_scene"])
    gain = Effect("gain", scores["other"] - scores["one"])
    # ten items of two hundred: paired, the interval is that of a share of 5 %; unpaired it would reach below zero
    assert gain.interval.mean == pytest.approx(0.05)
    assert 0.02 < gain.interval.low < gain.interval.high < 0.09
    one, other = (Effect("", scores[name]).interval for name in ("one", "other"))
    assert one.high > other.low


def test_scores_are_means_over_the_tasks_that_count_and_over_seeds():
    tasks = {"a": np.ones(200), "b": np.zeros(200)}
    seeds = [[scored(values, label) for label, values in tasks.items()]] * 2
    scores = Scores({"it": seeds}, ["a", "b"])
    assert scores["it"][0] == 0.5
    assert np.allclose(scores.of("it", ["a"]), 1.0)
    assert np.allclose(scores.mean("it", "it"), scores["it"])


@pytest.mark.parametrize("letter", CLAIMS)
def test_every_design_can_be_described_and_every_effect_computed(letter):
    claim = CLAIMS[letter]()
    names = dict(claim.designs)
    assert len(names) == len(claim.designs) >= 3
    assert set(claim.own) <= set(names)
    for _, recipe in claim.designs:
        check_stages(recipe)
        with torch.device("meta"):
            assert build_model(recipe).config == recipe.model
    labels = [f"{task.name} {task.split}" for task in claim.tasks]
    drawn = np.random.default_rng(2)
    found = {name: [[scored(drawn.random(200) < 0.5, label) for label in labels]] for name in names}
    effects = claim.effects(Scores(found, labels))
    assert any(one.decides for one in effects)
    assert len({one.name for one in effects}) == len(effects)
    assert all(np.isfinite(one.values).all() and len(one.values) > 1000 for one in effects)


def test_connectors_make_the_tokens_that_their_name_says():
    for name, recipe in CLAIMS["a"]().designs:
        rows, cols = recipe.model.encoders["image"].cells
        tokens = recipe.model.connectors["image"].num_tokens(Grid(rows, cols))
        assert tokens == (16 if "16 tokens" in name else 4), name
        assert 32 * rows == (256 if "256 px" in name else 128), name


def told(claim: Claim, seeds=1) -> Judged:
    score = Evaluation.of("counting", "val_scene", [1.0, 0.0] * 20, blind=[0.0] * 40)
    row = ComparedRow(
        name="one", title="one", seed=0, scores=[score], parameters=10, trained=5, flops=1e9, samples=64, steps=2,
        seconds=1.0, samples_per_second=64.0, peak_memory=10**8, tokens_per_picture=16.0,
    )  # fmt: skip
    comparison = Comparison(title="Claim", budget="", data="", rows=[row], differences=[], notes=[])
    return Judged(
        claim=claim, comparison=comparison, effects=[effect(0.1)], verdict=REPRODUCED, idle=["x"], blank=["y"],
        minutes=12.4, seeds=seeds,
    )  # fmt: skip


def test_the_document_has_verdicts_effects_designs_and_minutes():
    found = document([told(CLAIMS["e"]()), told(CLAIMS["c"]())])
    assert "`sensorium bench claims e c`: 25 minutes" in found
    assert "| e | A larger language model helps. | it | +10.0 (+8." in found
    assert "| reproduced | 12 |" in found
    assert "| it | +0.100 (+0.08" in found  # nats
    assert "50.0 [" in found
    assert "blind 0.0" in found
    assert "nothing learned it: x" in found
    assert "nothing is decided: y." in found
    assert in_words(told(CLAIMS["e"]())).startswith("e. A larger language model helps. reproduced (12 min)")


def test_settings_are_chosen_on_slices_of_the_training_split():
    splits = [task.split for task in closed_evaluations(40, holdout_dev=True)]
    assert splits == ["dev_artist", "dev_concept", "dev_scene"]
    assert replace(CLAIMS["e"]()).tasks[0].split == "val_artist"
