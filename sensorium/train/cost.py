"""What one sample costs to train on: floating-point operations and bytes, counted without allocating anything.

The model lies on the meta device; one picture and some text run forward and backward through it as they would in
training, while the matrix products and the tensors kept for the backward pass are counted. So frozen parts, gradients
that only pass through, adapters and the head at loss tokens alone are all counted as what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sensorium.encoders.vit import ViT
from sensorium.mask import Layout, MemoryLayout, Routes
from sensorium.models.denoiser import Denoiser
from sensorium.models.dual import Dual
from sensorium.models.generator import Generator
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.nn.lora import add_lora
from sensorium.sequence import Item
from sensorium.train.recipe import Stage

TEXT_TOKENS = 128
LOSS_TOKENS = 64
WEIGHT, MASTER, GRADIENT, MOMENTS = 2, 4, 4, 8  # bytes per parameter; AdamW keeps two fp32 moments

ASSUMPTIONS = (
    f"a sample is one picture of the native size and {TEXT_TOKENS} text tokens, {LOSS_TOKENS} of them with loss; "
    "of a text tower with fewer positions, as many as it has",
    "FLOPs are those of matrix products and convolutions, 2 per multiply-add; attention counts the whole score "
    "matrix, the head runs at tokens with loss alone; passes in which a text tower reads pictures (BLIP-2's first "
    "stage) are not counted",
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

    def plus(self, after: Cost, before: Cost, times: int) -> Cost:
        """This cost and `times` the difference of two others."""

        def add(one: Any, two: Any, three: Any) -> dict[str, int]:
            return {key: value + times * (asdict(two)[key] - asdict(three)[key]) for key, value in asdict(one).items()}

        flops = Flops(**add(self.flops, after.flops, before.flops))
        return Cost(flops, Memory(**add(self.memory, after.memory, before.memory)))


def stage_costs(config: Wiring.Config, stages: Sequence[Stage], items: dict[str, Item], full: Wiring) -> list[Cost]:
    """Cost of every stage, in order; adapters of a stage stay for those after it.

    Every cost is linear in the depth of a stack whose blocks are treated alike. So instead of the whole model two
    shallow copies of each stack are run, and the rest is added up exactly.

    full  the whole model on the meta device, with the adapters of all stages
    """
    shallow = {
        name: min(depth, least) for name, (depth, least) in _stacks(config).items() if _alike(full, name, stages)
    }
    depths = {name: shallow.get(name, depth) for name, (depth, _) in _stacks(config).items()}
    costs = _run(_with_depths(config, depths), stages, items)
    total = list(costs)
    for name, (depth, _) in _stacks(config).items():
        missing = depth - depths[name]
        if missing:
            deeper = _run(_with_depths(config, {**depths, name: depths[name] + 1}), stages, items)
            total = [one.plus(after, before, missing) for one, after, before in zip(total, deeper, costs, strict=True)]
    return total


def _stacks(config: Wiring.Config) -> dict[str, tuple[int, int]]:
    """Stacks of blocks by name: depth, and the least depth whose first, middle and unread blocks are all there."""
    found: dict[str, tuple[int, int]] = {}
    backbone = getattr(config, "backbone", None)
    if backbone is not None:  # with cross-attention in some, blocks differ; a generator may read between them
        between = any(one.layers for one in getattr(config, "generators", {}).values())
        found["backbone"] = (backbone.depth, backbone.depth if backbone.block.cross or between else 2)
    for kind, encoder in config.encoders.items():
        if isinstance(encoder, ViT.Config):
            found[f"encoders.{kind}.backbone"] = (encoder.backbone.depth, 2 + encoder.drop_last)
    return found


def _with_depths(config: Wiring.Config, depths: dict[str, int]) -> Wiring.Config:
    encoders = dict(config.encoders)
    for kind, encoder in config.encoders.items():
        if isinstance(encoder, ViT.Config):
            stack = encoder.backbone.replace(depth=depths[f"encoders.{kind}.backbone"])
            encoders[kind] = encoder.replace(backbone=stack)
    if "backbone" not in depths:
        return config.replace(encoders=encoders)
    backbone = getattr(config, "backbone").replace(depth=depths["backbone"])  # noqa: B009
    return config.replace(encoders=encoders, backbone=backbone)


def _alike(model: nn.Module, stack: str, stages: Sequence[Stage]) -> bool:
    """Whether all blocks of a stack have the same parameters, and each stage trains the same of them."""
    blocks: dict[str, set[tuple[str, tuple[bool, ...]]]] = {}
    prefix = f"{stack}.blocks."
    for name, _ in model.named_parameters():
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            blocks.setdefault(index, set()).add((rest, tuple(stage.trains(name) for stage in stages)))
    kinds = list(blocks.values())
    return all(one == kinds[0] for one in kinds)


def _run(config: Wiring.Config, stages: Sequence[Stage], items: dict[str, Item]) -> list[Cost]:
    with blank():
        model = config.build().to(torch.bfloat16)
    costs = []
    for stage in stages:
        add_lora(model, stage.adapters)
        costs.append(stage_cost(model, stage, items))
    return costs


class _Kept:
    """Bytes that autograd keeps for the backward pass: outside the backbone's blocks, and in each block.

    Parameters are no activations, and neither are score matrices (square in their last two axes).
    """

    def __init__(self, model: nn.Module) -> None:
        self.outside = 0
        self.blocks: list[int] = []
        self._inside = False
        self._seen: dict[int, Any] = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Meanwhile, what autograd keeps is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        scores = tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2]
        if storage._cdata not in self._seen and not scores:
            self._seen[storage._cdata] = storage  # held, so that its address is not given to another
            if self._inside:
                self.blocks[-1] += storage.nbytes()
            else:
                self.outside += storage.nbytes()
        return tensor

    @contextmanager
    def apart(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Meanwhile, what each of `blocks` keeps is counted for itself."""
        hooks: list[Any] = []
        for block in blocks:
            hooks.append(block.register_forward_pre_hook(lambda *_: self._enter()))
            hooks.append(block.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self) -> None:
        self._inside = True
        self.blocks.append(0)

    def _leave(self) -> None:
        self._inside = False


