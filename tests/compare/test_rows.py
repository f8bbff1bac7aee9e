"""Rows that are really trained and asked, of designs that take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scripted
from train.tiny_training import Pictures, tiny_model, tiny_recipe, tiny_stage

from sensorium.compare import calibrate, row
from sensorium.compare.alike import Data
from sensorium.compare.budget import parse_budget
from sensorium.compare.calibrate import Speed, measure
from sensorium.compare.plan import Plan, Wanted, planned
from sensorium.compare.run import compare
from sensorium.connectors.mlp import MLP
from sensorium.evaluate.choice import Choice

ASKED = (Choice(name="names", family="emoji", split="val_artist", n=4),)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    one = tiny_recipe(tiny_stage("align"), tiny_stage("instruct"), name="one")
    deep = tiny_recipe(model=tiny_model(connectors={"image": MLP.Config(depth=2)}), name="deep")
    data = Data(Pictures(), Pictures(), "pictures", own=True)
    wanted = Wanted(recipes=[("one", one), ("deep", deep)], budget=parse_budget("24samples"), data=data, tasks=ASKED,
                    batch=4)  # fmt: skip
    return planned(wanted, lambda recipe: Speed(tuple(0.1 for _ in recipe.stages), 10**8, "a machine"))


def seen(folder: Path) -> int:
    return sum(json.loads(line)["samples"] for line in (folder / "metrics.jsonl").read_text().splitlines())


def test_twice_it_says_the_same_also_when_it_was_stopped_before_a_row_was_asked(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = compare(plan, tmp_path / "whole", "test", scripted.QUIET)
    assert [one.error for one in whole.rows] == ["", ""]
    assert [one.samples for one in whole.rows] == [24, 24]
    assert [one.steps for one in whole.rows] == [6, 6]
    assert [seen(tmp_path / "whole" / one.folder) for one in whole.rows] == [24, 24]
    assert len(whole.differences) == 1  # one task, one pair

    asks, asked = row.ask, []

    def ask(tasks, subject):
        asked.append(tasks)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return asks(tasks, subject)

    monkeypatch.setattr(row, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        compare(plan, tmp_path / "cut", "test", scripted.QUIET)
    again = compare(plan, tmp_path / "cut", "test", scripted.QUIET)
    assert len(asked) == 3  # the first row was not asked again
    assert again.to_json() == whole.to_json()


def test_a_speed_is_measured_for_each_stage(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "SECONDS", 0.02)
    found = measure(plan.entries[0].recipe)
    assert len(found["step_seconds"]) == 2
    assert all(0 < seconds < 30 for seconds in found["step_seconds"])
    assert found["peak_memory"] > 10**7
    assert 0 < found["share"] <= 1
