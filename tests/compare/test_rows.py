"""Rows that are really trained and asked, of designs that take milliseconds."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scripted
from train.tiny_training import Pictures, tiny_model, tiny_recipe, tiny_stage

from sensorium.commands.compare import write_all
from sensorium.compare import calibrate, row
from sensorium.compare.alike import Data
from sensorium.compare.answers import keep_records, kept_records
from sensorium.compare.budget import parse_budget
from sensorium.compare.calibrate import Speed, measure
from sensorium.compare.plan import Plan, Wanted, planned
from sensorium.compare.run import compare
from sensorium.connectors.mlp import MLP
from sensorium.evaluate.asked import Asked
from sensorium.evaluate.choice import Choice
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.records import Record
from sensorium.evaluate.result import Comparison
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.tasks.jsonl import Jsonl

ASKED = (Choice(name="names", family="emoji", split="val_artist", n=4),)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    one = tiny_recipe(tiny_stage("align"), tiny_stage("instruct"), name="one")
    deep = tiny_recipe(model=tiny_model(connectors={"image": MLP.Config(depth=2)}), name="deep")
    data = Data(Pictures(), Pictures(), "pictures", own=True)
    wanted = Wanted(recipes=[("one", one), ("deep", deep)], budget=parse_budget("24samples"), data=data, tasks=ASKED,
                    batch=4)  # fmt: skip
    return planned(wanted, lambda recipe, measuring: Speed(tuple(0.1 for _ in recipe.stages), 10**8, "a machine"))


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
    told = sorted((tmp_path / "whole/rows").glob("*/*.jsonl"))
    assert [one.relative_to(tmp_path / "whole/rows").as_posix() for one in told] == [
        "deep-seed0/names_val_artist.jsonl", "one-seed0/names_val_artist.jsonl",
    ]  # fmt: skip
    for one in told:
        assert (tmp_path / "cut" / one.relative_to(tmp_path / "whole")).read_bytes() == one.read_bytes()


def test_what_every_design_said_is_kept_and_shown_side_by_side(plan: Plan, tmp_path: Path):
    out = tmp_path / "out"
    found = compare(plan, out, "test", scripted.QUIET)
    blocks = kept_records(found, out, plan.tasks)
    assert [(one.task, one.split, one.by) for one in blocks] == [("names", "val_artist", by) for by in ("one", "deep")]
    for block, scored in zip(blocks, found.rows):
        assert np.mean([record.score for record in block.records]) == scored.scores[0].score
        assert np.mean([record.blind_score for record in block.records]) == scored.scores[0].blind
        for record in block.records:
            chosen = max(range(4), key=record.said["sums"].__getitem__)
            assert (len(record.options), record.parsed) == (4, chosen)
            assert record.score == float(record.options[chosen] == record.expected)
            assert record.prompt.startswith("<image>")
            assert len(block.items[record.id].media) == len(record.pictures) == 1
    write_all(found, out, blocks)
    page = (out / "report.html").read_text("utf-8")
    (kept,) = re.findall(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    entries = json.loads(kept)["entries"]
    assert [[one["by"] for one in entry["answers"]] for entry in entries] == [[0, 1]] * 4
    assert page.count("data:image/webp") == 4
    for folder in ("one-seed0", "deep-seed0"):  # a folder from before answers were kept
        shutil.rmtree(out / "rows" / folder)
    again = compare(plan, out, "test", scripted.QUIET)
    assert again.to_json() == found.to_json()
    assert kept_records(again, out, plan.tasks) == []
    write_all(again, out)
    assert "No answers were recorded" in (out / "report.html").read_text("utf-8")


def test_pictures_that_are_no_longer_those_asked_about_are_not_shown(tmp_path: Path):
    pictures = ["moved.png", str(tmp_path / "1.png")]
    asked = [Record(id=str(number), pictures=[one], said="a", score=1.0) for number, one in enumerate(pictures)]
    keep_records(tmp_path / "rows/good-seed0", {"mine test": asked})
    (row,) = compare(scripted.plan(("good",)), tmp_path / "other", "test", scripted.QUIET, scripted.Worker()).rows
    row.scores = [Evaluation.of("mine", "test", [1.0, 1.0])]
    found = Comparison(title="t", budget="b", data="d", rows=[row], differences=[], notes=[])
    file = tmp_path / "mine.jsonl"
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"a picture")
    rows = [{"id": "0", "image": "0.png"}, {"id": "1", "image": "1.png"}]
    file.write_text("\n".join(json.dumps({**one, "question": "What?", "answer": "a"}) for one in rows))
    task = Asked(name="mine", source=Jsonl(path=str(file)), metric=metric_of("exact"))
    (block,) = kept_records(found, tmp_path, (task,))
    assert list(block.items) == ["1"]
    file.unlink()
    (block,) = kept_records(found, tmp_path, (Asked(name="mine", source=Jsonl(path=str(file)), metric=task.metric),))
    assert (len(block.records), block.items) == (2, {})


def test_what_could_not_be_asked_or_read_is_told_of(plan: Plan, tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    rows = [{"question": "Is it?", "answer": "yes"}, {"image": "gone.png", "question": "Is it?", "answer": "yes"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    task = Asked(name="mine", split="own", source=Jsonl(path=str(file)), metric=metric_of("pope"))
    asked = replace(plan, tasks=(task,))
    told = compare(asked, tmp_path / "out", "test", scripted.QUIET)
    assert [row.scores[0].n for row in told.rows] == [1, 1]
    lost = [note for note in told.notes if note.startswith(("mine", "one: mine", "deep: mine"))]
    assert lost[0].startswith("mine own: 1 row (the first: ")
    assert "gone.png" in lost[0]
    assert lost[0].endswith("without a question, not asked.")
    # models that say what comes: neither yes nor no
    assert [note.partition(" (")[0] for note in lost[1:]] == ["one: mine own: 1 answer", "deep: mine own: 1 answer"]
    assert all(note.endswith("that could not be read, counted as wrong.") for note in lost[1:])
    assert compare(asked, tmp_path / "out", "test", scripted.QUIET).to_json() == told.to_json()  # of kept rows, too


def test_a_speed_is_measured_for_each_stage(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibrate, "SECONDS", 0.02)
    found = measure(plan.entries[0].recipe)
    assert len(found["step_seconds"]) == 2
    assert all(0 < seconds < 30 for seconds in found["step_seconds"])
    assert found["peak_memory"] > 10**7
    assert 0 < found["share"] <= 1
