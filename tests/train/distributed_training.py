"""What test_parallel.py starts on two processes; also the recipes that it trains.

`torchrun --nproc-per-node 2 distributed_training.py FOLDER COMMAND ...`, each command either `steps` (one step of every
design) or CASE=NAME (a run of `recipe(CASE)` in FOLDER/NAME) or CASE:UNTIL:RANK=NAME (SIGTERM to a rank in a step).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_training import Noise, Pictures, tiny_model, tiny_recipe, tiny_stage

from sensorium.connectors.global_pool import GlobalPool
from sensorium.connectors.qformer import QFormer
from sensorium.encoders.vit import stack, vit
from sensorium.evaluate.result import TaskResult
from sensorium.evaluate.statistics import Evaluation
from sensorium.evaluate.task import EvaluationTask, Subject
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.lora import LoRA
from sensorium.objectives.base import Objective
from sensorium.objectives.contrastive import Contrastive
from sensorium.objectives.language import NextToken
from sensorium.objectives.matching import Matching
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer
from sensorium.train.build import build_model
from sensorium.train.optim import Optimizer
from sensorium.train.parallel import Ranks, full, joined, sharded, spread
from sensorium.train.recipe import Recipe
from sensorium.train.task import Task
from sensorium.train.trainer import Stopped, _StageLoop, open_run, train

# ---- one step of each design: rank 0 reads text alone, rank 1 pictures alone


def backbone(**changes: Any) -> Backbone.Config:
    plain = tiny_model().backbone
    return plain.replace(tied=False, block=plain.block.replace(**changes))


NEXT = (NextToken(),)
STAGE1 = (Contrastive(), Matching(), NextToken())
EYE = vit(width=16, depth=1, heads=2, patch=8, size=16)


def clip(bias: float | None = None) -> Dual.Config:
    towers = {"encoders": {"image": EYE}, "connectors": {"image": GlobalPool.Config(by="mean")}}
    text = stack(16, 2, 2, hidden=32).replace(vocab=259, positions=80)
    return Dual.Config(**towers, backbone=text, width=8, bias=bias)


def blip2() -> Dual.Config:
    queries = QFormer.Config(queries=3, vocab=260, width=16, depth=2, heads=2, hidden=24, positions=80)
    towers = {"encoders": {"image": EYE}, "connectors": {"image": queries}}
    return Dual.Config(**towers, width=8, text="first", rule=AttentionRule("full"), grounded=True, start=259)


def designs() -> dict[str, Wiring.Config]:
    cross = Cross.Config(
        attention=Attention.Config(heads=2), place="before", gated=True, ffn=FeedForward.Config(hidden=32)
    )
    return {
        "embed": tiny_model(backbone=backbone()),
        "memory": tiny_model(backbone=backbone(cross=cross), memory=("image",)),
        "routed": tiny_model(backbone=backbone(routes=2), routes={"image": 1}),
        "towers": clip(bias=-1.0),
        "stage 1": blip2(),
    }


OBJECTIVES: dict[str, tuple[Objective, ...]] = {"towers": (Contrastive(kind="sigmoid"),), "stage 1": STAGE1}


TEXT = [("What is red?", "an apple, or a rose"), ("Who?", "no")]


def documents(task: Task) -> list[Sequence]:
    """A micro-batch of text and one of pictures without a word to learn from, then the other way round."""
    written = [Sample((Segment("text", asked, "user"), Segment("text", said, "assistant"))) for asked, said in TEXT]
    pairs = enumerate(("a star", "the moon"))
    seen = [Sample((Segment("image", Noise(seed), "user"), Segment("text", said, "assistant"))) for seed, said in pairs]
    mute = [Sample((Segment("image", Noise(seed), "user"), Segment("text", "What?", "user"))) for seed in (3, 4)]
    packed = [[task.renderer.render(sample) for sample in group] for group in (written, mute, written[:1], seen)]
    return [Sequence.pack(group) for group in packed]


def step(
    config: Wiring.Config, ranks: Ranks, train: tuple[str, ...] = ("*",), objectives: tuple[Objective, ...] = NEXT
) -> dict[str, Any]:
    """Loss, gradients and weights after one step of two micro-batches on each of two ranks, or four on one."""
    stage = tiny_stage(train=train, accumulate=4, objectives=objectives)
    task = Task(tiny_recipe(stage, model=config), stage, build_model(tiny_recipe(model=config)), Tokenizer.bytes(),
                None, torch.device("cpu"), ranks)  # fmt: skip
    with torch.no_grad():
        for name, param in task.model.named_parameters():
            if param.ndim == 0 and "gate" in name:  # an open gate: a closed one hides what is behind it
                param.fill_(0.3 if "ffn" in name else 0.5)
    task.shard()
    optimizer = Optimizer(task.model, stage, 1, ranks)
    mine = documents(task)[ranks.rank :: ranks.world]
    counts = ranks.sums(task.counts(mine))
    report = ranks.merged(task.backward(mine, counts))
    grads = {}
    for name, master in optimizer.masters.items():
        param = optimizer.params[name]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        grads[name] = gathered(master.grad, param, ranks)
    norm = optimizer.step(0)["grad_norm"]
    weights = {name: full(tensor.detach()).clone() for name, tensor in task.model.state_dict().items()}
    return {"report": report, "grads": grads, "norm": norm, "weights": weights}


def gathered(grad: torch.Tensor, param: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The whole gradient: of the pieces of a sharded parameter, or the sum over ranks of one that each has whole."""
    if sharded(param):
        return full(spread(grad, param)).clone()
    return torch.tensor(ranks.sums(grad.flatten().tolist()), dtype=grad.dtype).view(grad.shape)


