"""NExT-GPT through the trainer: the denoiser of the first stage is the generator's, and stays as it was."""

import hashlib
import io

import pytest
import torch
from rich.console import Console

import sensorium
from sensorium.diffusion.sampler import Euler
from sensorium.errors import UserError
from sensorium.evaluate.answering import Answering
from sensorium.hub.catalog import SMOLLM2_135M_INSTRUCT
from sensorium.infer.painting import Painting
from sensorium.recipes.catalog import find
from sensorium.train import build
from sensorium.train import checkpoint as store
from sensorium.train.ask import subject_of
from sensorium.train.build import become, build_model, load_pretrained
from sensorium.train.describe import describe
from sensorium.train.draw import draw_svg
from sensorium.train.task import check_stages
from sensorium.train.trainer import Stopped, _StageLoop, open_run, train

PAINTING = Painting(sampler=Euler(steps=2))


def short(steps=2):
    recipe = find("next-gpt", "tiny")
    stages = (stage.replace(steps=steps, items=4, tokens=600, precision="fp32") for stage in recipe.stages)
    return recipe.replace(stages=tuple(stages), evaluations=(), judge=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def trained(recipe, folder):
    return train(open_run(recipe, folder), console=Console(file=io.StringIO()), quiet=True)


def bits(run):
    newest = store.latest(run)
    paths = [run / "metrics.jsonl", *newest.glob("model/*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_pretrained_parts_of_a_denoiser_are_filled_once_and_then_stay_as_they_were_trained(monkeypatch):
    recipe = short().replace(init={"generators.image.denoiser.text": SMOLLM2_135M_INSTRUCT})
    first = build_model(recipe, recipe.wiring(0))
    published = {name: torch.full_like(value, 0.5) for name, value in first.text.state_dict().items()}
    reads = []
    monkeypatch.setattr(build, "fetch", lambda pretrained, **_: reads.append(pretrained))
    monkeypatch.setattr(build, "_tensors", lambda pretrained, path: published.items())
    assert list(load_pretrained(first, recipe)) == ["text"]
    assert all(bool((value == 0.5).all()) for value in first.text.state_dict().values())
    with torch.no_grad():
        for parameter in first.text.parameters():
            parameter.add_(1.0)  # as a stage that trains it does
    model = become(first, recipe, recipe.model)
    assert all(bool((value == 1.5).all()) for value in model.generators["image"].denoiser.text.parameters())
    assert len(reads) == 1
    load_pretrained(model, recipe)
    assert all(bool((value == 0.5).all()) for value in model.generators["image"].denoiser.text.parameters())


def test_a_denoiser_that_a_stage_trained_goes_on_inside_a_generator():
    recipe = short()
    first = build_model(recipe, recipe.wiring(0))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    model = become(first, recipe, recipe.model)
    inside = model.generators["image"].denoiser.state_dict()
    assert all(torch.equal(inside[name], value) for name, value in before.items())
    assert become(model, recipe, recipe.model) is model
    other = recipe.stages[0].wiring.replace(length=4)
    with pytest.raises(UserError, match="a denoiser that no generator of the recipe's model has"):
        check_stages(recipe.replace(stages=(recipe.stages[0].replace(wiring=other), *recipe.stages[1:])))


@pytest.mark.slow
def test_four_stages_end_to_end_stopped_and_resumed_it_is_the_same_run(tmp_path, monkeypatch):
    run = trained(short(), tmp_path / "whole")
    taken, count = _StageLoop._step, 0

    def stopping(loop, *args):
        nonlocal count
        count += 1
        loop.asked = lambda: count in (3, 5)  # within the second and the third stage
        return taken(loop, *args)

    monkeypatch.setattr(_StageLoop, "_step", stopping)
    frozen = []
    for _ in range(2):
        with pytest.raises(Stopped):
            trained(short(), tmp_path / "parts")
        frozen.append(denoiser_bits(tmp_path / "parts"))
    trained(short(), tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert {denoiser_bits(tmp_path / "whole"), *frozen} == {frozen[0]}  # whole since its stage ended
    asked = Answering(split="val_artist", n=3, painting=PAINTING).run(subject_of(run.recipe, run.model, run.tokenizer))
    [one] = asked.evaluations
    assert (one.n, one.chance) == (6, 0.5)
    assert one.blind is not None
    model = sensorium.load(tmp_path / "whole", precision="fp32")
    answer = model.reply([{"role": "user", "content": "Draw a cat."}], painting=PAINTING, max_tokens=4)
    assert sum(not isinstance(part, str) for part in answer) <= 1


def denoiser_bits(run):
    [path] = store.latest(run).glob("model/generators.image.denoiser*")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_stage_of_a_wiring_within_the_model_is_shown_as_that_part():
    recipe = find("next-gpt", "tiny")
    assert [recipe.inside(stage) for stage in recipe.stages] == ["generators.image.denoiser", "", "", ""]
    described = describe(recipe, costs=False)
    assert described.stages[0].trained == described.parts["generators.image.denoiser"]
    figure = draw_svg(described)
    assert "Output connector (Resampler)" in figure
    assert "states of 4 signal tokens become 4 tokens of condition" in figure
