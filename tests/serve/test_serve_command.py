"""`sensorium serve` as a process: started, told to end under load, killed, started again."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import hello, until

from sensorium.cli import main
from sensorium.commands.serve import Serving, app_of, named_drafts, named_runs, run_serve
from sensorium.errors import UserError
from sensorium.train.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    folder.mkdir()
    state = {"stage": 1, "wiring": 0, "stage_step": 0, "position": None, "step": 3, "finished": True}
    state |= {"results": {}, "phases": {}, "adapters": []}
    save_checkpoint(folder, 3, model.recipe, model.network, model.tokenizer, state)
    return folder


def test_names_of_runs(tmp_path):
    (tmp_path / "cat").mkdir()
    assert named_runs([str(tmp_path / "cat"), "b=runs/dog"]) == {"cat": str(tmp_path / "cat"), "b": "runs/dog"}
    assert named_runs(["organisation/model"]) == {"organisation/model": "organisation/model"}
    with pytest.raises(UserError, match="two models would be called 'b'"):
        named_runs(["b=x", "b=y"])
    with pytest.raises(UserError, match="neither RUN nor NAME=RUN"):
        named_runs(["=x"])


def test_draft_models_of_the_command_line(run):
    assert named_drafts([], ["a"]) == {}
    assert named_drafts(["runs/small"], ["a"]) == {"a": "runs/small"}
    assert named_drafts(["b=runs/small"], ["a", "b"]) == {"b": "runs/small"}
    for drafts, names, words in (
        (["runs/small"], ["a", "b"], "of which of a, b"),
        (["c=runs/small"], ["a", "b"], "no model 'c'"),
        (["x", "a=y"], ["a"], "a draft model already, x"),
    ):
        with pytest.raises(UserError, match=words):
            named_drafts(drafts, names)
    asked = Serving((str(run),), drafts=(str(run),))
    [hosted] = app_of(asked, named_runs(asked.runs)).state.serving.models
    assert hosted.engine.drafter is not None
    hosted.close()


def test_keys_and_limits_of_the_command_line(run, monkeypatch):
    monkeypatch.setenv("SENSORIUM_API_KEYS", "one, two,")
    asked = Serving((str(run),), keys=("three",), limits=("max_tokens=7", "request_seconds=9.5"))
    state = app_of(asked, named_runs(asked.runs)).state.serving
    assert [state.knows(f"Bearer {key}") for key in ("one", "two", "three", "", "four")] == [True] * 3 + [False] * 2
    assert (state.limits.max_tokens, state.limits.request_seconds) == (7, 9.5)
    state.models[0].close()
    with pytest.raises(UserError, match="did you mean 'max_tokens'"):
        app_of(Serving((str(run),), limits=("max_token=7",)), named_runs(asked.runs))


def test_what_is_missing_is_said_before_a_model_is_loaded(monkeypatch, capsys):
    found = {"uvicorn": None}
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name, find_spec) and find_spec(name))
    with pytest.raises(UserError, match=re.escape("serving needs uvicorn: pip install 'sensorium[serve]'")):
        run_serve(Serving(("nowhere",)), False)
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        main(["serve", "nowhere", "--port", "0"])
    assert "there is no folder or file nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("native", [True, False])
def test_what_a_model_computes_in_is_said(run, native, monkeypatch, capsys):
    monkeypatch.setattr("sensorium.api.native_bfloat16", lambda: native)
    monkeypatch.setattr("sensorium.serve.run.run", lambda app, sock, drain: app.state.serving.models[0].close())
    monkeypatch.setattr("sensorium.serve.run.log_to_stderr", lambda: None)
    run_serve(Serving((f"tiny={run}",), port=0, quantize="int8"), False)
    said = capsys.readouterr().out
    assert f"answers for tiny ({'bf16' if native else 'fp32'}, int8 weights)" in said
    assert ("--precision bf16" in said) == (not native)


@contextmanager
def process(run, *options):
    """A server of its own: process, address. Killed at the end, unless it ended before."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sensorium", "serve", f"tiny={run}", "--json", *options]
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert running.stdout is not None
        said = json.loads(running.stdout.readline())
        assert said["models"] == ["tiny"]
        yield running, said["url"]
    finally:
        running.kill()
        running.communicate()


def asked(url, count, **fields):
    """So many requests at once, half of them streamed: threads, and (status, text) or the error of each."""
    found = []

    def ask(number):
        try:
            body = hello(**fields, stream=number % 2 == 0, temperature=1.0, seed=number)
            answer = httpx.post(url + CHAT, json=body, timeout=60)
            found.append((answer.status_code, answer.text))
        except httpx.HTTPError as error:
            found.append((0, repr(error)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def busy(url, count, ended=()):
    """Whether so many requests were taken: they are answered now, or have ended."""
    done = len(ended)  # first: one that ends meanwhile must not count twice
    [taken] = re.findall(r"^sensorium_requests_open (\S+)$", httpx.get(url + "/metrics").text, re.M)
    return float(taken) + done >= count


def ended(text):
    """How a request that was answered with 200 ended: finished, or told that the server leaves."""
    if not text.startswith("data: "):
        return json.loads(text)["choices"][0]["finish_reason"] is not None
    last = text.strip().split("\n\n")[-1].removeprefix("data: ")
    return last == "[DONE]" or json.loads(last)["error"]["code"] == "shutting_down"


@pytest.mark.slow
def test_sigterm_under_load_finishes_what_was_accepted(run):
    with process(run, "--port", "0", "--drain", "60") as (running, url):
        threads, found = asked(url, 24, max_tokens=400)
        until(lambda: busy(url, 24, found), 60)  # one that comes after the signal is refused, rightly
        assert len(found) < 24
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.wait(20) == 0
        assert [status for status, _ in found] == [200] * 24
        assert all(ended(text) and "shutting_down" not in text for _, text in found)


@pytest.mark.slow
def test_sigterm_without_time_fails_the_rest_cleanly_and_another_takes_over(run):
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    with process(run, "--port", "0", "--drain", "0.2", "--limit", "context=4000") as (running, url):
        threads, found = asked(url, 12, max_tokens=3000)
        until(lambda: busy(url, 12), 20)
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.wait(20) == 0
        assert {status for status, _ in found} <= {200, 503}
        assert sum("shutting_down" in text for _, text in found) > 0
        assert all(ended(text) for status, text in found if status == 200)
    port = url.rpartition(":")[2]
    with process(run, "--port", port) as (running, again):
        assert again == url
        threads, found = asked(url, 4, max_tokens=3000)
        until(lambda: busy(url, 4), 20)
        running.send_signal(signal.SIGKILL)  # nothing can be told to anybody
        for thread in threads:
            thread.join()
        assert running.wait(20) == -signal.SIGKILL
    with process(run, "--port", port) as (running, _):
        assert httpx.post(url + CHAT, json=hello(), timeout=30).status_code == 200
        for _ in range(2):  # the second one does not wait
            running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert running.stderr is not None
        events = [json.loads(line)["event"] for line in running.stderr.read().splitlines()]
        assert events[-1] == "ended"
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before
