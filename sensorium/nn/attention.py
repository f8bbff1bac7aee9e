"""Multi-head attention with grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.mask import Layout
from sensorium.nn.norm import Norm
from sensorium.nn.part import Part
from sensorium.nn.rope import rotate
from sensorium.nn.wide import slow

if TYPE_CHECKING:
    from sensorium.infer.cache import LayerCache


SHORT = 1024  # longest document for which the score matrix is written out


class Projections(nn.Module):
    """What of an attention layer acts on every token by itself: queries, keys, values, output.

    Of a route that is narrower than the stream they read its first columns, and write zeros to the others.
    """

    def __init__(
        self, config: Attention.Config, width: int, memory_width: int | None = None, stream: int | None = None
    ) -> None:
        super().__init__()
        self.width, self.stream = width, stream or width
        heads, kv_heads = config.heads, config.kv_heads or config.heads
        head_width, source = config.width_of_head(width), memory_width or width
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.q = nn.Linear(width, heads * head_width, bias=config.bias)
        key_bias = config.bias if config.key_bias is None else config.key_bias
        self.k = nn.Linear(source, kv_heads * head_width, bias=key_bias)
        self.v = nn.Linear(source, kv_heads * head_width, bias=config.bias)
        self.inner_norm = config.inner_norm.build(heads * head_width) if config.inner_norm is not None else None
        self.o = nn.Linear(heads * head_width, width, bias=out_bias)
        self.copies = config.start == "copy"
        if self.copies:
            start_copying(self.v, self.o)

    def entering(self, linear: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Queries, keys or values of a stream (N, D)."""
        return linear if self.width == self.stream else lambda x: linear(x[:, : self.width])

    def leaving(self, mixed: Tensor) -> Tensor:
        """mixed (N, heads * head width) -> (N, D)."""
        mixed = self.o(mixed if self.inner_norm is None else self.inner_norm(mixed))
        return F.pad(mixed, (0, self.stream - self.width)) if self.width < self.stream else mixed


@torch.no_grad()
def start_copying(v: nn.Linear, o: nn.Linear) -> None:
    """Values and output as the identity, as far as their shapes go: a reader at first adds the mean of what it reads.

    Between random ones nothing of what a gate lets through is yet of use, so a gate that starts at zero has no reason
    to open. That trained layers look like this: Trockman and Kolter 2023, arXiv 2305.09828.
    """
    for linear in (v, o):
        nn.init.eye_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


class Attention(Projections, Part):
    """Self-attention over packed documents (Vaswani et al. 2017; grouped keys: Ainslie et al. 2023).

    With `memory_width` it is cross-attention: keys and values come from a memory of that width (`read`).

    kv_heads    None: as many as heads; fewer: grouped-query attention
    head_width  None: width / heads
    out_bias, key_bias  of the output, of the keys; None: as `bias`. Softmax cancels a bias of keys (BEiT has none)
    qk_norm     normalise queries and keys per head: RMSNorm where it is True (Qwen3), or the norm that is given
                (LayerNorm: Chameleon section 2.3, Persimmon)
    qk_norm_by_head  each head's norm has weights of its own (Chameleon, released)
    scaled      scores are divided by the root of the head width; T5's are not (its initial weights are smaller instead)
    scale_width  the width whose root divides them, where it is not the head's own (Gemma 2's 27 B: width / heads)
    soft_cap    scores stay within plus and minus this: cap * tanh(score / cap) (Bello et al. 2016, arXiv 1611.09940,
                3.3; Gemma 2, arXiv 2408.00118, section 2). The score matrix is then always written out
    inner_norm  normalise what was read of all heads together, before the output layer (Magneto's sub-LayerNorm, Wang et
                al. 2022, arXiv 2210.06423, section 3)
    start       copy: values and output begin as the identity, so that what is read arrives as it is
    """

    class Config(Value):
        heads: int
        kv_heads: int | None = None
        head_width: int | None = None
        bias: bool = False
        out_bias: bool | None = None
        key_bias: bool | None = None
        qk_norm: bool | Norm.Config = False
        qk_norm_by_head: bool = False
        scaled: bool = True
        scale_width: float | None = Field(default=None, gt=0)
        soft_cap: float | None = Field(default=None, gt=0)
        inner_norm: Norm.Config | None = None
        start: Literal["random", "copy"] = "random"

        def width_of_head(self, width: int) -> int:
            return self.head_width or width // self.heads

    def __init__(self, config: Config, width: int, memory_width: int | None = None) -> None:
        self._check(config, width)
        super().__init__(config, width, memory_width)
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_width = config.width_of_head(width)
        self.scale = None if config.scaled else self.head_width**0.5  # undoes what `attend` divides by
        if config.scaled and config.scale_width is not None:
            self.scale = (self.head_width / config.scale_width) ** 0.5
        self.soft_cap = config.soft_cap
        norm = config.qk_norm if isinstance(config.qk_norm, Norm.Config) else Norm.Config()
        rows = (self.heads, self.kv_heads) if config.qk_norm_by_head else (None, None)
        self.q_norm = norm.build(self.head_width, rows[0]) if config.qk_norm else None
        self.k_norm = norm.build(self.head_width, rows[1]) if config.qk_norm else None

    @staticmethod
    def _check(config: Config, width: int) -> None:
        heads, kv_heads = config.heads, config.kv_heads or config.heads
        if heads % kv_heads:
            raise ValueError(f"{heads} heads cannot share {kv_heads} key/value heads evenly")
        if config.head_width is None and width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads: give head_width")

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        others: Sequence[Projections] = (),
    ) -> Tensor:
        """x (T, D) -> (T, D). rope: cos and signed sin (T, head width) in x's dtype.

        others  the projections of further routes: a token is projected by those of its route, and all attend jointly
        """
        every: list[Any] = [self, *others]
        q = routed([one.entering(one.q) for one in every], x, layout).view(-1, self.heads, self.head_width)
        k = routed([one.entering(one.k) for one in every], x, layout).view(-1, self.kv_heads, self.head_width)
        v = routed([one.entering(one.v) for one in every], x, layout).view(-1, self.kv_heads, self.head_width)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.scale is not None:
            q = q * self.scale
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            mixed = cache.attend(q, k, v, layout, self.soft_cap)
        else:
            mixed = attend_own(q, k, v, layout, self.soft_cap)
        return routed([one.leaving for one in every], mixed.flatten(1), layout)

    def read(self, x: Tensor, memory: Tensor, layout: Layout, cache: LayerCache | None = None) -> Tensor:
        """Cross-attention: x (T, D) reads memory (M, memory width) where layout.memory allows it -> (T, D).

        A token that may read nothing gets nothing from the values: the output layer's bias, if it has one.
        """
        q = self.q(x).view(-1, self.heads, self.head_width)
        k = self.k(memory).view(-1, self.kv_heads, self.head_width)
        v = self.v(memory).view(-1, self.kv_heads, self.head_width)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.scale is not None:
            q = q * self.scale
        if cache is not None:
            mixed = cache.read(q, k, v, layout, self.soft_cap)
        else:
            mixed = read_memory(q, k, v, layout, self.soft_cap)
        return self.leaving(mixed.flatten(1))


