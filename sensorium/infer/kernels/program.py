"""One decode step of a Backbone in one call of C."""

from __future__ import annotations

import ctypes
import warnings
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.infer.cache import Cache
from sensorium.infer.kernels.build import Unavailable, library
from sensorium.infer.kernels.layout import HEADS, OUT, TYPES, CCall, COp, Unsupported, checked
from sensorium.infer.kernels.lower import Lowered, lower, lower_head
from sensorium.nn.backbone import Backbone
from sensorium.nn.rope import Rope, signed

STRIP = 288  # tokens of prompts that pass through all layers together: what they need stays small
TABLE = 1 << 16  # positions whose sines are kept; those beyond are computed in their step


class Program:
    """Reads weights where they are, so it holds as long as they stay there (`Newest`). Of one thread at a time.

    Numbers inside are float32; the input of a bfloat16 layer is rounded to bfloat16, as torch does. What a row gets
    never depends on the other rows, nor on the number of threads (torch.get_num_threads()).
    """

    def __init__(self, backbone: Backbone) -> None:
        """Raises Unsupported for a part without an operation, Unavailable where nothing can be compiled."""
        self.backbone = backbone
        self._blocks, self._head = _Runner(lower(backbone)), None
        head = lower_head(backbone)
        self._head = _Runner(head, lower_only=True) if head is not None else None
        self._turns = [None if rope is None else _Turns(rope) for rope in (backbone.rope, backbone.local_rope)]
        self._known: tuple[Tensor, ctypes.Array, ctypes.Array] | None = None
        attention = backbone.config.block.attention
        self._shape = attention.kv_heads or attention.heads, attention.width_of_head(backbone.config.width)
        self._heads = attention.heads

    @classmethod
    def of(cls, backbone: Backbone) -> Program | None:
        """None where `missing` says why; then torch decodes. That nothing can be compiled is warned of, once."""
        try:
            return cls(backbone)
        except Unsupported:
            return None
        except Unavailable as error:
            warnings.warn(f"decoding is slower than it could be: {error}", stacklevel=2)
            return None

    @classmethod
    def missing(cls, backbone: Backbone) -> str | None:
        """Why there is no program of a backbone; None where there is one."""
        try:
            cls(backbone)
        except (Unsupported, Unavailable) as error:
            return str(error)
        return None

    @torch.inference_mode()
    def step(self, x: Tensor, slots: list[int], places: list[int], position: Tensor, cache: Cache) -> Tensor:
        """x (N, D) embeddings of N new tokens -> (N, D) behind the final norm, in x's type.

        Token i stands at places[i] of slots[i] of the cache and sees places 0 to places[i] (of a window, the last);
        tokens of one slot stand in rising places. position (N, 3) or (N): where they stand in the text. Keys and values
        are kept in the cache; its lengths and positions are the caller's. Raises ValueError for what does not fit.
        """
        return self._run(x, slots, places, position, cache)

    @torch.inference_mode()
    def read(
        self, x: Tensor, slots: list[int], places: list[int], position: Tensor, cache: Cache,
        kept: list[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """The same for the many tokens of prompts. Sums have another order than in `step` (of weights of codes, the
        same), and again one that is the same whatever else is read, and wherever a prompt is cut.

        kept: the tokens, in rising order, whose result is given back (default: all); in the last block the others
        leave their keys and values and go no further.
        """
        self._check(x, slots, places, position, cache)
        kept = list(range(len(x))) if kept is None else kept
        made = [x[:0]]
        for first in range(0, len(x), STRIP):
            one = slice(first, first + STRIP)
            here = [row - first for row in kept if first <= row < first + STRIP]
            made.append(self._run(x[one], slots[one], places[one], position[one], cache, here))
        return torch.cat(made)

    def _run(
        self, x: Tensor, slots: list[int], places: list[int], position: Tensor, cache: Cache,
        kept: list[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """kept: of many tokens, those that are given back; None: these are few."""
        rows = len(x)
        self._check(x, slots, places, position, cache)
        if rows == 0:
            return x.clone()
        position = position[:, None].expand(-1, 3) if position.dim() == 1 else position
        x = self._placed(x, position)
        tables = [None if turns is None else turns(position) for turns in self._turns]
        keys, values = self._stores(cache)
        out = torch.empty(rows if kept is None else len(kept), x.shape[1], dtype=x.dtype)
        call = self._blocks.call(x, out, (self._heads, *self._shape), cache.capacity, kept)
        call.capacity = cache.capacity
        call.slots = (c_int64 * rows)(*(cache.rows[slot] for slot in slots))
        call.places = (c_int64 * rows)(*places)
        call.keys, call.values, call.kept_type = keys, values, TYPES[cache.dtype]
        for told, table in zip(call.tables, tables):
            if table is not None:
                told.cosine, told.sine, told.row = table[0].data_ptr(), table[1].data_ptr(), (c_int64 * rows)(*table[2])
        self._blocks.run(call)
        return out

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N, vocab) float32."""
        if self._head is None:
            raise ValueError("this backbone has no vocabulary, so it has no logits")
        hidden = hidden.contiguous()
        self._typed(hidden)
        out = torch.empty(len(hidden), self.backbone.config.vocab)
        if len(hidden):
            self._head.run(self._head.call(hidden, out))
        return out

    def _typed(self, x: Tensor) -> None:
        width = self.backbone.config.width
        if x.dtype not in TYPES or x.device.type != "cpu" or x.dim() != 2 or x.shape[1] != width:
            raise ValueError(f"expected float32 or bfloat16 (N, {width}) on a CPU, got {x.dtype} {tuple(x.shape)} on "
                             f"{x.device}")  # fmt: skip

    def _check(self, x: Tensor, slots: list[int], places: list[int], position: Tensor, cache: Cache) -> None:
        self._typed(x)
        rows = len(x)
        if not len(slots) == len(places) == len(position) == rows:
            raise ValueError(f"{rows} tokens with {len(slots)} slots, {len(places)} places, {len(position)} positions")
        if rows and not (min(slots) >= 0 and max(slots) < cache.slots):
            raise ValueError(f"slots {sorted(set(slots))} of a cache with {cache.slots}")
        if rows and not (min(places) >= 0 and max(places) < cache.capacity):
            raise ValueError(f"places up to {max(places)} in a cache of {cache.capacity}: reserve() first")

    def _placed(self, x: Tensor, position: Tensor) -> Tensor:
        """What a Backbone adds to embeddings before the first block."""
        backbone = self.backbone
        if backbone.types is not None:
            x = x + backbone.types.weight[0].to(x.dtype)
        if backbone.place is not None:
            at = position[:, :1]
            x = x + backbone.place(at[:, 0].clamp(min=0) + backbone.config.unused_positions) * (at >= 0).to(x.dtype)
        if backbone.sinusoid is not None:
            x = x + backbone.sinusoid(position[:, 0]).to(x.dtype)
        return x.contiguous()

    def _stores(self, cache: Cache) -> tuple[ctypes.Array, ctypes.Array]:
        """The addresses of keys and values of all layers, which change when the cache grows."""
        depth = len(self.backbone.blocks)
        first = cache.layer(0).keys if depth else torch.zeros(0)
        if self._known is None or self._known[0] is not first:
            layers = [cache.layer(index) for index in range(depth)]
            for layer in layers:
                for store in (layer.keys, layer.values):
                    if store.dtype not in TYPES or store.device.type != "cpu" or not store.is_contiguous():
                        raise ValueError(f"kernels keep float32 or bfloat16 on a CPU, the cache is {store.dtype} on "
                                         f"{store.device}")  # fmt: skip
                    if store.shape[2:] != self._shape:
                        raise ValueError(f"the cache holds heads {tuple(store.shape[2:])}, the model's: {self._shape}")
            of = c_void_p * depth
            keys, values = of(*(one.keys.data_ptr() for one in layers)), of(*(one.values.data_ptr() for one in layers))
            self._known = first, keys, values
        return self._known[1], self._known[2]


class Newest:
    """The program of a backbone as it is now: another one once a layer was exchanged or moved."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._made_of: list[Any] | None = None
        self._program: Program | None = None

    def program(self) -> Program | None:
        """None where this machine or the backbone has none (`Program.missing`)."""
        made = made_of(self.backbone)
        if made != self._made_of:
            self._made_of, self._program = made, Program.of(self.backbone)
        return self._program


def made_of(module: nn.Module) -> list[Any]:
    """What tells whether a module is still what it was: its parts, and where the weights of each are and of what type.

    Unequal where a layer was exchanged or a weight moved; a weight that was changed in its place is still there.
    """
    told: list[Any] = []
    parts = [module]
    for one in parts:  # which grows; every request begins with this, so empty dictionaries are not asked for values
        told.append(id(one))
        for held in (one._parameters, one._buffers):
            if held:
                told += [(tensor.data_ptr(), tensor.dtype) for tensor in held.values() if tensor is not None]
        if one._modules:
            parts += [inner for inner in one._modules.values() if inner is not None]
    return told


class _Turns:
    """cos and signed sin of a Rope for every position so far, float32."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self._cosine, self._sine = self._of(torch.zeros(0, 3, dtype=torch.long))

    def _of(self, position: Tensor) -> tuple[Tensor, Tensor]:
        cosine, sine = self.rope(position)
        return cosine.float().contiguous(), signed(sine.float()).contiguous()

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """position (N, 3) -> cos and sin (P, turned), and which row of them each token takes."""
        rows = position.tolist()
        one = self.rope.config.sections is None
        same = not position.is_floating_point() and all(one or a == b == c for a, b, c in rows)
        at = [row[0] for row in rows]
        if not same or min(at) < 0 or max(at) >= TABLE:
            return *self._of(position), list(range(len(rows)))
        if max(at) >= len(self._cosine):
            count = max(1024, 1 << max(at).bit_length())
            self._cosine, self._sine = self._of(torch.arange(count)[:, None].expand(-1, 3))
        return self._cosine, self._sine, at


class _Runner:
    """Operations with the memory they work in, which grows with the number of rows."""

    def __init__(self, lowered: Lowered, lower_only: bool = False) -> None:
        self.library = checked(library())
        self.lowered = lowered
        self.ops = (COp * len(lowered.ops))(*lowered.ops)
        self.last = max((index for index, op in enumerate(lowered.ops) if op.kind == HEADS), default=-1)
        self.to = OUT if lower_only else 0
        self._room: dict[str, Tensor] = {}

    def _floats(self, name: str, count: int) -> int:
        """The address of so many floats."""
        room = self._room.get(name)
        if room is None or len(room) < count:
            self._room[name] = room = torch.empty(count + count // 4, dtype=torch.float32)
        return room.data_ptr()

    def call(
        self, x: Tensor, out: Tensor, heads: tuple[int, int, int] = (0, 0, 0), keys: int = 0,
        kept: list[int] | None = None,
    ) -> CCall:  # fmt: skip
        """heads: of queries, of keys, and their width; keys: places of a slot; kept: of a prompt, the rows of `out`."""
        rows, threads, lowered = len(x), torch.get_num_threads(), self.lowered
        own = self.library.own_bytes(rows, lowered.widest, heads[0], keys)
        if kept is not None:
            own = max(own, self.library.many_bytes(*heads))
        call = CCall(ops=self.ops, count=len(self.ops), rows=rows, room=rows, threads=threads, own_bytes=own)
        call.in_type, call.out_type = TYPES[x.dtype], TYPES[out.dtype]
        call.in_width, call.out_width = x.shape[1], out.shape[1]
        call.from_, call.to = 0, self.to
        call.in_, call.out = x.data_ptr(), out.data_ptr()
        call.registers = self._floats("registers", rows * lowered.floats)
        call.own = self._floats("own", threads * own // 4)
        if kept is not None:
            call.many, call.last, call.kept_rows = True, self.last, len(kept)
            call.kept = (c_int32 * max(len(kept), 1))(*kept)
        elif heads[0]:
            call.partial = self._floats("partial", rows * self.library.partial_floats(heads[0], heads[2]))
        return call

    def run(self, call: CCall) -> None:
        self.library.run(ctypes.byref(call))