def steps(folder: Path, ranks: Ranks) -> None:
    """Every design; frozen encoders and a frozen language model with the embed design as well."""
    found = {name: step(config, ranks, objectives=OBJECTIVES.get(name, NEXT)) for name, config in designs().items()}
    found["frozen eye"] = step(designs()["embed"], ranks, ("connectors.*", "backbone.*"))
    found["frozen reader"] = step(designs()["memory"], ranks, ("connectors.*", "backbone.*.cross.*"))
    if ranks.leader:
        torch.save(found, folder / f"steps-{ranks.world}.pt")


def rows(folder: Path, ranks: Ranks) -> None:
    """Rows of every rank, two of the first and three of the second, and a sum."""
    own = torch.arange(15.0).view(5, 3)[[slice(0, 2), slice(2, 5)][ranks.rank]]
    found = {"rows": ranks.gather_rows(own), "sum": ranks.sum(torch.tensor([1.0, ranks.rank]))}
    torch.save(found, folder / f"rows-{ranks.rank}.pt")


# ---- runs


class Asked(EvaluationTask):
    """How sure the model is of the tokens that it expects."""

    name: str = "sure"
    split: str = "train"
    n: int = 2

    def run(self, subject: Subject, progress: Any = None) -> TaskResult:
        source = Pictures(count=self.n).build()
        logits = [subject.engine.logits(source[index])[1] for index in range(self.n)]
        return TaskResult([Evaluation.of(self.name, self.split, [float(one.softmax(-1).amax()) for one in logits])])


def recipe(case: str) -> Recipe:
    """Two stages, two micro-batches a step; rows that cannot be read, decoded or fitted."""
    data = Pictures(count=30, unreadable=(3,), broken=(7, 8), endless=(11,))
    common = {"data": data, "steps": 5, "accumulate": 2}
    if case == "bf16":
        common["precision"] = "bf16"
    if case == "clip":
        stage = {**common, "train": ("*",), "objectives": (Contrastive(),), "lr": 1e-3}
        return tiny_recipe(tiny_stage("first", **stage), tiny_stage("second", **stage), model=clip())
    second: dict[str, Any] = {"train": ("connectors.*", "backbone.*")}
    if case == "lora":
        adapters = {"backbone.blocks.*.attention.q": LoRA(rank=3)}
        second = {"train": ("connectors.*", "*.lora_*"), "adapters": adapters, "checkpointing": True}
    second["evaluations"] = (Asked(),)
    return tiny_recipe(tiny_stage("align", **common), tiny_stage("instruct", **common, **second))


def command(size: str = "tiny") -> Recipe:
    """For `sensorium train distributed_training.py:command`."""
    return recipe("full")


def run(case: str, folder: Path, ranks: Ranks, until: int | None = None, signalled: int | None = None) -> None:
    """Train to the end, or until all are told to stop at a step because `signalled` was."""
    plain = _StageLoop._step

    def stepped(self: _StageLoop, *args: Any) -> Any:
        values = plain(self, *args)
        if until is not None and self.run_.step + 1 == until and ranks.rank == signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    _StageLoop._step = stepped  # type: ignore[method-assign]
    try:
        result = train(open_run(recipe(case), folder, ranks=ranks), quiet=True)
        outcome = {"finished": result.finished, "results": [one.to_json() for one in result.results]}
    except Stopped as stopped:
        outcome = {"stopped": str(stopped)}
    finally:
        _StageLoop._step = plain  # type: ignore[method-assign]
    folder.with_suffix(f".{ranks.world}.{ranks.rank}.json").write_text(json.dumps(outcome))


def main(folder: str, *commands: str) -> None:
    torch.set_num_threads(1)
    with joined() as ranks:
        for command in commands:
            if command == "steps":
                steps(Path(folder), ranks)
                rows(Path(folder), ranks)
                continue
            what, _, name = command.partition("=")
            case, *stop = what.split(":")
            until, signalled = (int(stop[0]), int(stop[1])) if stop else (None, None)
            run(case, Path(folder) / name, ranks, until, signalled)


if __name__ == "__main__":
    import distributed_training  # by its name: checkpoints say which module a part of a recipe is from

    distributed_training.main(*sys.argv[1:])
