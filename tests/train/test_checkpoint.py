"""A checkpoint is complete or absent; what is damaged is one error that names the file."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import tiny_model, tiny_recipe, tiny_stage

from sensorium.errors import UserError
from sensorium.nn.lora import LoRA, LoRALinear, add_lora
from sensorium.tokenizer import Tokenizer
from sensorium.train import checkpoint as store
from sensorium.train.build import build_model
from sensorium.train.trainer import open_run

ADAPTERS = {"backbone.blocks.*.attention.q": LoRA(rank=2)}
RECIPE = tiny_recipe(tiny_stage(train=("*.lora_*",), adapters=ADAPTERS))
STATE = {
    "stage": 0, "wiring": 0, "stage_step": 2, "position": 6, "step": 2, "finished": False, "results": [], "phases": {},
    "adapters": ["one"],
}  # fmt: skip


@pytest.fixture
def model():
    model = build_model(RECIPE)
    add_lora(model, ADAPTERS)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    return model


def save(run, model, step=2, **options):
    return store.save_checkpoint(run, step, RECIPE, model, Tokenizer.bytes(), {**STATE, "step": step}, **options)


def test_what_is_saved_is_loaded(tmp_path, model):
    save(tmp_path, model, optim={"exp_avg.x": torch.ones(2)})
    recipe, loaded, tokenizer = store.load_checkpoint(tmp_path)
    assert recipe == RECIPE
    assert not loaded.training
    assert isinstance(loaded.get_submodule("backbone.blocks.1.attention.q"), LoRALinear)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.encode("a") == Tokenizer.bytes().encode("a")
    assert torch.equal(store.read_optim(store.latest(tmp_path))["exp_avg.x"], torch.ones(2))
    assert store.read_state(store.latest(tmp_path))["position"] == 6


def test_adapters_have_a_file_of_their_own(tmp_path, model):
    folder = save(tmp_path, model)
    files = {path.name for path in (folder / "model").iterdir()}
    assert files == {
        "backbone.safetensors", "backbone.lora.safetensors", "connectors.image.safetensors",
        "encoders.image.safetensors",
    }  # fmt: skip
    assert all(".lora_" in name for name in load_file(folder / "model/backbone.lora.safetensors"))
    assert not any(".lora_" in name for name in load_file(folder / "model/backbone.safetensors"))


def test_loading_says_what_was_loaded(tmp_path, model):
    folder = save(tmp_path, model)
    with torch.device("meta"):
        empty = RECIPE.model.build()
    report = store.load_weights(empty, folder, RECIPE, ["one"])
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.unexpected) == ([], [])
    assert str(report) == f"{len(report.loaded)} tensors loaded"


def test_another_dtype_on_request(tmp_path, model):
    save(tmp_path, model)
    _, loaded, _ = store.load_checkpoint(tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_parts_that_did_not_change_are_hard_links(tmp_path, model):
    first = save(tmp_path, model, 1, keep=2)
    second = save(tmp_path, model, 2, unchanged={"backbone", "encoders.image"}, keep=2)
    parts = ("backbone", "encoders.image", "connectors.image")
    files = [[folder / "model" / f"{part}.safetensors" for part in parts] for folder in (first, second)]
    same = [os.path.samefile(left, right) for left, right in zip(*files)]
    assert same == [True, True, False]
    third = save(tmp_path, model, 3, unchanged={"backbone"}, keep=1)
    assert not first.exists()
    assert not second.exists()
    assert torch.equal(
        load_file(third / "model/backbone.safetensors")["backbone.embed.weight"], model.backbone.embed.weight
    )


def test_a_frozen_part_that_a_stage_has_cast_is_written_again(tmp_path, model):
    """fp32, then bf16 with the part frozen, then fp32: resumed or not, what the bf16 stage rounded stays rounded."""
    save(tmp_path, model, 1, keep=2)
    model.backbone.to(torch.bfloat16)
    second = save(tmp_path, model, 2, unchanged={"backbone"}, keep=2)
    assert load_file(second / "model/backbone.safetensors")["backbone.embed.weight"].dtype == torch.bfloat16


def test_older_checkpoints_go_and_so_do_those_of_a_future_that_was_not(tmp_path, model):
    for step in (1, 2, 3):
        save(tmp_path, model, step, keep=2)
    assert [path.name for path in store.checkpoints(tmp_path)] == ["step_000002", "step_000003"]
    shutil.copytree(tmp_path / "step_000003", tmp_path / "step_000009")
    shutil.copytree(tmp_path / "step_000003", tmp_path / ".writing_000009")
    save(tmp_path, model, 4)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step_000004"]


def test_steps_are_ordered_as_numbers(tmp_path, model):
    for step in (999_999, 1_000_000, 1_000_001):
        save(tmp_path, model, step)
    assert [path.name for path in store.checkpoints(tmp_path)] == ["step_1000001"]
    (tmp_path / "latest").unlink()
    assert store.latest(tmp_path).name == "step_1000001"


def test_killed_at_any_moment_of_writing_the_checkpoint_before_or_the_new_one_is_whole(tmp_path, model):
    """Stop before every single disk operation of a save; each time the run opens, at the old step or at the new."""
    save(tmp_path / "start", model, 1)
    limit, opened = 0, []
    while True:
        limit += 1
        run = tmp_path / str(limit)
        shutil.copytree(tmp_path / "start", run)
        with pytest.MonkeyPatch.context() as patch:
            _stop_before(patch, limit)
            try:
                save(run, model, 2, unchanged={"backbone"}, optim={"exp_avg.x": torch.ones(2)})
                break
            except KeyboardInterrupt:
                pass
        found = store.latest(run)
        _, loaded, _ = store.load_checkpoint(run)
        assert torch.equal(loaded.backbone.embed.weight, model.backbone.embed.weight)
        opened.append(store.read_state(found)["step"])
        assert (found / "optim").exists() == (opened[-1] == 2)
        save(run, model, 3)  # and it goes on
        assert [path.name for path in run.iterdir() if path.is_dir()] == ["step_000003"]
    assert limit > 12
    assert opened == sorted(opened)
    assert set(opened) == {1, 2}


def _stop_before(patch, limit):
    """Raise KeyboardInterrupt at the limit-th disk operation of sensorium.train.checkpoint."""
    count = [0]

    def watched(plain):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] >= limit:
                raise KeyboardInterrupt
            return plain(*args, **kwargs)

        return call

    patch.setattr(store, "save_file", watched(store.save_file))
    patch.setattr(store.os, "replace", watched(os.replace))
    patch.setattr(store.os, "link", watched(os.link))
    patch.setattr(store.os, "fsync", watched(os.fsync))
    patch.setattr(store.shutil, "rmtree", watched(shutil.rmtree))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\xff" * 100)


def rename_tensor(path):
    tensors = load_file(path)
    save_file({f"{name}x": tensor for name, tensor in tensors.items()}, path)


def reshape_tensor(path):
    save_file({name: tensor[:1].contiguous() for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model/backbone.safetensors", truncate),
        ("model/backbone.safetensors", empty),
        ("model/backbone.lora.safetensors", garbage),
        ("model/connectors.image.safetensors", os.unlink),
        ("model/connectors.image.safetensors", rename_tensor),
        ("model/encoders.image.safetensors", reshape_tensor),
        ("recipe.json", truncate),
        ("recipe.json", garbage),
        ("recipe.json", lambda path: path.write_text('{"type": "train.recipe.Recipe", "name": 5}')),
        ("recipe.json", lambda path: path.write_text(path.read_text().replace("models.fused.Fused", "os.system"))),
        ("state.json", truncate),
        ("state.json", lambda path: path.write_text("[]")),
        ("state.json", lambda path: path.write_text('{"stage": 0}')),
        ("tokenizer/tokenizer.json", truncate),
        ("tokenizer/tokenizer_config.json", os.unlink),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(name, damage, tmp_path, model):
    folder = save(tmp_path, model)
    damage(folder / name)
    with pytest.raises(UserError) as caught:
        store.load_checkpoint(tmp_path)
    assert str(folder / name) in str(caught.value)


def test_a_damaged_optimizer_state_names_its_file(tmp_path, model):
    folder = save(tmp_path, model, optim={"exp_avg.x": torch.ones(99)})
    truncate(folder / "optim/state.safetensors")
    with pytest.raises(UserError, match=r"optim/state\.safetensors"):
        store.read_optim(folder)
    with pytest.raises(UserError, match="no optimizer state"):
        store.read_optim(save(tmp_path, model, 3))


def test_a_part_that_the_recipe_does_not_have_is_an_error(tmp_path, model):
    folder = save(tmp_path, model)
    shutil.copy(folder / "model/connectors.image.safetensors", folder / "model/connectors.audio.safetensors")
    with pytest.raises(UserError, match=r"connectors\.audio\.safetensors"):
        store.load_checkpoint(folder)


def test_the_recipe_of_another_model_is_an_error(tmp_path, model):
    folder = save(tmp_path, model)
    wider = tiny_model(backbone=RECIPE.model.backbone.replace(width=32))
    (folder / "recipe.json").write_text(RECIPE.replace(model=wider).to_json())
    with pytest.raises(UserError, match=r"\.safetensors does not fit the recipe.*is \(16,\), expected \(32,\)"):
        store.load_checkpoint(folder)


def test_a_pointer_to_nothing_is_an_error_that_says_what_there_is(tmp_path, model):
    save(tmp_path, model)
    (tmp_path / "latest").write_text("step_000099\n")
    with pytest.raises(UserError, match=r"step_000099.*step_000002"):
        open_run(RECIPE, tmp_path)
    (tmp_path / "latest").write_text("")
    with pytest.raises(UserError, match="no complete checkpoint"):
        store.load_checkpoint(tmp_path)


def test_a_checkpoint_that_someone_deleted_does_not_stop_the_next(tmp_path, model):
    shutil.rmtree(save(tmp_path, model, 1))
    save(tmp_path, model, 2, unchanged={"backbone"})
    store.load_checkpoint(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    assert store.latest(tmp_path) is None
    with pytest.raises(UserError, match="no finished checkpoint"):
        store.load_checkpoint(tmp_path)


def test_state_is_plain_json(tmp_path, model):
    folder = save(tmp_path, model)
    assert json.loads((folder / "state.json").read_text())["adapters"] == ["one"]
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin")]
