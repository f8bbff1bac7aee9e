"""Multi-head attention with grouped keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part
from sensorium.nn.rope import rotate

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache


SHORT = 1024  # longest document for which the score matrix is written out


class Attention(Part):
    """Self-attention over packed documents (Vaswani et al. 2017; grouped keys: Ainslie et al. 2023).

    kv_heads    None: as many as heads; fewer: grouped-query attention
    head_width  None: width / heads
    qk_norm     normalise queries and keys per head (Chameleon section 2.3, Qwen3)
    """

    class Config(Value):
        heads: int
        kv_heads: int | None = None
        head_width: int | None = None
        bias: bool = False
        out_bias: bool | None = None
        qk_norm: bool = False

        def width_of_head(self, width: int) -> int:
            return self.head_width or width // self.heads

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if config.head_width is None and width % config.heads:
            raise ValueError(f"width {width} is not divisible by {config.heads} heads: give head_width")
        self.head_width = config.head_width or width // config.heads
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.q = nn.Linear(width, self.heads * self.head_width, bias=config.bias)
        self.k = nn.Linear(width, self.kv_heads * self.head_width, bias=config.bias)
        self.v = nn.Linear(width, self.kv_heads * self.head_width, bias=config.bias)
        self.o = nn.Linear(self.heads * self.head_width, width, bias=out_bias)
        norm = Norm.Config()
        self.q_norm = norm.build(self.head_width) if config.qk_norm else None
        self.k_norm = norm.build(self.head_width) if config.qk_norm else None

    def forward(
        self, x: Tensor, layout: Layout, rope: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """x (T, D) -> (T, D). rope: cos and signed sin (T, head width) in x's dtype."""
        q = self.q(x).view(-1, self.heads, self.head_width)
        k = self.k(x).view(-1, self.kv_heads, self.head_width)
        v = self.v(x).view(-1, self.kv_heads, self.head_width)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            mixed = cache.attend(q, k, v, layout)
        else:
            mixed = layout.pack(attend(layout.pad(q), layout.pad(k), layout.pad(v), layout.mask, layout.causal))
        return self.o(mixed.flatten(1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """q (B, L, H, W), k and v (B, S, G, W) with H a multiple of G; mask (B or 1, 1, L, S) bool -> (B, L, H, W).

    On CPU, torch's flash kernel is slow for short documents in bf16 (its backward pass five times), so there the
    scores are two plain products as long as they stay small.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[1] > 1 and k.shape[1] <= SHORT:
        return _attend_by_products(q, k, v, mask, causal)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    batch, rows, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    groups = heads // kv_heads
    # heads that share keys become extra query rows, so keys and values are never repeated
    q = (q * width**-0.5).view(batch, rows, kv_heads, groups, width).permute(0, 2, 3, 1, 4)
    scores = q.reshape(batch * kv_heads, groups * rows, width) @ k.permute(0, 2, 3, 1).reshape(-1, width, keys)
    scores = scores.view(batch, kv_heads, groups, rows, keys)
    if causal:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril()[None, None]
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill_(~mask, float("-inf"))
        scores = scores + bias[:, :, None]
    share = scores.softmax(-1).view(batch * kv_heads, groups * rows, keys)
    mixed = share @ v.transpose(1, 2).reshape(-1, keys, width)
    return mixed.view(batch, kv_heads, groups, rows, width).permute(0, 3, 1, 2, 4).reshape(batch, rows, heads, width)