def stage_cost(model: Wiring, stage: Stage, items: dict[str, Item]) -> Cost:
    """Cost of one stage.

    model  on the meta device, the stage's adapters added; its `requires_grad` flags are set here
    items  by kind: the item that a sample holds, its data on the meta device
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    kept = _Kept(model)
    encode, encoded = _encode(model, items, kept)
    if isinstance(model, Dual):
        ran = _towers(model, encoded, kept)
    elif isinstance(model, Denoiser):
        ran = _denoised(model, items, kept)
    elif model.config.reads_text:
        ran = _stream(model, encoded, items, kept)
    else:
        ran = _codecs(model, items, kept)
    loss = ran.loss
    with _counting() as backward:
        if loss.requires_grad:
            loss.backward()
    model.zero_grad(set_to_none=True)

    learns = any(p.requires_grad for p in model.encoders.parameters())
    each = encode if learns else 0
    again = ran.blocks if stage.checkpointing and loss.requires_grad else 0
    flops = Flops(
        forward=each + ran.outside + ran.blocks,
        backward=backward.get_total_flops() + again,
        encode_once=0 if learns else encode,
    )
    activations = kept.outside + sum(kept.blocks)
    if stage.checkpointing:  # the inputs of all blocks, and one block at a time in full
        stack = getattr(model, "backbone", None) or (model.stack if model.config.reads_text else None)
        inputs = len(kept.blocks) * ran.length * (stack.config.width if stack is not None else 0) * WEIGHT
        activations = kept.outside + inputs + max(kept.blocks, default=0)
    return Cost(flops, _memory(model, round(activations * max(1.0, stage.tokens / ran.length))))


@dataclass(slots=True)
class _Ran:
    """A forward pass behind the encoders: its loss, tokens in the text stack, FLOPs of its blocks and of the rest."""

    loss: Tensor
    length: int
    blocks: int
    outside: int


def _stream(model: Wiring, encoded: dict[str, Any], items: dict[str, Item], kept: _Kept) -> _Ran:
    """Items in the token stream, or beside it, and the loss of predicting tokens."""
    with _counting() as forward, kept.hooks():
        tokens = {kind: model.connectors[kind](features) for kind, features in encoded.items()}
        plans = {kind: model.config.plan(kind, items[kind].shape) for kind in tokens}
        coded = sum(
            model.config.num_tokens(kind, item.shape) for kind, item in items.items() if model.config.coded(kind)
        )
        ids = torch.zeros(TEXT_TOKENS + coded, dtype=torch.long, device="meta")
        inside = [rows for kind, rows in tokens.items() if plans[kind].mode != "memory"]
        beside = [rows for kind, rows in tokens.items() if plans[kind].mode == "memory"]
        x = torch.cat([*inside, model.stack.embed_tokens(ids)])
        memory = torch.cat(beside) if beside and model.config.speaks else None
        source = getattr(model, "source", None)
        if source is not None:  # of an encoder-decoder the tokens with loss are the decoder's
            x, said = x[:-LOSS_TOKENS], x[-LOSS_TOKENS:]
            memory, x = source(x, replace(_causal(len(x), 0, [0] * len(x)), causal=False)), said
        length = len(x)
        routes = [plans[kind].route or 0 for kind, rows in tokens.items() for _ in range(len(rows))]
        layout = _causal(length, 0 if memory is None else len(memory), [*routes, *[0] * len(ids)][-length:])
    with _counting() as blocks, kept.hooks(), kept.apart(model.stack.blocks):
        hidden = model.stack(x, layout, memory=memory)
    with _counting() as head, kept.hooks():
        logits = model.stack.logits(hidden[-(LOSS_TOKENS + coded) :]).float()
        target = torch.zeros(LOSS_TOKENS + coded, dtype=torch.long, device="meta")
        loss = nn.functional.cross_entropy(logits, target)
    outside = forward.get_total_flops() + head.get_total_flops()
    for kind, generator in model.generators.items():
        assert isinstance(generator, Generator)
        made = _generated(generator, kind, hidden, kept)
        loss, outside = loss + made.loss, outside + made.outside + made.blocks
    return _Ran(loss, length, blocks.get_total_flops(), outside)


def _generated(generator: Generator, kind: str, hidden: Tensor, kept: _Kept) -> _Ran:
    """One item that is to be made: the output connector, and the denoiser under what it gives."""
    with _counting() as told, kept.hooks():
        grid = generator.config.grid
        states = hidden[-grid.cols :].expand(grid.rows, -1, -1)[None]
        condition = generator.condition(states)[0]
    ran = _denoised(generator.denoiser, {kind: Item(None, generator.config.size)}, kept, condition)
    return replace(ran, loss=ran.loss + condition.float().square().mean(), outside=ran.outside + told.get_total_flops())


def _towers(model: Dual, encoded: dict[str, Any], kept: _Kept) -> _Ran:
    """Items and a text as long as the tower has positions for, each for itself, and their similarity."""
    length = min(TEXT_TOKENS, model.stack.config.positions or TEXT_TOKENS)
    with _counting() as forward, kept.hooks():
        image = torch.cat([model.vectors(kind, features) for kind, features in encoded.items()])
        x = model.stack.embed_tokens(torch.zeros(length, dtype=torch.long, device="meta"))
    with _counting() as blocks, kept.hooks(), kept.apart(model.stack.blocks):
        hidden = model.stack(x, _causal(length, 0, [0] * length))
    with _counting() as head, kept.hooks():
        loss = (image.float() @ model.head.text(hidden[-1:]).float().T).sum() * model.head.terms()[0]
    return _Ran(loss, length, blocks.get_total_flops(), forward.get_total_flops() + head.get_total_flops())


def _denoised(model: Denoiser, items: dict[str, Item], kept: _Kept, told: Tensor | None = None) -> _Ran:
    """The noised latent of one item, under a text as long as its stack has positions for (of labels, one), or under
    states (tokens, width) in place of a text's."""
    config = model.config
    kind, item = next(iter(items.items()))
    length = config.num_tokens(kind, item.shape)
    said = min(TEXT_TOKENS, config.text.positions or TEXT_TOKENS) if config.text.depth else 1
    reads = config.backbone.block.cross is not None
    with _counting() as forward, kept.hooks():
        if told is None:
            ids = torch.zeros(said, dtype=torch.long, device="meta")
            states = model.text(model.text.embed_tokens(ids), _causal(said, 0, []))
        else:
            states, said = told, len(told)
        asked = torch.ones(1, dtype=torch.bool, device="meta")
        asking = model.prompt(states.mean(0, keepdim=True), asked)
        number = torch.zeros(length, dtype=torch.long, device="meta")
        conditions = model.conditions(torch.zeros(1, device="meta"), asking, number)
        x = model.enter(torch.zeros(length, config.channels, dtype=asking.dtype, device="meta"))
    layout = replace(_causal(length, said if reads else 0, []), causal=False)
    with _counting() as blocks, kept.hooks(), kept.apart(model.backbone.blocks):
        hidden = model.backbone(x, layout, memory=states if reads else None, conditions=conditions)
    with _counting() as head, kept.hooks():
        loss = model.leave(hidden).float().square().mean()
    return _Ran(loss, length, blocks.get_total_flops(), forward.get_total_flops() + head.get_total_flops())


