"""What the benchmarks stand on: sides in processes of their own, prompts, what a client hears, the command."""

import argparse
import http.server
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading

import pytest

from benchmarks import prompts
from benchmarks.serving import ask, listen, plain
from benchmarks.turns import Missing, Side, Sides, compare, spread
from sensorium.commands.bench import BENCHMARKS, run_bench
from sensorium.errors import UserError


class Counter:
    """A side that says how often it was called, and cannot do everything."""

    def __init__(self, start):
        if start < 0:
            raise Missing("there is nothing below zero")
        self.count = start

    def add(self, number):
        self.count += number
        return {"count": self.count}

    def fail(self):
        raise ValueError("no")


class Starter:
    """A side with a process of its own, as a server is."""

    def __init__(self):
        self.started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def pid(self):
        return self.started.pid

    def close(self):
        self.started.terminate()
        self.started.wait(10)


def options(**changed):
    return argparse.Namespace(**{"rounds": 3, "only": "*", **changed})


def test_a_side_keeps_its_state_and_says_what_fails():
    side = Side("one", Counter, 5)
    try:
        assert [side.call("add", 2), side.call("add", 1)] == [{"count": 7}, {"count": 8}]
        with pytest.raises(Missing, match="ValueError: no"):
            side.call("fail")
        assert side.call("add", 0) == {"count": 8}
    finally:
        side.close()
    assert not side.process.is_alive()


@pytest.mark.parametrize("way", ["closed", "told to end"])
def test_what_a_side_started_ends_with_it(way):
    side = Side("one", Starter)
    pid = side.call("pid")
    os.kill(pid, 0)
    if way == "told to end":
        side.process.terminate()
        side.process.join(20)
    side.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_sides_take_turns_and_those_that_cannot_run_are_said(capsys):
    order = []

    def job(side, number):
        order.append(side.name)
        if side.name == "b" and number == 1:
            return side.call("fail")
        return side.call("add", 1)

    with Sides(options()) as sides:
        for name, start in (("a", 0), ("b", 10), ("none", -1)):
            sides.add(name, Counter, start)
        measured = sides.rounds(job)
    assert order == ["b", "a", "a", "b", "b", "a", "a"]  # one round that warms up; then each begins in turn
    assert measured == {"a": [{"count": 2}, {"count": 3}, {"count": 4}]}
    said = capsys.readouterr().out
    assert "skipped none: there is nothing below zero" in said
    assert "left out b: ValueError: no" in said


def test_only_the_sides_asked_for_are_started():
    with Sides(options(only="x,b*")) as sides:
        sides.add("a", Counter, 0)
        sides.add("before", Counter, 0)
        assert list(sides.all) == ["before"]


def test_figures_are_median_and_range_and_ratios_those_of_neighbours(capsys):
    assert spread([3.0, 1.0, 2.0]) == "2.0 (1.0 to 3.0)"
    compare({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, [("a", "b"), ("a", "absent")])
    assert capsys.readouterr().out == "  a / b: 2.00 (1.00 to 3.00)\n"


def test_no_two_prompts_begin_alike():
    firsts = {prompts.story(number)[0]["content"][0]["text"] for number in range(50)}
    assert len(firsts) == 50
    assert prompts.words(3, 40) == prompts.words(3, 40)
    assert len(prompts.words(3, 40)[1]["content"][0]["text"].split()) == 41
    assert prompts.seen(1)[1].tobytes() != prompts.seen(2)[1].tobytes()


def events(*values):
    return [b"data: " + json.dumps(value).encode() + b"\n" for value in values] + [b"\n", b"data: [DONE]\n"]


def piece(text):
    return {"choices": [{"delta": {"content": text}}]}


def test_a_client_counts_what_the_server_says_or_what_came():
    counted = listen(events({"choices": [{"delta": {"role": "assistant"}}]}, piece("a"), piece("b")), 0)
    assert (counted.tokens, counted.error) == (2, "")
    assert 0 < counted.first <= counted.last
    assert listen(events(piece("ab"), {"choices": [], "usage": {"completion_tokens": 7}}), 0).tokens == 7
    assert listen(events(piece("a"), {"error": {"message": "full"}}), 0).error == "{'message': 'full'}"
    assert listen(events(), 0).error == "no text came"


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that repeats the last word, or refuses."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "none":
            self.send_error(404, "no such model")
            return
        self.send_response(200)
        self.end_headers()
        said = body["messages"][-1]["content"].split()[-1]
        self.wfile.writelines(events(*[piece(said)] * body["max_tokens"]))

    def log_message(self, *_):
        pass


def test_a_client_asks_a_server_and_reports_refusals():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        assert ask(port, "any", prompts.story(0), 5).tokens == 5
        assert ask(port, "none", prompts.story(0), 5).error.startswith("404")
    finally:
        server.shutdown()
        server.server_close()
    assert ask(port, "any", prompts.story(0), 5).error.startswith("ConnectionRefusedError")


def test_contents_become_one_text():
    assert plain(prompts.story(0))[0]["content"] == prompts.story(0)[0]["content"][0]["text"]


def test_the_command_knows_its_benchmarks():
    with pytest.raises(UserError, match="did you mean 'prefill'"):
        run_bench("prefil", [])


def test_a_benchmark_runs_in_a_process_of_its_own(capfd):
    assert run_bench("startup", ["--help"]) == 0
    assert "usage" in capfd.readouterr().out


LATE = ("claims", "quantize")
"""Those that import much."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one in LATE else one for one in sorted({*BENCHMARKS} - {"stages"})],
)
def test_every_benchmark_says_what_it_does(name, capsys, monkeypatch):
    """`stages` is left out: it imports transformers' models first, which takes ten seconds."""
    monkeypatch.setattr("sys.argv", [name, "--help"])
    package = f"benchmarks.{name}"
    found = importlib.util.find_spec(package)
    module = importlib.import_module(f"{package}.__main__" if found.submodule_search_locations else package)
    with pytest.raises(SystemExit) as leaving:
        module.main()
    assert leaving.value.code == 0
    assert "usage" in capsys.readouterr().out
