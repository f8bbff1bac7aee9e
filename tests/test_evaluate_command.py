"""`sensorium eval` with tasks: one's own rows, task files, an endpoint, a run; and mistakes, told before any work."""

import json

import pytest
from asking import Noise
from loose_endpoint import completion, endpoint

from sensorium.cli import main
from sensorium.errors import UserError
from sensorium.evaluate.judging import Rated
from sensorium.evaluate.opening import open_task
from sensorium.evaluate.records import read_records
from sensorium.evaluate.tasks.jsonl import Jsonl
from sensorium.recipes.clip import clip
from sensorium.recipes.llava import llava
from sensorium.train.build import build_model, tokenizer_of
from sensorium.train.checkpoint import STATE, save_checkpoint


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    return stopped.value.code


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Six rows with pictures, one without its picture, one that is no JSON."""
    monkeypatch.setattr("sensorium.commands.evaluate.cache_root", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    lines = []
    for n in range(6):
        Noise(n, size=24).load().save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "question": f"What is {n}?", "answer": f"thing {n}"}))
    lines += [json.dumps({"image": "none.png", "question": "?", "answer": "x"}), "{"]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def knows(body, number):
    parts = body["messages"][-1]["content"]
    n = parts[-1]["text"].split("What is ")[1][0]
    return 200, completion(f"Thing {n}."), {}


def test_own_rows_behind_an_endpoint(rows, capsys, monkeypatch):
    read, load = [], Jsonl.load
    monkeypatch.setattr(Jsonl, "load", lambda source: read.append(source.path) or load(source))
    with endpoint(knows) as (url, seen):
        asked = ["eval", "--endpoint", url, "--model", "some/model", "--task", rows / "mine.jsonl", "--json"]
        assert run(*asked) == 0
        first = json.loads(capsys.readouterr().out)
        assert read == [str(rows / "mine.jsonl")]  # which metric fits, and the questions, in one reading
        count = len(seen)
        assert run(*asked, "--out", rows / "again") == 0  # all of it is in the cache
        assert len(seen) == count == 12
    [one] = first["evaluations"]
    assert (one["n"], one["score"], one["task"], one["metric"]) == (6, 1.0, "mine", "exact match")
    records = read_records(rows / "evaluations" / "some_model" / "mine.jsonl")
    assert [record.said for record in records[:6]] == [f"Thing {n}." for n in range(6)]
    assert records[0].pictures[0].endswith("0.png")
    assert sum(record.error.startswith("bad item") for record in records) == 2
    assert (rows / "again" / "report.html").exists()
    page = (rows / "again" / "report.md").read_text()
    assert "mine" in page


def saved(recipe, folder):
    """A run of a recipe whose weights nothing has trained."""
    state = {**dict.fromkeys(STATE), "wiring": len(recipe.stages) - 1, "adapters": []}
    save_checkpoint(folder, 0, recipe, build_model(recipe), tokenizer_of(recipe), state)


def test_captions_are_measured_in_the_space_of_a_contrastive_judge(rows, capsys):
    saved(clip("tiny"), rows / "judge")
    with endpoint(knows) as (url, _):
        asked = ["eval", "--endpoint", url, "--model", "m", "--task", rows / "mine.jsonl", "--metric", "clipscore"]
        assert run(*asked, "--judge", rows / "judge", "--json") == 0
        alone, beside = json.loads(capsys.readouterr().out)["evaluations"]
        assert (alone["metric"], beside["metric"]) == ("CLIPScore", "RefCLIPScore")
        assert 0 < alone["score"] <= 2.5
        assert beside["score"] > 0
        assert run(*asked) == 2
        assert "clipscore" in capsys.readouterr().err
        assert run(*asked, "--judge", url, "--judge-model", "m", "--out", rows / "b") == 2
        assert "not an address" in capsys.readouterr().err


def test_a_run_is_asked_and_a_person_reads_a_table(rows, capsys):
    saved(llava("tiny"), rows / "run")
    assert run("eval", rows / "run", "--task", rows / "mine.jsonl", "--limit", 4, "--batch", 2, "--no-blind") == 0
    told = capsys.readouterr().out
    assert "mine" in told
    assert "rows of the source that hold no question (not in n): 2" in told
    records = read_records(rows / "run" / "evaluation" / "mine.jsonl")
    assert len([record for record in records if record.said is not None]) == 4


def test_a_task_file(rows):
    (rows / "museum.toml").write_text("""
        metric = {name = "exact"}
        shots = 1
        seed = 3
        [source]
        task = "jsonl"
        path = "mine.jsonl"
        [prompt]
        wording = "Look: {question}"
        ending = "In two words."
        [sampling]
        max_tokens = 5
    """)
    task = open_task(str(rows / "museum.toml"))
    assert (task.name, task.shots, task.sampling.max_tokens, task.split) == ("museum", 1, 5, "test")
    items = task.source.load().items
    assert len(items) == 6
    assert task.sample(items[0], items).segments[-1].data == "Look: What is 0?\nIn two words."
    (rows / "open.json").write_text(json.dumps({"task": "rated", "source": {"task": "jsonl", "path": "mine.jsonl"}}))
    assert isinstance(open_task(str(rows / "open.json")), Rated)
    (rows / "rows.json").write_text(json.dumps([{"image": "0.png", "question": "?", "answer": "x"}]))
    assert len(open_task(str(rows / "rows.json")).source.load().items) == 1


@pytest.mark.parametrize(("text", "said"), [
    ("source = 'vqav3'", "vqav2"),
    ("metric = 'exact'", "no `source`"),
    ("[source]\npath = 'x'", "table with task = NAME"),
    ("shot = 1\n[source]\ntask = 'emoji'", "did you mean 'shots'"),
    ("shots = 'x'\nsource = 'emoji'", "shots"),
    ("metric = 'exakt'\nsource = 'emoji'", "did you mean 'exact'"),
    ("task = 'rate'\nsource = 'emoji'", "'asked' or 'rated'"),
    ("prompt = {wording = '{question.x}'}\nsource = 'emoji'", "no plain name"),
    ("[[", "cannot be read"),
])  # fmt: skip
def test_mistakes_in_a_task_file(rows, text, said):
    (rows / "bad.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        open_task(str(rows / "bad.toml"))


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "give a RUN"),
    (["run", "--endpoint", "http://127.0.0.1:9", "--model", "m"], "not both"),
    (["--endpoint", "http://127.0.0.1:9", "--task", "emoji"], "--model NAME"),
    (["nowhere", "--task", "emoji"], "there is no folder nowhere"),
    (["nowhere", "--metric", "exact"], "name one"),
    (["nowhere", "--task", "emojy"], "emoji"),
    (["nowhere", "--task", "none.jsonl"], "there is no file none.jsonl"),
    (["nowhere", "--task", "vqav2"], "needs its file or folder"),
    (["nowhere", "--task", "emoji", "--data", "x"], "no task reads --data x"),
    (["nowhere", "--task", "mine.jsonl", "--metric", "exakt"], "did you mean 'exact'"),
    (["nowhere", "--task", "mine.jsonl", "--task", "mine.jsonl"], "two tasks are called 'mine'"),
    (["nowhere", "--task", "mine.jsonl", "--judge", "run"], "--judge rates open answers"),
    (["--endpoint", "http://127.0.0.1:9", "--model", "m", "--task", "mine.jsonl", "--key-env", "NO_SUCH"], "NO_SUCH"),
    (["--endpoint", "http://127.0.0.1:9", "--model", "m", "--task", "mine.jsonl"], "nothing answers at"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(rows, arguments, said, capsys):
    assert run("eval", *arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
