"""Stages train what they name and nothing else; accumulation, packing and order change nothing."""

import io

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from tiny_training import Pictures, tiny_recipe, tiny_stage, two_stages

from sensorium.errors import UserError
from sensorium.nn.lora import LoRA
from sensorium.nn.part import Stepped
from sensorium.recipes.catalog import catalog
from sensorium.sequence import Sequence
from sensorium.train import checkpoint as store
from sensorium.train.loader import Batches
from sensorium.train.log import read_log
from sensorium.train.optim import Optimizer
from sensorium.train.task import Task, check_stages
from sensorium.train.trainer import open_run, train
from sensorium.train.warm import RidgeStart

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))


def silent():
    return Console(file=io.StringIO())


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def short(recipe, steps=2):
    """The recipe with every stage cut to a few small fp32 steps."""
    small = {"steps": steps, "epochs": None, "tokens": 1024, "items": 2, "accumulate": 1, "precision": "fp32"}
    return recipe.replace(stages=tuple(stage.replace(**small) for stage in recipe.stages))


KINDS = {"llava", "minigpt_v2", "blip_2", "flamingo", "cogvlm", "clip", "dit", "next_gpt", "fuyu", "emu3"}
"""Recipes whose stages differ in kind; the others are variants of these, and slow."""
EVERY = [
    pytest.param(one, id=one.__name__, marks=() if one.__name__ in KINDS else pytest.mark.slow) for one in catalog()
]


@pytest.mark.parametrize("function", EVERY)
def test_a_stage_changes_what_it_trains_and_not_one_bit_of_the_rest(function, tmp_path, monkeypatch):
    recipe = short(function("tiny"))
    run = open_run(recipe, tmp_path / "run")
    seen, after = [], []

    class Watched(Task):
        def __init__(self, recipe, stage, model, *rest):
            if seen:  # the wiring of the stage before, which may be another, as that stage left it
                after.append(copy_of(seen[-1][1]))
            super().__init__(recipe, stage, model, *rest)
            seen.append((stage, model, copy_of(model)))  # adapters are in place, nothing has trained

    monkeypatch.setattr("sensorium.train.trainer.Task", Watched)
    train(run, console=silent(), quiet=True)
    assert [stage.name for stage, _, _ in seen] == [stage.name for stage in recipe.stages]
    after.append(copy_of(run.model))
    for (stage, model, before), now in zip(seen, after, strict=True):
        parameters = {name for name, _ in model.named_parameters()}
        changed = {name for name in before if not torch.equal(before[name], now[name])}
        assert changed, f"stage {stage.name} trained nothing"
        assert {name for name in changed if not stage.trains(name)} == set()
        # moving means are learned where a part says so (codes of a codec), in the stages that train it: see above
        means = {f"{name}.{key}" for name, part in model.named_modules() if isinstance(part, Stepped)
                 for key, _ in part.named_buffers()}  # fmt: skip
        assert changed <= parameters | means, "a buffer (a statistic) moved"


def test_what_a_run_began_with_is_what_its_frozen_parts_stay_in_half_precision_too(tmp_path):
    recipe = tiny_recipe(tiny_stage(precision="bf16"))
    run = open_run(recipe, tmp_path / "run")
    before = copy_of(run.model)
    train(run, console=silent(), quiet=True)
    after = run.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "connectors.image.layers.0.weight",
        "connectors.image.layers.0.bias",
    }
    assert after["backbone.embed.weight"].dtype == torch.bfloat16
    assert after["encoders.image.patch.weight"].dtype == torch.float32  # a frozen encoder is as it was loaded


