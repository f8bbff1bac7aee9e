"""A run that was stopped or killed and taken up again ends with the same bits as one that was not."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny_training import tiny_recipe, tiny_stage, two_stages

from sensorium.errors import UserError
from sensorium.train import checkpoint as store
from sensorium.train.trainer import Stopped, _StageLoop, open_run, train

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("tiny_training.py")


def bits(run):
    """sha256 of every file that a resumed run must repeat: weights, recipe, tokenizer and metrics."""
    newest = store.latest(run)
    paths = [run / "metrics.jsonl", *newest.glob("model/*"), *newest.glob("tokenizer/*"), newest / "recipe.json"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def trained(recipe, folder, **options):
    return train(open_run(recipe, folder), console=Console(file=io.StringIO()), quiet=True, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """recipe precision -> files of a run that was never stopped, with a cache of its own."""
    made = {}

    def run(precision):
        if precision not in made:
            folder = tmp_path_factory.mktemp(precision)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SENSORIUM_CACHE", str(folder / "cache"))
                trained(two_stages(precision=precision), folder / "run")
            made[precision] = bits(folder / "run")
        return made[precision]

    return run


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_stopped_by_a_signal_at_any_step_and_resumed_it_is_the_same_run(
    precision, uninterrupted, tmp_path, monkeypatch
):
    """SIGTERM during steps 1, 4, 8 (the last of a stage) and 15; each time the run is opened anew."""
    stops = [1, 4, 8, 15]
    plain = _StageLoop._step

    def step(self, *args):
        if stops and self.run_.step + 1 == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(_StageLoop, "_step", step)
    recipe, folder, stopped = two_stages(precision=precision), tmp_path / "run", []
    before = signal.getsignal(signal.SIGTERM)
    while True:
        try:
            run = trained(recipe, folder)
            break
        except Stopped:
            stopped.append(store.read_state(store.latest(folder))["step"])
    assert stopped == [1, 4, 9, 15]  # at the last step of a stage it stops after the first of the next
    assert run.finished
    assert signal.getsignal(signal.SIGTERM) is before
    assert bits(folder) == uninterrupted(precision)


@pytest.mark.slow
def test_an_error_in_a_step_loses_what_came_after_the_last_checkpoint_and_nothing_else(
    uninterrupted, tmp_path, monkeypatch
):
    """Killed at every step once: what was logged after the checkpoint is logged again, not twice."""
    plain, died = _StageLoop._step, set()

    def step(self, *args):
        values = plain(self, *args)
        if self.run_.step not in died:
            died.add(self.run_.step)
            raise KeyboardInterrupt
        return values

    monkeypatch.setattr(_StageLoop, "_step", step)
    for _ in range(17):
        try:
            trained(two_stages(), tmp_path / "run", save_steps=3)
        except KeyboardInterrupt:
            continue
    assert len(died) == 16
    assert bits(tmp_path / "run") == uninterrupted("fp32")


def test_a_run_object_that_was_stopped_goes_on(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr("sensorium.train.trainer._signals", lambda: AskedAt(5))
    run = open_run(two_stages(), tmp_path / "run")
    with pytest.raises(Stopped, match="step 5"):
        train(run, console=Console(file=io.StringIO()), quiet=True)
    monkeypatch.undo()
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    train(run, console=Console(file=io.StringIO()), quiet=True)
    assert [result.steps for result in run.results] == [8, 8]
    assert bits(tmp_path / "run") == uninterrupted("fp32")


class AskedAt:
    """Stands for the signals: asks to stop at the n-th question."""

    def __init__(self, step):
        self.left = step

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def __call__(self):
        self.left -= 1
        return self.left == 0


def test_a_signal_that_comes_while_saving_waits_for_the_next_step(tmp_path, monkeypatch):
    """Whether to stop is asked once a step: a run never says it stopped where it has not saved."""
    asked = AskedAt(0)
    asked_times = []
    asked.__class__ = type("Counting", (AskedAt,), {"__call__": lambda self: asked_times.append(1) or False})
    monkeypatch.setattr("sensorium.train.trainer._signals", lambda: asked)
    monkeypatch.setattr(type(asked), "__enter__", lambda self: self)
    trained(tiny_recipe(tiny_stage(steps=4)), tmp_path / "run", save_steps=2)
    assert len(asked_times) == 4


def test_a_run_that_moved_past_its_checkpoint_must_be_opened_again(tmp_path, monkeypatch):
    plain = _StageLoop._step

    def step(self, *args):
        if self.run_.step == 3:
            raise OSError("the disk is full")
        return plain(self, *args)

    monkeypatch.setattr(_StageLoop, "_step", step)
    run = open_run(tiny_recipe(), tmp_path / "run")
    with pytest.raises(OSError, match="disk"):
        train(run, console=Console(file=io.StringIO()), quiet=True, save_steps=2)
    with pytest.raises(UserError, match="open the run again"):
        train(run, console=Console(file=io.StringIO()), quiet=True)


def test_killed_before_anything_points_at_the_first_checkpoint(uninterrupted, tmp_path, monkeypatch):
    """The folder is complete, `latest` is not written yet: the run goes on from it."""
    recipe, folder = two_stages(), tmp_path / "run"

    def killed(run, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "point", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, folder, save_steps=3)
    assert not (folder / "latest").exists()
    assert store.latest(folder).name == "step_000003"
    trained(recipe, folder)
    assert bits(folder) == uninterrupted("fp32")


def test_killed_while_the_first_checkpoint_is_written(uninterrupted, tmp_path, monkeypatch):
    recipe, folder = two_stages(), tmp_path / "run"

    def killed(folder, files=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_sync", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(recipe, folder, save_steps=3)
    assert store.latest(folder) is None
    trained(recipe, folder)
    assert bits(folder) == uninterrupted("fp32")
    assert not list(folder.glob(".writing_*"))


def start(run, cache):
    environment = {**os.environ, "SENSORIUM_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(run)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(tmp_path):
    """kill -9 of a real process, while it imports, loads, trains or saves; each run has its own feature cache."""
    began = time.monotonic()
    whole = start(tmp_path / "whole", tmp_path / "cache-whole")
    while _lines(tmp_path / "whole") == 0 and whole.poll() is None:
        time.sleep(0.002)
    loading = time.monotonic() - began
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output.decode()
    seed = random.randrange(1 << 32)
    chance, folder, moments = random.Random(seed), tmp_path / "killed", []
    for kill in range(10):
        process = start(folder, tmp_path / "cache-killed")
        before = _lines(folder)
        if kill % 3 == 0:  # somewhere in its loading
            time.sleep(chance.uniform(0.1, 1.0) * loading)
        else:  # a few steps on: in a step, or in the save after every third
            wanted = before + chance.randrange(1, 6)
            while _lines(folder) < wanted and process.poll() is None:
                time.sleep(0.001)
                before = min(before, _lines(folder))  # what came after the checkpoint is forgotten first
                wanted = min(wanted, before + 5)
            time.sleep(chance.uniform(0, 0.03))
        assert process.poll() is None, f"it ended by itself: {process.communicate()[0].decode()}"
        process.kill()
        process.communicate()
        moments.append(_lines(folder))
    last = start(folder, tmp_path / "cache-killed")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output.decode()
    assert bits(folder) == bits(tmp_path / "whole"), f"killed after steps {moments}, seed {seed}"


def _lines(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0