def attend_own(q: Tensor, k: Tensor, v: Tensor, layout: Layout, cap: float | None = None) -> Tensor:
    """Tokens of packed documents attend to each other: q (T, H, W), k and v (T, G, W) -> (T, H, W)."""
    if layout.parts and layout.bias is None:
        return layout.join(
            [attend(part.take(q), part.take(k), part.take(v), part.mask, part.causal, cap) for part in layout.parts]
        )
    mask, causal = (layout.mask, layout.causal) if layout.bias is None else (layout.bias, False)
    return layout.pack(attend(layout.pad(q), layout.pad(k), layout.pad(v), mask, causal, cap))


def read_memory(q: Tensor, k: Tensor, v: Tensor, layout: Layout, cap: float | None = None) -> Tensor:
    """q (T, H, W), k and v (M, G, W) -> (T, H, W); zero for tokens that read nothing."""
    memory = layout.memory
    if memory is None:
        return q * 0.0 + (k.sum() + v.sum())  # nothing is read; k and v are empty, and all stay in the graph
    if layout.parts:
        every = [(part, part.memory) for part in layout.parts if part.memory is not None]
        mixed = layout.join(
            [attend(part.take(q), k[own.rows], v[own.rows], own.mask, False, cap) for part, own in every]
        )
    else:
        mixed = layout.pack(attend(layout.pad(q), k[memory.rows], v[memory.rows], memory.mask, False, cap))
    return mixed if memory.sees is None else mixed * memory.sees[:, None, None].to(mixed.dtype)


def routed(modules: Sequence[Callable[[Tensor], Tensor]], x: Tensor, layout: Layout) -> Tensor:
    """x (T, ...) through the module of each token's route.

    Without routes in the layout all take the first; the others are run on no token, so that they have a gradient.
    """
    if len(modules) == 1:
        return modules[0](x)
    if layout.routes is None:
        y = modules[0](x)
        return y if not torch.is_grad_enabled() else y + sum(module(x[:0]).sum() for module in modules[1:])
    routes = layout.routes
    if len(routes.sizes) > len(modules):
        raise ValueError(f"a token takes route {len(routes.sizes) - 1}, the block has {len(modules)} routes")
    parts = x.index_select(0, routes.order).split([*routes.sizes, *[0] * (len(modules) - len(routes.sizes))])
    return torch.cat([module(part) for module, part in zip(modules, parts)]).index_select(0, routes.inverse)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, cap: float | None = None
) -> Tensor:  # fmt: skip
    """q (B, L, H, W), k and v (B, S, G, W) with H a multiple of G -> (B, L, H, W).

    mask  (B or 1, 1, L, S) bool, True where attention is allowed; or (B or 1, H, L, S) numbers to add to the scores
    cap   the scores are softly held within it, before the mask

    On CPU, torch's flash kernel is slow for short documents in bf16 (its backward pass five times), so there the
    scores are two plain products as long as they stay small; without an instruction for bf16 all of it is in float32.
    """
    if slow(q):
        mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
        return attend(q.float(), k.float(), v.float(), mask, causal, cap).to(q.dtype)
    if cap is not None:
        return _attend_by_products(q, k, v, mask, causal, cap)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[1] > 1 and k.shape[1] <= SHORT:
        return _attend_by_products(q, k, v, mask, causal)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def _attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, cap: float | None = None
) -> Tensor:  # fmt: skip
    batch, rows, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    groups = heads // kv_heads
    # heads that share keys become extra query rows, so keys and values are never repeated
    q = (q * width**-0.5).view(batch, rows, kv_heads, groups, width).permute(0, 2, 3, 1, 4)
    scores = q.reshape(batch * kv_heads, groups * rows, width) @ k.permute(0, 2, 3, 1).reshape(-1, width, keys)
    scores = scores.view(batch, kv_heads, groups, rows, keys)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if causal:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril()[None, None]
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.unflatten(1, (kv_heads, groups))
    elif mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill_(~mask, float("-inf"))
        scores = scores + bias[:, :, None]
    share = scores.softmax(-1).view(batch * kv_heads, groups * rows, keys)
    mixed = share @ v.transpose(1, 2).reshape(-1, keys, width)
    return mixed.view(batch, kv_heads, groups, rows, width).permute(0, 3, 1, 2, 4).reshape(batch, rows, heads, width)
