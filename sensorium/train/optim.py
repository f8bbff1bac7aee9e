"""AdamW over fp32 master weights, with gradients collected in fp32."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import UserError
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
    """

    def __init__(self, model: nn.Module, stage: Stage, steps: int) -> None:
        self.stage, self.steps = stage, steps
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.masters = {name: _master(param) for name, param in self.params.items()}
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
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = float(nn.utils.get_total_norm(grads)) if grads else 0.0
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
            for name, param in self.params.items():
                if param.data_ptr() != self.masters[name].data_ptr():
                    param.copy_(self.masters[name])
        return {"lr": self._rates(factor), "grad_norm": norm}

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
        """Everything a resumed run needs, as flat named tensors."""
        state = {}
        for name, master in self.masters.items():
            if master.data_ptr() != self.params[name].data_ptr():
                state[f"master.{name}"] = master.detach()
            for key, value in self.adamw.state.get(master, {}).items():
                state[f"{key}.{name}"] = value.detach()
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. Raises UserError when it is the state of other parameters."""
        other = sorted({key.partition(".")[2] for key in state} - set(self.masters))
        if other:
            raise UserError(f"the optimizer state is of parameters that stage {self.stage.name!r} does not train: "
                            f"{', '.join(other[:4])}")  # fmt: skip
        with torch.no_grad():
            for key, value in state.items():
                kind, _, name = key.partition(".")
                if kind == "master":
                    self.masters[name].copy_(value)
                else:
                    self.adamw.state[self.masters[name]][kind] = value.clone()


def _master(param: nn.Parameter) -> Tensor:
    """The fp32 tensor that AdamW updates: the parameter itself when it is fp32 already."""
    if param.dtype == torch.float32:
        return param.detach().requires_grad_(True)
    return param.detach().float().requires_grad_(True)


def _collector(master: Tensor):
    def collect(param: nn.Parameter) -> None:
        if param.grad is None:
            return
        if master.grad is None:
            master.grad = param.grad.float() if param.grad.dtype != torch.float32 else param.grad
        else:
            master.grad.add_(param.grad)
        param.grad = None

    return collect