def gradients(task, sequences, count):
    """Gradient of sum / count of every trained parameter, over micro-batches."""
    task.model.zero_grad()
    total = 0.0
    for sequence in sequences:
        [loss] = task.loss(task.complete(sequence))
        (loss.sum / count).backward()
        total += float(loss.sum.detach())
    return total, {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.fixture
def whole(tmp_path):
    """A task that trains everything, and documents of different lengths for it."""
    stage = tiny_stage(train=("encoders.*", "connectors.*", "backbone.*"), tokens=4096, items=8)
    recipe = tiny_recipe(stage)
    run = open_run(recipe, tmp_path / "run")
    for parameter in run.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    task = Task(recipe, stage, run.model, run.tokenizer, None, CPU)
    batch = Batches(stage, task.renderer, seed=0).build()
    return task, list(batch.sequence.unpack())


def same(left, right, tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance, msg=name)


def test_packed_equals_separate_in_loss_and_gradient(whole):
    task, documents = whole
    assert len(documents) == 8
    assert len({len(document) for document in documents}) > 2
    total, packed = gradients(task, [Sequence.pack(documents)], 100.0)
    apart, separate = gradients(task, documents, 100.0)
    assert total == pytest.approx(apart, rel=1e-5)
    same(packed, separate, 1e-5)


def test_changing_one_document_never_changes_the_loss_of_another(whole):
    task, documents = whole
    hidden = task.model(Sequence.pack(documents)).hidden
    other = Sequence.pack(documents[2:3])
    other.ids = other.ids.clone()
    other.ids[-12:] = 65
    other.items["image"][0].data.mul_(-1.0)
    now = task.model(Sequence.pack([*documents[:2], other, *documents[3:]])).hidden
    doc = Sequence.pack(documents).doc
    assert torch.equal(hidden[doc != 2], now[doc != 2])
    assert not torch.allclose(hidden[doc == 2], now[doc == 2])


def test_the_order_of_documents_in_a_batch_changes_nothing(whole):
    task, documents = whole
    total, forward = gradients(task, [Sequence.pack(documents)], 1.0)
    again, backward = gradients(task, [Sequence.pack(documents[::-1])], 1.0)
    assert total == pytest.approx(again, rel=1e-5)
    same(forward, backward, 1e-4)


def test_accumulated_micro_batches_make_the_step_of_one_big_batch(tmp_path, monkeypatch):
    """Four micro-batches of two samples and one of eight: the same targets, so the same gradient."""
    gradients, results = [], []
    plain = Optimizer.step

    def step(self, index):
        gradients.append({name: master.grad.clone() for name, master in self.masters.items()})
        return plain(self, index)

    monkeypatch.setattr(Optimizer, "step", step)
    for accumulate, items in ((4, 2), (1, 8)):
        stage = tiny_stage(steps=1, accumulate=accumulate, items=items, tokens=4096)
        stage = stage.replace(train=("connectors.*", "backbone.*"))
        run = open_run(tiny_recipe(stage), tmp_path / str(accumulate))
        train(run, console=silent(), quiet=True)
        results.append(read_log(tmp_path / str(accumulate) / "metrics.jsonl")[0])
    few, one = results
    assert few["targets"] == one["targets"]
    assert (few["samples"], few["tokens"]) == (one["samples"], one["tokens"])
    assert few["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert few["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    same(*gradients, 1e-6)


def test_metrics_are_per_target_and_count_samples_tokens_and_targets(tmp_path):
    stage = tiny_stage(steps=2, accumulate=2)
    run = train(open_run(tiny_recipe(stage), tmp_path / "run"), console=silent(), quiet=True)
    lines = read_log(tmp_path / "run" / "metrics.jsonl")
    assert [(line["stage"], line["step"]) for line in lines] == [("one", 1), ("one", 2)]
    assert [line["samples"] for line in lines] == [6, 6]  # two micro-batches of three pictures
    assert lines[0]["loss"] == pytest.approx(5.55, abs=0.3)  # log 259, by an untrained model
    assert run.results[0].samples == 12
    assert run.results[0].tokens == sum(line["tokens"] for line in lines)


def test_it_learns_four_samples_by_heart(tmp_path):
    stage = tiny_stage(
        train=("connectors.*", "backbone.*"), data=Pictures(count=4), steps=60, items=None, tokens=192, lr=2e-2
    )
    train(open_run(tiny_recipe(stage), tmp_path / "run"), console=silent(), quiet=True)
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.2 * losses[0]


def test_a_stage_with_a_gradient_that_is_not_finite_skips_the_step_and_says_so(tmp_path, monkeypatch):
    run = open_run(tiny_recipe(tiny_stage(steps=3)), tmp_path / "run")
    plain, calls = Task.loss, []

    def poisoned(self, sequence):
        [loss] = plain(self, sequence)
        calls.append(None)
        if len(calls) == 1:
            loss.sum = loss.sum * float("nan")
        return [loss]

    monkeypatch.setattr(Task, "loss", poisoned)
    before = copy_of(run.model)
    train(run, console=silent(), quiet=True, save_steps=1)
    first, second, _ = read_log(tmp_path / "run" / "metrics.jsonl")
    assert str(first["grad_norm"]) == "nan"
    assert first["lr"] == 0
    assert second["lr"] > 0
    after = run.model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not torch.equal(before["connectors.image.layers.0.weight"], after["connectors.image.layers.0.weight"])


def test_bad_rows_are_reported_with_where_and_why(tmp_path):
    run = open_run(two_stages(steps=6), tmp_path / "run")
    train(run, console=silent(), quiet=True)
    reasons = " ".join(row["reason"] for row in run.results[0].bad)
    assert "line 4 is not JSON" in reasons
    assert "noise-7.png is damaged" in reasons
    assert "at most 256 are allowed" in reasons
    assert {row["row"] for row in run.results[0].bad} <= {3, 7, 8, 11}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ("conectors.*",)}, "matches no parameter"),
        ({"lr": {"backbone.*": 1e-3}}, "lr has no glob"),
        ({"data": None}, "has no data"),
        ({"start": RidgeStart(data=Pictures()), "train": ("backbone.*",)}, "does not train"),
        ({"start": RidgeStart(data=Pictures()), "train": ("encoders.*", "connectors.*")}, "encoder frozen"),
        ({"start": RidgeStart(data=Pictures(), kind="audio")}, "the model reads"),
        ({"train": ()}, "trains nothing"),
        ({"name": "first"}, "two stages are called"),
        ({"adapters": {"backbone.*.query": LoRA()}}, "matches no linear layer"),
    ],
)
def test_a_later_stage_that_cannot_train_is_one_clear_error_before_anything_is_done(change, message, tmp_path):
    stages = (tiny_stage("first"), tiny_stage(**change))
    with pytest.raises(UserError, match=message):
        open_run(tiny_recipe(*stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("function", catalog(), ids=lambda function: function.__name__)
def test_every_recipe_that_has_data_can_be_trained(function, size):
    check_stages(function(size))


def test_data_without_a_usable_row_is_one_clear_error(tmp_path):
    run = open_run(tiny_recipe(tiny_stage(data=Pictures(count=3, unreadable=(0, 1, 2)))), tmp_path / "run")
    with pytest.raises(UserError, match=r"3 rows.*one after another cannot be used.*line \d is not JSON"):
        train(run, console=silent(), quiet=True)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        open_run(tiny_recipe(), tmp_path)


def test_a_run_of_other_settings_is_not_continued(tmp_path):
    train(open_run(tiny_recipe(), tmp_path), console=silent(), quiet=True)
    with pytest.raises(UserError, match=r"steps: 4.*steps: 5"):
        open_run(tiny_recipe(tiny_stage(steps=5)), tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        open_run(tiny_recipe(), tmp_path, resume=False)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = open_run(tiny_recipe(), tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another process"):
        train(run, console=silent(), quiet=True)
    train(run, console=silent(), quiet=True)


def test_a_finished_run_opened_and_trained_again_does_nothing(tmp_path):
    train(open_run(two_stages(steps=2), tmp_path), console=silent(), quiet=True)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run = train(open_run(two_stages(steps=2), tmp_path), console=silent(), quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [result.name for result in run.results] == ["align", "instruct"]
    assert store.read_state(store.latest(tmp_path))["finished"]
