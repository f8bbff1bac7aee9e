"""From a stage without a language model to one with it: what was learned goes on, and what was asked is kept."""

from __future__ import annotations

import pytest
import torch

from sensorium.connectors.mlp import MLP
from sensorium.errors import UserError
from sensorium.evaluate.matching import Matches
from sensorium.models.dual import Dual
from sensorium.models.fused import Fused
from sensorium.recipes.catalog import find
from sensorium.train import checkpoint as store
from sensorium.train.build import become, build_model
from sensorium.train.trainer import open_run, train


def short(steps: int = 2):
    recipe = find("blip-2", "tiny")
    first, second = recipe.stages
    asked = (Matches(split="val_artist", n=6),)
    return recipe.replace(
        stages=(first.replace(steps=steps, items=8, evaluations=asked), second.replace(steps=steps, tokens=512)),
        evaluations=(),
    )


def test_the_q_former_goes_on_and_its_last_layer_is_new():
    recipe = short()
    model = build_model(recipe, recipe.wiring(0))
    assert isinstance(model, Dual)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = become(model, recipe, recipe.model)
    assert isinstance(after, Fused)
    kept = {name for name, value in after.state_dict().items() if name in before and value.shape == before[name].shape}
    assert all(torch.equal(after.state_dict()[name], before[name]) for name in kept if "image.out" not in name)
    assert {"connectors.image.queries", "connectors.image.norm.weight"} <= kept
    assert any(".routes.1.ffn." in name for name in kept)  # not started again as copies of the text's
    assert after.state_dict()["connectors.image.out.weight"].shape == (96, 64)
    assert not any(name.startswith(("head.", "grounding.")) for name in after.state_dict())


def test_a_connector_that_is_all_width_cannot_be_taken_over():
    one, two = MLP.Config(depth=1).build(4, 8), MLP.Config(depth=1).build(4, 16)
    with pytest.raises(UserError, match="tokens of width 8, now 16 are wanted"):
        two.adopt(one)


@pytest.mark.slow
def test_a_stage_asks_at_its_end_and_a_resumed_run_repeats_it_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    whole = train(open_run(short(), tmp_path / "whole"), quiet=True)
    [asked] = whole.results[0].evaluations
    assert (asked["task"], asked["split"], asked["n"], asked["chance"]) == ("matching", "val_artist", 12, 0.5)
    assert asked["blind"] is not None
    assert whole.results[1].evaluations == []
    found = store.latest(tmp_path / "whole")
    assert found is not None
    assert store.read_state(found)["results"][0]["evaluations"] == [asked]

    class Enough(Exception):
        pass

    run = open_run(short(), tmp_path / "parts")
    saved = store.save_checkpoint
    count = []

    def stop_after_two(*args, **more):
        saved(*args, **more)
        count.append(1)
        if len(count) == 1:
            raise Enough

    monkeypatch.setattr(store, "save_checkpoint", stop_after_two)
    with pytest.raises(Enough):
        train(run, quiet=True, save_steps=1)
    monkeypatch.setattr(store, "save_checkpoint", saved)
    resumed = train(open_run(short(), tmp_path / "parts"), quiet=True)
    assert resumed.results[0].evaluations == [asked]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_first_stage_reads_captions_without_the_marks_of_the_prompt():
    """MiniGPT-4 writes <Img> and </Img> around a picture; the captions of its first stage are BLIP-2's."""
    recipe = find("minigpt-4", "small")
    first, blip2 = recipe.wiring(0), find("blip-2", "small")
    assert recipe.template_of(first) == blip2.template_of(blip2.wiring(0))
    assert recipe.template_of(recipe.model).media == {"image": ("<Img>", "</Img> ")}