def _codecs(model: Wiring, items: dict[str, Item], kept: _Kept) -> _Ran:
    """Items through their codecs and back, and the error of what comes back."""
    length = sum(model.config.num_tokens(kind, item.shape) for kind, item in items.items() if kind in model.codecs)
    with _counting() as forward, kept.hooks():
        losses = []
        for kind in model.codecs:
            data = items[kind].data
            assert data is not None
            pixels = data.transpose(0, 1)[None].to(model.codec(kind).reference())
            losses.append((model.codec(kind)(pixels).pixels - pixels).float().square().mean())
    return _Ran(torch.stack(losses).sum(), length, 0, forward.get_total_flops())


def _encode(model: Wiring, items: dict[str, Item], kept: _Kept) -> tuple[int, dict[str, Any]]:
    """FLOPs of the encoders' forward pass, and their features."""
    features = {}
    with _counting() as counter, kept.hooks():
        for kind, encoder in model.encoders.items():
            features[kind] = encoder([items[kind]])
        for kind, item in items.items():
            if model.config.reads_text and kind in model.codecs and item.data is not None:
                codec = model.codec(kind)
                codec.encode(item.data.transpose(0, 1)[None].to(codec.reference()))
    return counter.get_total_flops(), features


def _memory(model: nn.Module, activations: int) -> Memory:
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(weights * WEIGHT, trained * MASTER, trained * GRADIENT, trained * MOMENTS, activations)


def _counting() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _causal(length: int, memory: int, routes: list[int]) -> Layout:
    """One document of `length` tokens on the meta device, which read `memory` tokens beside it."""
    rows = torch.arange(length, device="meta").view(1, length)
    position = torch.zeros(length, 3, dtype=torch.long, device="meta")
    layout = Layout(rows, None, None, True, position, lengths=[length])
    if memory:
        places = torch.arange(memory, device="meta")
        mask = torch.ones(1, 1, length, memory, dtype=torch.bool, device="meta")
        layout.memory = MemoryLayout(places[None], mask, None, places, places, [memory], "before")
    if any(routes):
        order = torch.arange(length, device="meta")
        layout.routes = Routes(order, order, torch.bincount(torch.tensor(routes)).tolist())
    return layout
