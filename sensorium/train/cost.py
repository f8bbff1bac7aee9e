"""What one sample costs to train on: floating-point operations and bytes, counted without allocating anything.

The model lies on the meta device; one picture and some text run forward and backward through it as they would in
training, while the matrix products and the tensors kept for the backward pass are counted. So frozen parts, gradients
that only pass through, adapters and the head at loss tokens alone are all counted as what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sensorium.mask import Layout
from sensorium.models.fused import Fused
from sensorium.sequence import Item
from sensorium.train.recipe import Stage

TEXT_TOKENS = 128
LOSS_TOKENS = 64
WEIGHT, MASTER, GRADIENT, MOMENTS = 2, 4, 4, 8  # bytes per parameter; AdamW keeps two fp32 moments

ASSUMPTIONS = (
    f"a sample is one picture of the native size and {TEXT_TOKENS} text tokens, {LOSS_TOKENS} of them with loss",
    "FLOPs are those of matrix products and convolutions, 2 per multiply-add; attention counts the whole score "
    "matrix, the head runs at tokens with loss alone",
    "a frozen encoder runs once per picture, and its features are kept on disk: it is not part of a training step",
    "memory: weights and activations in bf16, fp32 masters, gradients and two AdamW moments for what trains; "
    "activations are those of one micro-batch (the stage's token budget, at least one sample), attention scores "
    "recomputed by the kernel",
)


@dataclass(frozen=True, slots=True)
class Flops:
    """Per sample. forward and backward are what a training step runs (recomputation included in backward)."""

    forward: int
    backward: int
    encode_once: int

    @property
    def training(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.masters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, slots=True)
class Cost:
    flops: Flops
    memory: Memory

    def to_json(self) -> dict[str, dict[str, int]]:
        flops = {**asdict(self.flops), "training": self.flops.training}
        return {"flops_per_sample": flops, "memory_bytes": {**asdict(self.memory), "total": self.memory.total}}


class _Kept:
    """Bytes that autograd keeps for the backward pass, those inside the backbone's blocks apart.

    Parameters are no activations, and neither are score matrices (square in their last two axes).
    """

    def __init__(self, model: nn.Module) -> None:
        self.outside = self.inside = 0
        self._depth = 0
        self._seen: dict[int, Any] = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        scores = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2]
        if storage._cdata not in self._seen and not scores:
            self._seen[storage._cdata] = storage  # held, so that its address is not given to another
            if self._depth:
                self.inside += storage.nbytes()
            else:
                self.outside += storage.nbytes()
        return tensor

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Meanwhile, what autograd keeps is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    @contextmanager
    def blocks(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Meanwhile, what `blocks` keep is counted as inside."""
        hooks: list[Any] = []
        for block in blocks:
            hooks.append(block.register_forward_pre_hook(lambda *_: self._move(1)))
            hooks.append(block.register_forward_hook(lambda *_: self._move(-1)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _move(self, by: int) -> None:
        self._depth += by


def stage_cost(model: Fused, stage: Stage, items: dict[str, Item]) -> Cost:
    """Cost of one stage.

    model  on the meta device, the stage's adapters added; its `requires_grad` flags are set here
    items  by kind: the item that a sample holds, its data on the meta device
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    kept = _Kept(model)
    encode, encoded = _encode(model, items, kept)
    length = TEXT_TOKENS
    with _counting() as forward, kept.hooks():
        rows = [model.connectors[kind](features) for kind, features in encoded.items()]
        ids = torch.zeros(TEXT_TOKENS, dtype=torch.long, device="meta")
        x = torch.cat([*rows, model.backbone.embed_tokens(ids)])
        length = len(x)
    with _counting() as blocks, kept.hooks(), kept.blocks(model.backbone.blocks):
        hidden = model.backbone(x, _causal(length))
    with _counting() as head, kept.hooks():
        logits = model.backbone.logits(hidden[-LOSS_TOKENS:]).float()
        target = torch.zeros(LOSS_TOKENS, dtype=torch.long, device="meta")
        loss = nn.functional.cross_entropy(logits, target)
    with _counting() as backward:
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)

    learns = any(p.requires_grad for p in model.encoders.parameters())
    each = encode if learns else 0
    again = blocks.get_total_flops() if stage.checkpointing and loss.requires_grad else 0
    flops = Flops(
        forward=each + sum(part.get_total_flops() for part in (forward, blocks, head)),
        backward=backward.get_total_flops() + again,
        encode_once=0 if learns else encode,
    )
    activations = kept.outside + kept.inside
    if stage.checkpointing:  # the inputs of all blocks, and one block at a time in full
        depth = len(model.backbone.blocks)
        activations = kept.outside + kept.inside // max(1, depth) + depth * length * x.shape[-1] * x.element_size()
    return Cost(flops, _memory(model, round(activations * max(1.0, stage.tokens / length))))


def _encode(model: Fused, items: dict[str, Item], kept: _Kept) -> tuple[int, dict[str, Any]]:
    """FLOPs of the encoders' forward pass, and their features."""
    features = {}
    with _counting() as counter, kept.hooks():
        for kind, encoder in model.encoders.items():
            features[kind] = encoder([items[kind]])
    return counter.get_total_flops(), features


def _memory(model: nn.Module, activations: int) -> Memory:
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(weights * WEIGHT, trained * MASTER, trained * GRADIENT, trained * MOMENTS, activations)


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _causal(length: int) -> Layout:
    """One document of `length` tokens on the meta device."""
    rows = torch.arange(length, device="meta").view(1, length)
    position = torch.zeros(length, 3, dtype=torch.long, device="meta")
    return Layout(rows, None, None, True, position, lengths=[length])
