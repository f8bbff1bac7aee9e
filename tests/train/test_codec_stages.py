"""A codec trained alone, then a language model on its codes: through the ordinary trainer, resumed to the last bit."""

from __future__ import annotations

import hashlib
import io
import os
import signal

import pytest
import torch
from rich.console import Console
from tiny_training import Pictures, tiny_recipe

from sensorium import api
from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.encoders.transform import ImageTransform
from sensorium.infer.sampling import Sampling
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import llama
from sensorium.objectives.reconstruction import Reconstruct
from sensorium.sequence import Sample, Segment
from sensorium.train import checkpoint as store
from sensorium.train.ask import subject_of
from sensorium.train.history import read_run
from sensorium.train.recipe import Stage
from sensorium.train.trainer import Stopped, _StageLoop, open_run, train


def recipe(learning: str = "ema", precision: str = "auto"):
    conv = Convolutions(channels=4, multipliers=(1, 2), blocks=1, groups=2, attention=False, patch=2)
    book = Quantizer.Config(codes=16, width=4, decay=0.8, revive=0.2, learning=learning)
    codec = VQ.Config(transform=ImageTransform(size=16), conv=conv, quantizer=book, wide=8)
    model = Fused.Config(
        codecs={"image": codec}, tokens={"image": CodeTokens.after(259, 16)},
        backbone=llama(vocab=278, width=16, depth=1, heads=2, hidden=32),
    )  # fmt: skip
    common = {"data": Pictures(count=20, unreadable=(3,), broken=(7,)), "steps": 6, "accumulate": 2, "tokens": 512}
    alone = Stage(name="codec", wiring=Wiring.Config(codecs=model.codecs), train=("codecs.*",), lr=1e-2, items=4,
                  objectives=(Reconstruct(weights={"commitment": 0.25}),), precision="fp32", **common)  # fmt: skip
    language = Stage(name="language", train=("backbone.*",), lr=1e-2, precision=precision, **common)
    return tiny_recipe(alone, language, model=model)


def trained(value, folder):
    return train(open_run(value, folder), console=Console(file=io.StringIO()), quiet=True)


def bits(folder):
    newest = store.latest(folder)
    paths = [folder / "metrics.jsonl", *newest.glob("model/*")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("learning", "precision"), [
    ("ema", "fp32"),
    pytest.param("ema", "bf16", marks=pytest.mark.slow),
    pytest.param("gradient", "fp32", marks=pytest.mark.slow),
])  # fmt: skip
def test_stopped_in_either_stage_and_resumed_it_is_the_same_run(learning, precision, tmp_path, monkeypatch):
    value = recipe(learning, precision)
    trained(value, tmp_path / "whole")
    stops, plain = [2, 6, 9], _StageLoop._step

    def step(self, *args):
        if stops and self.run_.step + 1 == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(_StageLoop, "_step", step)
    while stops:
        with pytest.raises(Stopped):
            trained(value, tmp_path / "parts")
    trained(value, tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_the_codec_learns_alone_and_then_rests_to_the_last_bit(tmp_path):
    value = recipe()
    run = open_run(value, tmp_path / "run")
    assert not hasattr(run.model, "backbone")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    states = []
    plain = store.save_checkpoint

    def save(folder, step, recipe, model, *args, **options):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return plain(folder, step, recipe, model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "save_checkpoint", save)
        train(run, quiet=True)
    codec, language = states[0], states[-1]
    assert any(not torch.equal(codec[name], before[name]) for name in before)
    assert all(torch.equal(language[name], codec[name]) for name in codec)
    assert language["codecs.image.quantizer.book"].dtype == torch.float32


def test_the_log_says_how_the_codebook_fares(tmp_path):
    trained(recipe(), tmp_path / "run")
    lines = [line for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if '"codec"' in line]
    assert len(lines) == 6
    for name in ("usage", "perplexity", "revived", "squared", "commitment"):
        assert f'"{name}"' in lines[-1]
    curves, _ = read_run(tmp_path / "run")
    assert [curve.stage for curve in curves] == ["codec", "language"]


def test_after_training_it_draws_and_answers(tmp_path):
    run = trained(recipe(), tmp_path / "run")
    _, model, tokenizer = store.load_checkpoint(tmp_path / "run")
    engine = subject_of(run.recipe, model, tokenizer).engine
    [[picture]] = engine.draw([Sample((Segment("text", "red"),))], Sampling(temperature=1.0, guidance=2.0))
    assert picture.size == (16, 16)
    model = api.load(tmp_path / "run", precision="fp32")
    again, other = model.draw("red", seed=3), model.draw("red", seed=4)
    assert again.tobytes() == model.draw("red", seed=3).tobytes()
    assert again.size == other.size == (16, 16)
    row = Pictures().build()[0].segments[0]
    assert isinstance(engine.generate([Sample((row,))], Sampling(max_tokens=3))[0], str)
