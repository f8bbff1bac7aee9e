"""Two processes train what one trains: the same steps, losses and weights, from any checkpoint, and no wait for ever.

The processes are started by torchrun, once for this file: they do everything in distributed_training.py that follows.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import distributed_training as program
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Pictures, tiny_model, tiny_recipe, tiny_stage

from sensorium.errors import UserError
from sensorium.render import Renderer, Template
from sensorium.sequence import Item
from sensorium.tokenizer import Tokenizer
from sensorium.train import checkpoint as store
from sensorium.train.loader import Batches, Feed
from sensorium.train.log import read_log
from sensorium.train.parallel import ALONE, check_shares
from sensorium.train.trainer import open_run, train

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("distributed_training.py")
LIMIT = 180  # seconds; two processes that wait for each other wait longer


def torchrun(*arguments, cache, check=True):
    """Two processes of a program, one thread each. One that deadlocks fails the test."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{PROGRAM.parent}",
        "SENSORIUM_CACHE": str(cache),
    }
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs and steps of one process and of two. `12` was begun by one and ended by two, `21` the other way round."""
    folder = tmp_path_factory.mktemp("parallel")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CACHE", str(folder / "cache"))
        program.steps(folder, ALONE)
        for case in ("full", "lora", "bf16", "clip"):
            program.run(case, folder / f"{case}1", ALONE)
        program.run("full", folder / "full12", ALONE, 4, 0)
        program.run("lora", folder / "lora12", ALONE, 8, 0)
        runs = ["full=full2", "lora=lora2", "bf16=bf162", "clip=clip2", "full=full12", "lora=lora12"]
        stops = ["full:4:1=full21", "lora:8:1=lora21", "clip:4:0=clip21"]
        torchrun(str(PROGRAM), str(folder), "steps", *runs, *stops, cache=folder / "cache")
        stopped = {name: store.read_state(store.latest(folder / name)) for name in ("full21", "lora21")}
        (folder / "stopped.json").write_text(json.dumps(stopped))
        for case in ("full", "lora", "clip"):
            program.run(case, folder / f"{case}21", ALONE)
    torch.set_num_threads(threads)
    return folder


DESIGNS = ["embed", "memory", "routed", "towers", "stage 1", "frozen eye", "frozen reader"]


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_one_rank_reads_text_and_the_other_pictures_as_one_process_reads_both(folder, name):
    """Micro-batches of rank 0 are text alone; of rank 1 pictures, some with words to learn and some without."""
    one, two = (torch.load(folder / f"steps-{world}.pt", weights_only=True)[name] for world in (1, 2))
    assert set(one["report"]) == set(two["report"])
    for key, (total, count) in one["report"].items():
        assert two["report"][key][1] == count > 0
        assert two["report"][key][0] / count == pytest.approx(total / count, abs=1e-5)
    assert set(one["grads"]) == set(two["grads"])
    assert all(grad.abs().max() > 0 for key, grad in one["grads"].items() if "blocks.1.routes" not in key)
    for key, grad in one["grads"].items():
        torch.testing.assert_close(two["grads"][key], grad, atol=1e-5, rtol=1e-5, msg=key)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-5)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weight, atol=1e-5, rtol=1e-5, msg=key)


def curve(run, name="loss"):
    lines = read_log(run / "metrics.jsonl")
    assert [(line["stage_index"], line["step"]) for line in lines] == [(at, n + 1) for at in (0, 1) for n in range(5)]
    return [line[name] for line in lines]


def weights(run):
    return {path.stem: load_file(path) for path in sorted((store.latest(run) / "model").glob("*.safetensors"))}


def same_run(left, right, rel=1e-4):
    assert curve(right) == pytest.approx(curve(left), rel=rel)
    for name in ("tokens", "samples", "targets", "lr"):
        assert curve(right, name) == curve(left, name)


CONTINUED = [(f"{case}1", f"{case}{how}") for case in ("full", "lora", "clip") for how in ("2", "12", "21")]


@pytest.mark.slow
@pytest.mark.parametrize(("alone", "shared"), [pair for pair in CONTINUED if pair[1] != "clip12"])
def test_two_processes_and_a_change_of_their_number_give_the_curve_and_weights_of_one(folder, alone, shared):
    same_run(folder / alone, folder / shared)
    assert curve(folder / shared, "grad_norm") == pytest.approx(curve(folder / alone, "grad_norm"), rel=1e-4)
    one, two = weights(folder / alone), weights(folder / shared)
    assert list(one) == list(two)
    for part in one:
        for name, tensor in one[part].items():
            torch.testing.assert_close(two[part][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_in_bf16_the_curves_agree_to_its_precision(folder):
    same_run(folder / "bf161", folder / "bf162", rel=1e-3)
    assert weights(folder / "bf162")["backbone"]["backbone.norm.weight"].dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora2", "lora21", "lora12"])
def test_what_no_stage_trains_keeps_every_bit(folder, tmp_path, name):
    before = open_run(program.recipe("lora"), tmp_path / "run").model.state_dict()
    found = weights(folder / name)
    for part in ("encoders.image", "backbone"):
        assert all(torch.equal(tensor, before[key]) for key, tensor in found[part].items())
    assert all(tensor.abs().max() > 0 for tensor in found["backbone.lora"].values())


@pytest.mark.slow
def test_bad_rows_are_the_same_and_counted_once_whoever_finds_them(folder):
    """Rows 7 and 8 cannot be decoded, which one rank alone finds out."""
    (one,) = (json.loads((folder / f"full1.1.{rank}.json").read_text()) for rank in (0,))
    for rank in (0, 1):
        two = json.loads((folder / f"full2.2.{rank}.json").read_text())
        for left, right in zip(one["results"], two["results"], strict=True):
            assert {**left, "seconds": 0, "evaluations": 0} == {**right, "seconds": 0, "evaluations": 0}
            assert {7, 8} <= {row["row"] for row in right["bad"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_stage_is_asked_what_it_wants_to_know_by_the_leader_with_the_whole_model(folder, name):
    one = json.loads((folder / f"{name}1.1.0.json").read_text())["results"]
    two = store.read_state(store.latest(folder / f"{name}2"))["results"]
    assert [len(result["evaluations"]) for result in one] == [len(result["evaluations"]) for result in two] == [0, 1]
    left, right = one[1]["evaluations"][0], two[1]["evaluations"][0]
    assert right["score"] == pytest.approx(left["score"], abs=1e-5)
    assert left["score"] > 0.0


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_and_stops_all_at_the_same_step(folder):
    stopped = json.loads((folder / "stopped.json").read_text())
    for name, step, stage, stage_step in (("full21", 4, 0, 4), ("lora21", 8, 1, 3)):
        state = stopped[name]
        assert (state["step"], state["stage"], state["stage_step"], state["finished"]) == (
            step,
            stage,
            stage_step,
            False,
        )
        said = {json.loads((folder / f"{name}.2.{rank}.json").read_text())["stopped"] for rank in (0, 1)}
        assert len(said) == 1
        assert f"stopped at step {stage_step} of stage" in said.pop()


@pytest.mark.slow
def test_rows_and_sums_of_all_ranks(folder):
    every = torch.arange(15.0).view(5, 3)
    for found in [torch.load(folder / f"rows-{rank}.pt", weights_only=True) for rank in (0, 1)]:
        assert [len(part) for part in found["rows"]] == [2, 3]
        assert torch.equal(torch.cat(found["rows"]), every)
        assert found["sum"].tolist() == [2.0, 1.0]
    assert ALONE.gather_rows(every)[0] is every
    assert torch.equal(ALONE.sum(every), every)


def test_a_step_that_cannot_be_shared_is_refused_with_what_to_set(tmp_path):
    class Three:
        world = 3

    check_shares(tiny_recipe(tiny_stage(accumulate=6)), Three())
    with pytest.raises(UserError, match=r"takes 4 micro-batches a step, which 3 processes cannot share.*"
                       r"one\.accumulate=6 --set stages\.one\.tokens=171 --set stages\.one\.items=2"):  # fmt: skip
        check_shares(tiny_recipe(tiny_stage(accumulate=4)), Three())


# ---- the loader, without processes


class Talking:
    """Ranks that are threads."""

    def __init__(self, rank, board, barrier):
        self.rank, self.world, self.board, self.barrier = rank, len(board), board, barrier

    def gathered(self, value):
        self.board[self.rank] = value
        self.barrier.wait(20)
        found = list(self.board)
        self.barrier.wait(20)
        return found

    def any(self, flag):
        return [any(self.gathered(flag))]


def fed(world, stage, steps, position=0, bad=None):
    """(micro-batches, keys decoded) of each rank."""
    config, board, barrier = tiny_model(), [None] * world, threading.Barrier(world)
    results, threads = [None] * world, []

    def work(rank):
        decoded = []

        def load(kind, media):
            decoded.append(media.key())
            return Item(config.encoders[kind].transform(media.load()), media.shape(), media.key())

        renderer = Renderer(Tokenizer.bytes(), Template(), config.plan, load)
        ranks = Talking(rank, board, barrier) if world > 1 else ALONE
        feed = Feed(Batches(stage, renderer, 0, position, bad, ranks))
        try:
            results[rank] = [batch for _ in range(steps) for batch in feed.step()], decoded
        finally:
            feed.close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(results)
    return results


def outline(batch):
    keys = [item.key for item in batch.sequence.items["image"]]
    return batch.sequence.ids.tolist(), keys, batch.position, batch.samples, batch.bad


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("broken", [(), (5,), (2, 9, 10, 17, 23)])
def test_ranks_share_out_the_batches_of_one_process_whatever_breaks(world, broken):
    data = Pictures(count=26, unreadable=(3,), broken=broken, endless=(11,))
    stage = tiny_stage(data=data, accumulate=6, items=3, tokens=260)
    ((whole, _),) = fed(1, stage, 6)
    results = fed(world, stage, 6)
    for rank, (batches, _) in enumerate(results):
        assert [outline(batch) for batch in batches] == [outline(batch) for batch in whole]
        for number, batch in enumerate(batches):
            assert batch.mine == (number % world == rank)
            items = batch.sequence.items["image"]
            assert all(item.data is not None for item in items) if batch.mine else True
    again = fed(world, stage, 3, whole[17].position, whole[17].bad)
    assert [outline(batch) for batch in again[0][0]] == [outline(batch) for batch in whole[18:]]


def test_a_rank_decodes_its_own_pictures_and_the_one_that_ends_a_batch():
    stage = tiny_stage(data=Pictures(count=400), accumulate=8, items=6, tokens=2000)
    batches, decoded = fed(2, stage, 5)[1]
    built = len(set(decoded)) / 7  # 6 pictures of a batch, and the first of the next
    assert built <= len(batches) / 2 + 4  # what is built ahead
    assert (
        sum(item.data is not None for batch in batches if not batch.mine for item in batch.sequence.items["image"])
        <= 20
    )


# ---- the command


@pytest.mark.slow
def test_the_command_under_torchrun_trains_reports_and_refuses(tmp_path):
    out = tmp_path / "run"
    command = ["-m", "sensorium", "train", f"{PROGRAM}:command", "--out", str(out)]
    torchrun(*command, "--steps", "3", cache=tmp_path / "cache")
    lines = [(line["stage_index"], line["step"]) for line in read_log(out / "metrics.jsonl")]
    assert lines == [(at, step) for at in (0, 1) for step in (1, 2, 3)]
    assert json.loads((out / "report.json").read_text())["title"].startswith("Tiny")
    refused = torchrun(*command, "--fresh", "--set", "stages.align.accumulate=3", cache=tmp_path / "cache", check=False)
    assert refused.returncode != 0
    assert "takes 3 micro-batches a step, which 2 processes cannot share" in " ".join(
        (refused.stdout + refused.stderr).split()
    )


def test_one_process_makes_no_group(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    run = train(open_run(tiny_recipe(), tmp_path / "run"), quiet=True)
    assert run.ranks is ALONE
    assert not torch.distributed.is_initialized()
