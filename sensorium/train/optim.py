"""AdamW over fp32 master weights, with gradients collected in fp32, and their moving average."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import UserError
from sensorium.train.parallel import ALONE, Ranks, cut, local, sharded, spread
from sensorium.train.recipe import Stage


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """The factor on the peak rate at 0-based `step` of `steps`: linear warm-up, then the stage's schedule."""
    warm = math.ceil(round(stage.warmup * steps, 6))  # 0.07 x 100 is 7 steps, not 7.000000000000001
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    match stage.schedule:
        case "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            shape = 1 - done
        case "constant":
            return 1.0
    return stage.floor + (1 - stage.floor) * shape


class Optimizer:
    """The parameters that a stage trains, their fp32 masters, and AdamW on the masters.

    As soon as a parameter's gradient of a micro-batch is complete it is added to the master's fp32 gradient and freed.
    `step` clips, updates, and writes the masters back to the compute weights.

    On several ranks each has the masters of its pieces of the parameters: AdamW updates every number by itself, so
    only the norm of the gradient is common. Parameters that are not sharded have a master on every rank.

    Where the stage has an `ema`, the masters' moving average is kept beside them, in fp32 like them (a bf16 weight
    could not take steps as small as 1 - decay), and `settle` makes it the weights.
    """

    def __init__(self, model: nn.Module, stage: Stage, steps: int, ranks: Ranks = ALONE) -> None:
        self.stage, self.steps, self.ranks = stage, steps, ranks
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.masters = {name: _master(local(param)) for name, param in self.params.items()}
        self.averages = {name: master.detach().clone() for name, master in self.masters.items()} if stage.ema else {}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, master in self.masters.items():
            decay = stage.weight_decay if master.ndim >= 2 else 0.0  # norms and biases are not decayed
            groups.setdefault((stage.lr_of(name), decay), []).append(master)
        self.peaks = [rate for rate, _ in groups]
        self.adamw = torch.optim.AdamW(
            [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
            betas=stage.betas,
            fused=True,
        )
        self._hooks = [
            param.register_post_accumulate_grad_hook(_collector(self.masters[name]))
            for name, param in self.params.items()
        ]

    def step(self, index: int) -> dict[str, Any]:
        """Update at 0-based step `index`; returns the learning rate, by glob where the stage says it so, and the norm.

        A gradient that is not finite changes nothing: then the rate is 0.
        """
        norm = self._norm()
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        if not math.isfinite(norm):
            self._clear()
            return {"lr": self._rates(0.0), "grad_norm": norm}
        if self.stage.clip is not None and norm > self.stage.clip:
            torch._foreach_mul_(grads, self.stage.clip / norm)  # pyright: ignore[reportPrivateImportUsage]
        factor = learning_rate(self.stage, index, self.steps)
        for group, peak in zip(self.adamw.param_groups, self.peaks):
            group["lr"] = peak * factor
        self.adamw.step()
        self._clear()
        with torch.no_grad():
            self._average(index)
            for name, param in self.params.items():
                if param.dtype != torch.float32:
                    local(param).copy_(self.masters[name])
        return {"lr": self._rates(factor), "grad_norm": norm}

    def _average(self, index: int) -> None:
        if self.averages:
            decay = min(self.stage.ema or 0.0, (1 + index) / (10 + index))
            masters = [self.masters[name].detach() for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), masters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def settle(self) -> None:
        """When the stage is done: its average becomes its weights. Nothing where it keeps none."""
        for name, average in self.averages.items():
            self.masters[name].copy_(average)
            local(self.params[name]).copy_(average)

    def _norm(self) -> float:
        """Norm of the whole gradient, on all ranks; gradients of parameters that are not sharded are summed first."""
        whole, pieces = [], []
        for name, master in self.masters.items():
            if self.ranks.mesh is not None and not sharded(self.params[name]):
                whole.append(self.ranks.total(master))
            elif master.grad is not None:
                pieces.append(master.grad)
        norm = float(nn.utils.get_total_norm(pieces)) if pieces else 0.0
        if self.ranks.mesh is None:
            return norm
        (square,) = self.ranks.sums([norm**2])
        return math.sqrt(square + (float(nn.utils.get_total_norm(whole)) ** 2 if whole else 0.0))

    def _rates(self, factor: float) -> float | dict[str, float]:
        lr = self.stage.lr
        return {glob: rate * factor for glob, rate in lr.items()} if isinstance(lr, dict) else lr * factor

    def _clear(self) -> None:
        for master in self.masters.values():
            master.grad = None

    def close(self) -> None:
        """Remove the hooks, so that another stage can own the parameters."""
        for hook in self._hooks:
            hook.remove()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as flat named tensors, sharded like their parameters."""
        state = {}
        for name, master in self.masters.items():
            param = self.params[name]
            if param.dtype != torch.float32:
                state[f"master.{name}"] = spread(master.detach(), param)
            if name in self.averages:
                state[f"ema.{name}"] = spread(self.averages[name], param)
            for key, value in self.adamw.state.get(master, {}).items():
                state[f"{key}.{name}"] = spread(value.detach(), param)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave, each tensor whole. Raises UserError when it is the state of other parameters."""
        other = sorted({key.partition(".")[2] for key in state} - set(self.masters))
        if other:
            raise UserError(f"the optimizer state is of parameters that stage {self.stage.name!r} does not train: "
                            f"{', '.join(other[:4])}")  # fmt: skip
        with torch.no_grad():
            for key, value in state.items():
                kind, _, name = key.partition(".")
                value = cut(value, self.params[name])
                if kind == "master":
                    self.masters[name].copy_(value)
                elif kind == "ema":
                    self.averages[name].copy_(value)
                else:
                    self.adamw.state[self.masters[name]][kind] = value


def _master(param: Tensor) -> Tensor:
    """The fp32 tensor that AdamW updates: the parameter itself when it is fp32 already."""
    return param.detach().float().requires_grad_(True)


def _collector(master: Tensor):
    def collect(param: nn.Parameter) -> None:
        if param.grad is None:
            return
        grad = local(param.grad)
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)
        param.grad = None

    return collect
