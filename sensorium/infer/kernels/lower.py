"""A Backbone as the list of operations that step.c knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sensorium.infer.kernels.layout import (
    ACTIVATIONS,
    ADD,
    ATTEND,
    CAP,
    GATED,
    HEADS,
    LINEAR,
    NORM,
    OUT,
    STORE,
    CNorm,
    COp,
    CPart,
    Pointers,
    Unsupported,
)
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm


class Lowered:
    """ops, and what is needed to run them.

    x        register of the states, which holds the result too
    floats   of all registers, for one row
    widest   input of a product
    """

    def __init__(self) -> None:
        self.ops: list[COp] = []
        self.pointers = Pointers()
        self.floats = 0
        self.widest = 1

    def register(self, width: int) -> int:
        start = self.floats
        self.floats += width
        return start

    def norm(self, norm: Norm, name: str, source: int, to: int, **more: Any) -> None:
        self.widest = max(self.widest, norm.width)
        told = self.pointers.norm(norm, name)
        self.ops.append(COp(kind=NORM, width=norm.width, from_=source, to=to, norm=told, **more))

    def linear(
        self, parts: Sequence[tuple[nn.Module, str, int]], source: int, norm: tuple[Norm | None, str] = (None, ""),
        activation: str = "none", **more: Any,
    ) -> None:  # fmt: skip
        """parts: (layer, its name, register of its output); all read `source`, after `norm`."""
        told = [self._part(*part) for part in parts]
        width = _matrix(parts[0][0], parts[0][1]).shape[1]
        self.widest = max(self.widest, width)
        more = {"factor": 1.0, "out": STORE, **more}
        read = self.pointers.norm(*norm)
        self.ops.append(
            COp(
                kind=LINEAR, width=width, from_=source, norm=read, parts=len(parts), part=(CPart * 3)(*told),
                activation=ACTIVATIONS.index(activation), **more,
            )
        )  # fmt: skip

    def _part(self, layer: nn.Module, name: str, to: int) -> CPart:
        weight = _matrix(layer, name)
        told = CPart(outputs=weight.shape[0], to=to)
        told.weight, told.type = self.pointers(weight, f"{name}.weight")
        bias = getattr(layer, "bias", None)
        if bias is not None:
            told.bias, told.bias_type = self.pointers(bias, f"{name}.bias")
        return told

    def scale(self, scale: Tensor | None, name: str) -> dict[str, Any]:
        """Layer scale, as fields of an operation that adds."""
        if scale is None:
            return {}
        address, kind = self.pointers(scale, name)
        return {"scale": address, "scale_type": kind}


def _matrix(layer: nn.Module, name: str) -> Tensor:
    """The (out, in) weight of a layer that is linear, or the embedding that is a tied head."""
    if type(layer) not in (nn.Linear, nn.Embedding):
        raise Unsupported(f"{name} is a {type(layer).__name__}")
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def lower(backbone: Backbone) -> Lowered:
    """Blocks and final norm, from register 0 to register 0. Raises Unsupported."""
    _check(backbone)
    made, config = Lowered(), backbone.config
    x = made.register(config.width)
    if backbone.embed_norm is not None:
        made.norm(backbone.embed_norm, "embed_norm", x, x)
    room: dict[str, int] = {}
    for index, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        local = config.local if config.local is not None and config.local.at(index) else None
        own = local is not None and backbone.local_rope is not None
        rope = backbone.local_rope if own else backbone.rope
        turned = 0 if rope is None else rope.head_width
        sees = {"window": 0 if local is None else local.window, "table": int(own), "turned": turned, "layer": index}
        _Lowering(made, room, block, f"blocks.{index}", x).block(sees)
    if backbone.norm is not None:
        made.norm(backbone.norm, "norm", x, x)
    return made


def lower_head(backbone: Backbone) -> Lowered | None:
    """From hidden states in register 0 to logits. None for a stack without a vocabulary. Raises Unsupported."""
    if backbone.embed is None:
        return None
    made, readout = Lowered(), backbone.readout
    x = made.register(backbone.config.width)
    factor = 1.0 if readout is None else readout.config.scale
    norm: Norm | None = None
    if readout is not None and readout.dense is not None and readout.config.dense is not None:
        dense = made.register(backbone.config.width)
        made.linear([(readout.dense, "readout.dense", dense)], x, activation=readout.config.dense, factor=factor)
        x, norm, factor = dense, readout.norm, 1.0
    head, name = (backbone.embed, "embed") if backbone.head is None else (backbone.head, "head")
    made.linear([(head, name, OUT)], x, (norm, "readout.norm"), factor=factor)
    if readout is not None and readout.bias is not None:
        part = made.ops[-1].part[0]
        part.bias, part.bias_type = made.pointers(readout.bias, "readout.bias")
    if backbone.config.soft_cap is not None:
        made.ops.append(COp(kind=CAP, width=backbone.config.vocab, from_=OUT, to=OUT, cap=backbone.config.soft_cap))
    return made


def _check(backbone: Backbone) -> None:
    config = backbone.config
    block = config.block
    said = {
        "a bias of scores by distance": config.relative is not None or block.relative is not None,
        "cross-attention": block.cross is not None,
        "modulation by a condition": block.modulation is not None,
        "routes": block.routes > 1,
        f"a feed-forward {block.ffn.__class__.__qualname__}": type(block.ffn) is not FeedForward.Config,
    }
    for what, there in said.items():
        if there:
            raise Unsupported(f"kernels have no operation for {what}")


class _Lowering:
    """One block, whose registers are those of all blocks."""

    def __init__(self, made: Lowered, room: dict[str, int], block: Block, name: str, x: int) -> None:
        self.made, self.room, self.part, self.name, self.x = made, room, block, name, x

    def _register(self, name: str, width: int) -> int:
        if name not in self.room:
            self.room[name] = self.made.register(width)
        return self.room[name]

    def block(self, sees: dict[str, int]) -> None:
        block = self.part
        before = (block.norm1, "norm1") if block.pre else None
        mixed, inner = self._attention(block.attention, before, sees)
        behind = (block.after1, "after1") if block.after else None if block.pre else (block.norm1, "norm1")
        self._leave(block.attention.o, "attention.o", mixed, inner, behind, block.scale1, "scale1")
        before = (block.norm2, "norm2") if block.pre else None
        hidden, inner = self._feed_forward(block.ffn, before)
        behind = (block.after2, "after2") if block.after else None if block.pre else (block.norm2, "norm2")
        self._leave(block.ffn.down, "ffn.down", hidden, inner, behind, block.scale2, "scale2")

    def _named(self, norm: tuple[Norm | None, str] | None) -> tuple[Norm | None, str]:
        return (None, "") if norm is None else (norm[0], f"{self.name}.{norm[1]}")

    def _attention(
        self, part: Attention, before: tuple[Norm, str] | None, sees: dict[str, int]
    ) -> tuple[int, tuple[Norm | None, str]]:
        """The register of what was read, and the norm it passes before the output layer."""
        made, wide, narrow = self.made, part.heads * part.head_width, part.kv_heads * part.head_width
        q, k, v = (self._register(name, width) for name, width in (("q", wide), ("k", narrow), ("v", narrow)))
        layers = [(getattr(part, name), f"{self.name}.attention.{name}", to) for name, to in zip("qkv", (q, k, v))]
        made.linear(layers, self.x, self._named(before))
        norms: list[CNorm] = [
            made.pointers.norm(norm, f"{self.name}.attention.{name}")
            for norm, name in ((part.q_norm, "q_norm"), (part.k_norm, "k_norm"))
        ]
        shape = {"heads": part.heads, "kv_heads": part.kv_heads, "head_width": part.head_width, **sees}
        made.ops.append(COp(kind=HEADS, from_=q, to=k, third=v, norm=norms[0], norm2=norms[1], **shape))
        scale = part.head_width**-0.5 * (1.0 if part.scale is None else part.scale)
        mixed = self._register("mixed", wide)
        made.ops.append(
            COp(kind=ATTEND, from_=q, to=mixed, score_scale=scale, cap=part.soft_cap or 0.0, **shape)
        )  # fmt: skip
        return mixed, (part.inner_norm, f"{self.name}.attention.inner_norm")

    def _feed_forward(self, part: FeedForward, before: tuple[Norm, str] | None) -> tuple[int, tuple[Norm | None, str]]:
        name, width = f"{self.name}.ffn", _matrix(part.up, f"{self.name}.ffn.up").shape[0]
        hidden, act = self._register("hidden", width), str(part.activation)
        up = (part.up, f"{name}.up", hidden)
        if part.gate is None:
            self.made.linear([up], self.x, self._named(before), act)
        else:
            layers = [(part.gate, f"{name}.gate", hidden), (part.up, f"{name}.up", self._register("up", width))]
            self.made.linear(layers, self.x, self._named(before), act, out=GATED)
        return hidden, (part.inner_norm, f"{name}.inner_norm")

    def _leave(
        self, layer: nn.Module, name: str, source: int, inner: tuple[Norm | None, str],
        behind: tuple[Norm, str] | None, scale: Tensor | None, scale_name: str,
    ) -> None:  # fmt: skip
        """The layer that writes into the stream, with the norm behind it: of what it adds, or of the sum."""
        made, block = self.made, self.part
        by = made.scale(scale, f"{self.name}.{scale_name}")
        add = self._register("add", _matrix(layer, name).shape[0])
        parts = [(layer, f"{self.name}.{name}", add)]
        norms_addend = behind is not None and (block.after or block.behind)
        if norms_addend:
            made.linear(parts, source, inner)
        else:
            made.linear(parts, source, inner, out=ADD, to=self.x, **by)
        if behind is not None:
            more = {"out": ADD, **by} if norms_addend else {}
            made.norm(behind[0], f"{self.name}.{behind[1]}", add if norms_addend else self.x, self.x, **more)
