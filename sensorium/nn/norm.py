"""Normalisation layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class Norm(Part):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis. x: (..., D) -> (..., D).

    affine  scaled (and shifted, in a LayerNorm) by learned numbers; otherwise whatever comes after does that (adaLN)
    zero_centered  the scale is 1 + weight, which starts at zero, so that weight decay pulls it towards 1 (Gemma)
    """

    class Config(Value):
        kind: Literal["rms", "layer"] = "rms"
        eps: float = 1e-5
        affine: bool = True
        zero_centered: bool = False

    def __init__(self, config: Config, width: int, heads: int | None = None) -> None:
        """heads: x is (..., heads, D), and each of them has weights of its own; None: there is one set."""
        super().__init__()
        shape = (width,) if heads is None else (heads, width)
        self.eps, self.width = config.eps, width
        self.layer = config.kind == "layer"
        start = torch.zeros(shape) if config.zero_centered else torch.ones(shape)
        self.weight = nn.Parameter(start) if config.affine else None
        self.zero_centered = config.zero_centered
        self.bias = nn.Parameter(torch.zeros(shape)) if config.affine and self.layer else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            normed = F.layer_norm if self.layer else F.rms_norm
            return normed(x, (self.width,), eps=self.eps)
        weight = self.weight.float() + 1 if self.zero_centered else self.weight
        if weight.dim() > 1:
            return self._by_head(x, weight)
        if self.bias is not None:
            return F.layer_norm(x, weight.shape, weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if x.device.type == "cpu":
            return _RMSNorm.apply(x, weight, self.eps)
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps)

    def _by_head(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = (F.layer_norm if self.layer else F.rms_norm)(x, (self.width,), eps=self.eps) * weight.to(x.dtype)
        return normed if self.bias is None else normed + self.bias.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """torch has no fused RMSNorm on CPU; its composite runs about six passes forward and ten back. This runs three
    and five, and keeps only x and one number per row for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale.to(x.dtype)).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0]
        small = scale.to(x.dtype)
        unit = x * small
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * unit).flatten(0, -2).sum(0, dtype=torch.float32).to(weight.dtype)
        inner = grad * weight.to(x.dtype)
        mean = (inner * unit).sum(-1, keepdim=True, dtype=torch.float32).div_(x.shape[-1])
        return inner.addcmul_(unit, mean.to(x.dtype), value=-1).mul_(small), d_weight, None
