"""A denoiser through the trainer: noise that a resumed run draws again, a moving average that is saved and settles."""

import hashlib
import io
import json

import pytest
import torch
from rich.console import Console
from tiny_denoiser import config
from tiny_training import Noise, tiny_recipe, tiny_stage
from torch.testing import assert_close

from sensorium.data.source import SourceConfig
from sensorium.infer.painting import Painting, canvas, paint
from sensorium.nn.backbone import bert
from sensorium.objectives.diffusion import Denoising
from sensorium.sequence import Sample, Segment
from sensorium.train import checkpoint as store
from sensorium.train.ask import subject_of
from sensorium.train.trainer import Stopped, _StageLoop, open_run, train


class Named(SourceConfig):
    """Twelve pictures of noise, with words."""

    def build(self):
        return self

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return Sample((Segment("image", Noise(index)), Segment("text", f"number {index}")), id=str(index))


def recipe(**changes):
    model = config(text=bert(vocab=259, width=16, depth=1, heads=2, hidden=32, positions=64))
    fields = {"train": ("*",), "data": Named(), "objectives": (Denoising(),), "steps": 6, "accumulate": 2, "ema": 0.9}
    stage = tiny_stage("denoise", **{**fields, **changes})
    return tiny_recipe(stage, model=model)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def trained(recipe, folder, **options):
    return train(open_run(recipe, folder), console=Console(file=io.StringIO()), quiet=True, **options)


def bits(run):
    newest = store.latest(run)
    paths = [run / "metrics.jsonl", *newest.glob("model/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_is_the_same_run(precision, tmp_path, monkeypatch):
    trained(recipe(precision=precision), tmp_path / "whole")
    taken = _StageLoop._step
    count = 0

    def stopping(loop, *args):
        nonlocal count
        count += 1
        loop.asked = lambda: count == 3
        return taken(loop, *args)

    monkeypatch.setattr(_StageLoop, "_step", stopping)
    with pytest.raises(Stopped):
        trained(recipe(precision=precision), tmp_path / "parts")
    newest = store.latest(tmp_path / "parts")
    assert any(name.startswith("ema.") for name in store.read_optim(newest))
    trained(recipe(precision=precision), tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_the_average_is_what_the_stage_leaves():
    """By hand: decay 1/10, 2/11, ... up to the stage's own."""
    from sensorium.train.optim import Optimizer

    layer = torch.nn.Linear(3, 1, bias=False)
    optimizer = Optimizer(layer, tiny_stage(train=("*",), ema=0.25, lr=0.1), 4)
    average, seen = layer.weight.detach().clone(), []
    for step in range(4):
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step(step)
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * layer.weight.detach()
        seen.append(layer.weight.detach().clone())
    assert_close(optimizer.averages["weight"], average)
    assert_close(layer.weight.detach(), seen[-1], rtol=0, atol=0)
    optimizer.settle()
    assert_close(layer.weight.detach(), average)
    assert_close(optimizer.masters["weight"].detach(), average)


def test_it_learns_and_what_it_learned_is_painted(tmp_path):
    run = trained(recipe(steps=40, accumulate=1, items=12, tokens=1024), tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    subject = subject_of(run.recipe, run.model, run.tokenizer)
    [frames] = paint(subject.engine, [canvas("number 3", 16, 16)], Painting())
    assert frames[0].size == (16, 16)


def test_the_interface_paints_changes_and_refuses_to_talk(tmp_path):
    import sensorium
    from sensorium.errors import UserError

    trained(recipe(steps=1), tmp_path / "run")
    model = sensorium.load(tmp_path / "run", precision="fp32")
    sampler = Painting().sampler.replace(steps=2)
    assert model.paint(["a cat", "a dog"], sampler=sampler)[1][0].size == (16, 16)
    [clip] = model.paint(["a cat"], (4, 8, 16), sampler=sampler)
    assert [frame.size for frame in clip] == [(16, 8)] * 4
    before = Noise(3).load()
    [same] = model.paint(["a cat"], pictures=[before], strength=0.0, sampler=sampler)
    assert same[0].tobytes() == before.tobytes()
    with pytest.raises(UserError, match="does not answer in words"):
        model.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(UserError, match="embeds nothing"):
        model.embed("hello")
