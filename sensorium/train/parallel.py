"""Training on several processes: which one this is, how a model is split over them, and all that they tell each other.

One process is rank 0 of a world of 1: nothing here then exchanges, copies or rounds anything. Under torchrun the
parameters are sharded with FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, arXiv 2304.11277), and every
rank takes its share of the micro-batches of a step. Every collective of training starts here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sensorium.errors import UserError
from sensorium.models.wiring import Wiring
from sensorium.nn.block import Block
from sensorium.train.recipe import Recipe

if TYPE_CHECKING:  # they cost a third of a second to import, which several processes pay and one does not
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

SETTLE_S = 0.2
"""Seconds in which threads of a process group let go of tensors; they need microseconds once they may run."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together. `mesh` is None when it is alone.

    What is exchanged are numbers and small values, on the CPU; tensors of the model travel through FSDP.
    """

    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None

    @property
    def leader(self) -> bool:
        """The one that writes, logs and draws."""
        return self.rank == 0

    def sums(self, values: Iterable[float]) -> list[float]:
        """Each number summed over ranks, the same on all of them."""
        values = list(values)
        if self.mesh is None:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape, without gradients."""
        total = value.detach().clone()
        if self.mesh is not None:
            dist.all_reduce(total)
        return total

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """(N, ...) of this rank, N may differ -> those of all ranks in their order, without gradients."""
        if self.mesh is None:
            return [rows]
        counts = self.gathered(len(rows))
        padded = torch.cat([rows.detach(), rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts)]

    def total(self, master: Tensor) -> Tensor:
        """The gradient of a parameter that every rank keeps whole, summed over ranks in place."""
        if master.grad is None:  # this rank's micro-batches did not touch it, another's may have
            master.grad = torch.zeros_like(master)
        if self.mesh is not None:
            dist.all_reduce(master.grad)
        return master.grad

    def any(self, *flags: bool) -> list[bool]:
        """Each flag: whether it is up on any rank."""
        return [total > 0 for total in self.sums(map(float, flags))]

    def gathered(self, value: Any) -> list[Any]:
        """The value of every rank, in their order."""
        if self.mesh is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def said(self, value: Any) -> Any:
        """What the leader gives as `value`; what the others give does not count."""
        if self.mesh is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def merged(self, report: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """name -> (sum, count) over all ranks; a name that one rank alone reports counts as well."""
        total: dict[str, tuple[float, float]] = {}
        for one in self.gathered(dict(report)):
            for name, (value, count) in one.items():
                before = total.get(name, (0.0, 0.0))
                total[name] = (before[0] + value, before[1] + count)
        return total

    def wait(self) -> None:
        """Until every rank is here."""
        self.sums([0.0])

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader does it alone, then the others: what the first fetches, the others find."""
        if not self.leader:
            self.wait()
        yield
        if self.leader:
            self.wait()

    def leave(self) -> None:
        """Nothing more will be exchanged: each rank goes on, or ends, by itself."""
        if self.mesh is not None and dist.is_initialized():
            self.wait()
            _end_group()

    @torch.no_grad()
    def copy_leaders(self, module: nn.Module) -> None:
        """Parameters and buffers become the leader's. Before `shard`."""
        if self.mesh is not None:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.detach(), src=0)

    def shard(self, model: Wiring, whole: Iterable[nn.Parameter]) -> None:
        """Split the parameters over ranks; `whole` are those that every rank keeps.

        Frozen encoders belong in `whole`: a rank runs them only on pictures whose features nobody has computed yet, so
        running them must exchange nothing. Each block of the backbone is gathered when it runs, and let go: every rank
        runs it equally often. All else is gathered as one group from the forward pass to the end of the backward pass,
        since heads, tied embeddings and what objectives read are used outside the forward of their module, and since
        a stack that judges pairs (a Q-Former's) runs only on ranks that have any.
        Scalars (gates, temperatures) cannot be split: `Optimizer` sums their gradients.
        """
        if self.mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        kept = {*whole, *(param for param in model.parameters() if param.ndim == 0)}
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # the weights have the stage's dtype already
        backbone = getattr(model, "backbone", None)
        units = [part for part in backbone.modules() if isinstance(part, Block)] if backbone is not None else []
        for unit in (*units, model):
            fully_shard(
                unit, mesh=self.mesh, reshard_after_forward=unit is not model, mp_policy=policy, ignored_params=kept
            )
        for part in model.modules():
            if isinstance(part, FSDPModule):
                # losses are divided by counts over all ranks before the backward pass, so gradients are summed:
                # FSDP's default is their mean. As a plain sum, since gloo has no sum with a factor
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
                # a head is not run where a micro-batch has no target: this rank then adds zeros to what others found
                part.set_reduce_scatter_unused_params(True, recurse=False)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun started together; ALONE without torchrun, or when it started one.

    On CUDA each process takes the GPU of its local rank.
    """
    given = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if not given or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(f"training on several processes needs torch 2.13 or later, {torch.__version__} is installed")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # the leader evaluates and fits while others wait; a rank that dies is noticed by torchrun, not by a time-out
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    try:
        mesh = init_device_mesh("cuda" if cuda else "cpu", (dist.get_world_size(),))
        yield Ranks(dist.get_rank(), dist.get_world_size(), mesh)
    finally:
        if dist.is_initialized():
            _end_group()


def _end_group() -> None:
    """Leave the process group, and let its threads drop the last tensors they exchanged.

    For that a thread of gloo needs the interpreter's lock. A process that ended without ever releasing it would take
    the thread down in a destructor, which aborts the process (seen in half of the runs whose rank 1 ended first).
    """
    dist.destroy_process_group()
    time.sleep(SETTLE_S)


def check_shares(recipe: Recipe, ranks: Ranks) -> None:
    """Raise UserError for a stage whose micro-batches of a step cannot be shared out evenly.

    `Stage.accumulate` counts the micro-batches of a step over all ranks. So a recipe means the same on any number of
    processes, and a run can go on with another number of them.
    """
    for stage in recipe.stages:
        if stage.accumulate % ranks.world:
            wanted = -(-stage.accumulate // ranks.world) * ranks.world
            share = stage.accumulate / wanted
            items = f" --set stages.{stage.name}.items={max(1, round(stage.items * share))}" if stage.items else ""
            raise UserError(
                f"stage {stage.name!r} takes {stage.accumulate} micro-batches a step, which {ranks.world} processes "
                f"cannot share evenly: give it a multiple of {ranks.world}, for about the same step "
                f"--set stages.{stage.name}.accumulate={wanted} "
                f"--set stages.{stage.name}.tokens={max(1, round(stage.tokens * share))}{items}"
            )


def sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank has a piece of the tensor (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a sharded tensor, detached, in its own memory; a plain tensor detached."""
    with torch.no_grad():
        return tensor.to_local() if sharded(tensor) else tensor.detach()


def spread(piece: Tensor, like: Tensor) -> Tensor:
    """Pieces, one on each rank, as one tensor sharded like `like`; plain where `like` is, or for a scalar."""
    if not sharded(like) or piece.ndim == 0:
        return piece
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def cut(value: Tensor, like: Tensor) -> Tensor:
    """This rank's piece, in memory of its own, of a tensor that every rank holds: the inverse of `full`."""
    if not sharded(like) or value.ndim == 0:
        return value.clone()
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return local(distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)).clone()


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank; a collective. A plain tensor as it is."""
    return tensor.full_tensor() if sharded(tensor) else tensor
