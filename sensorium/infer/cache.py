"""Keys and values of what was read before, so that reading on costs only what is new.

A cache has slots, one for each conversation. A step appends one packed document to each of some slots: whole prompts
(prefill), a new turn on top of an earlier one, or one token each (decode). Lengths advance only when the step is
complete, so a step that fails or is interrupted leaves every slot as it was. Spans that are not visible are read in
their step and not kept: a noised span can be denoised in as many steps as it takes while its prefix stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.infer.room import grown, swap, zeros
from sensorium.mask import Layout, Reads, windowed
from sensorium.nn.attention import attend, attend_own
from sensorium.nn.backbone import Backbone


@dataclass(slots=True)
class Step:
    """What all layers of one forward pass share.

    slots   which slot each document is appended to, as an index of the first axis of the store
    places  (T) where each token goes in the flattened (slots * capacity) store
    keys    longest slot after the step: the part of the store that is read
    counts  new tokens of each document
    fresh   every slot was empty, so the layout's own mask is all there is to know
    mask    (B, 1, L or 1, keys) bool, True where attention is allowed; None where the rule needs none
    read    who reads which memory tokens, those of earlier steps included
    positions  (B, keys) of the tokens that are read
    starts  tokens that each slot held before
    """

    slots: slice | Tensor
    places: Tensor
    keys: int
    counts: list[int]
    fresh: bool
    mask: Tensor | None
    read: Read | None
    positions: Tensor
    starts: list[int]
    _near: dict[int, tuple[int, Tensor | None]] = field(default_factory=dict)

    def near(self, window: int) -> tuple[int, Tensor | None]:
        """Under a sliding window: the first key that is read, and the mask (B, 1, L or 1, keys - first) from there."""
        if window not in self._near:
            self._near[window] = self._windowed(window)
        return self._near[window]

    def _windowed(self, window: int) -> tuple[int, Tensor | None]:
        if self.keys <= window:
            return 0, self.mask
        starts = torch.tensor(self.starts, device=self.positions.device)
        if max(self.counts) > 1:
            assert self.mask is not None
            at = starts[:, None] + torch.arange(self.mask.shape[2], device=starts.device)
            return 0, windowed(self.mask, at, window)
        first = max(0, min(self.starts) + 1 - window)
        if len(set(self.starts)) == 1:
            return first, None
        at = torch.arange(first, self.keys, device=starts.device)[None, :]
        return first, ((at <= starts[:, None]) & (at > starts[:, None] - window))[:, None, None, :]


@dataclass(slots=True)
class Read:
    """One step's view of the memory.

    slots  the slot of each document
    mask   (B, 1, L, S) bool; a token that reads nothing has all True
    sees   (T) bool, False for those; None when there are none
    held   memory tokens that each slot held before the step
    added  (start, span) of each new memory token, by document
    """

    slots: list[int]
    mask: Tensor
    sees: Tensor | None
    held: list[int]
    added: list[list[tuple[int, int]]]


class LayerCache:
    """The cache of one layer: keys and values (slots, capacity, kv_heads, head_width).

    memory  for each slot the keys and values (S, kv_heads, head_width) of what cross-attention reads
    """

    def __init__(self, owner: Cache, keys: Tensor, values: Tensor) -> None:
        self.owner, self.keys, self.values = owner, keys, values
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * owner.slots
        self._joined: tuple[list[Tensor | None], Tensor, Tensor] | None = None

    def read(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cap: float | None = None) -> Tensor:
        """q (T, H, W) reads what each slot held and the new k and v (M, G, W) -> (T, H, W); both are kept."""
        read = self.owner.current.read
        if read is None:
            return torch.zeros_like(q)
        counts = [len(added) for added in read.added]
        for slot, held, keys, values in zip(read.slots, read.held, k.split(counts), v.split(counts)):
            before = self.memory[slot]
            if len(keys):
                old = (before[0][:held], before[1][:held]) if before is not None else (keys[:0], values[:0])
                self.memory[slot] = torch.cat([old[0], keys]), torch.cat([old[1], values])
        keys, values = self._padded(read)
        mixed = layout.pack(attend(layout.pad(q), keys.to(q.dtype), values.to(q.dtype), read.mask, False, cap))
        return mixed if read.sees is None else mixed * read.sees[:, None, None].to(mixed.dtype)

    def _padded(self, read: Read) -> tuple[Tensor, Tensor]:
        """(B, S, G, W) keys and values of the step's slots, made again only when a slot's memory changed."""
        pairs = [self.memory[slot] for slot in read.slots]
        marks = [None if pair is None else pair[0] for pair in pairs]
        longest = read.mask.shape[-1]
        known = self._joined
        if known is None or known[1].shape[1] != longest or [*map(id, known[0])] != [*map(id, marks)]:
            like = next(pair[0] for pair in pairs if pair is not None)
            keys, values = (like.new_zeros(len(pairs), longest, *like.shape[1:]) for _ in range(2))
            for row, pair in enumerate(pairs):
                for store, part in zip((keys, values), pair or ()):
                    store[row, : min(len(part), longest)] = part[:longest]
            self._joined = known = (marks, keys, values)
        return known[1], known[2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cap: float | None = None) -> Tensor:
        """q (T, H, W), k and v (T, G, W) of the new tokens, rotated -> (T, H, W); k and v are kept.

        cap  see sensorium.nn.attention.attend
        """
        step = self.owner.current
        self.keys.flatten(0, 1).index_copy_(0, step.places, k.to(self.keys.dtype))
        self.values.flatten(0, 1).index_copy_(0, step.places, v.to(self.values.dtype))
        if step.fresh:
            return attend_own(q, k, v, layout, cap)
        first, mask = (0, step.mask) if layout.window is None else step.near(layout.window)
        keys, values = self.keys[step.slots, first : step.keys], self.values[step.slots, first : step.keys]
        if max(step.counts) > 1:
            mask = mask if layout.bias is None else layout.bias
            return layout.pack(attend(layout.pad(q), keys.to(q.dtype), values.to(q.dtype), mask, False, cap))
        if cap is not None:
            return attend(q[:, None].to(keys.dtype), keys, values, mask, False, cap)[:, 0].to(q.dtype)
        # one row for each document: heads that share keys become query rows, so keys and values are never repeated
        batch, heads, width = q.shape
        rows = q.to(keys.dtype).view(batch, keys.shape[2], -1, width)
        if layout.bias is not None:
            mask = layout.bias.to(keys.dtype).reshape(batch, keys.shape[2], -1, step.keys)
        mixed = F.scaled_dot_product_attention(rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
        return mixed.reshape(batch, heads, width).to(q.dtype)


class Cache:
    """Preallocated keys and values for `slots` conversations of up to `capacity` tokens.

    lengths  tokens that each slot holds
    dtype    of the store
    """

    def __init__(
        self,
        depth: int,
        slots: int,
        capacity: int,
        kv_heads: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if slots < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one slot and one place, got {slots} slots of {capacity} places")
        shape = (slots, capacity, kv_heads, head_width)
        self.slots, self.capacity, self.dtype = slots, capacity, dtype
        self.lengths = [0] * slots
        self.memory: list[list[tuple[int, int]]] = [[] for _ in range(slots)]
        """(token it stands at, number of its span) of each memory token that a slot holds."""
        self.rows = list(range(slots))
        """The row of the stores in which each slot lies."""
        self._layers = [LayerCache(self, *(zeros(shape, dtype, device) for _ in range(2))) for _ in range(depth)]
        self.positions = torch.zeros(slots, capacity, dtype=torch.long, device=device)
        """Where each token stands, as its layout said."""
        self._step: Step | None = None
        self.reads: Reads = "before"

    @classmethod
    def of(cls, backbone: Backbone, slots: int, capacity: int, half: bool = False) -> Cache:
        """A cache that fits a backbone, on its device, of the type that it computes in; on a CPU float32 in place of
        halves, because torch attends with one row several times faster in it, unless `half`: torch does not decode."""
        attention = backbone.config.block.attention
        weight = next(backbone.parameters())
        head_width = attention.head_width or backbone.config.width // attention.heads
        wide = weight.device.type == "cpu" and weight.itemsize < 4 and not half
        shape = backbone.config.depth, slots, capacity, attention.kv_heads or attention.heads, head_width
        return cls(*shape, torch.float32 if wide else weight.dtype, weight.device)

    @property
    def current(self) -> Step:
        if self._step is None:
            raise RuntimeError("a cache is read and written inside `with cache.step(slots, layout)` only")
        return self._step

    def layer(self, index: int) -> LayerCache:
        return self._layers[index]

    @contextmanager
    def step(self, slots: Sequence[int], layout: Layout) -> Iterator[None]:
        """Append document i of `layout` to slots[i]: run the model inside. Positions are the caller's.

        Raises ValueError when a slot is named twice, a document does not fit, or the layout is not causal.
        """
        counts = layout.lengths
        if len(counts) != len(slots) or len(set(slots)) != len(slots):
            raise ValueError(f"{len(counts)} documents need as many different slots, got {list(slots)}")
        if not layout.causal and layout.mask is None:
            raise ValueError("full attention looks ahead, so what was read before cannot be kept: use a causal rule")
        ends = [self.lengths[slot] + count for slot, count in zip(slots, counts)]
        if max(ends) > self.capacity:
            raise ValueError(f"a slot would hold {max(ends)} tokens, its capacity is {self.capacity}: reserve() first")
        self._settle(slots)
        self._step = step = self._plan(slots, layout, max(ends))
        try:
            yield
        finally:
            self._step = None
        if layout.hidden is not None:
            for slot, hidden in zip(slots, layout.hidden.split(counts)):
                self._keep(slot, ~hidden)
        else:
            for slot, end in zip(slots, ends):
                self.lengths[slot] = end
        if step.read is not None:
            parts = [None] * len(slots) if layout.hidden is None else layout.hidden.split(counts)
            for slot, added, hidden, end in zip(slots, step.read.added, parts, ends):
                self.memory[slot] += added if hidden is None else _moved(added, hidden, end)

    def wrote(self, slots: Sequence[int], places: Sequence[int], position: Tensor) -> None:
        """Token i was written at places[i], the next ones of slots[i], by who has no `step`. position (N) or (N, 3)."""
        at = torch.tensor([self.rows[slot] * self.capacity + place for slot, place in zip(slots, places)])
        first = position if position.dim() == 1 else position[:, 0]
        self.positions.view(-1).index_copy_(0, at, first)
        for slot, place in zip(slots, places):
            self.lengths[slot] = place + 1

    def _keep(self, slot: int, visible: Tensor) -> None:
        """Of the tokens just written behind a slot's own keep the visible ones: (new tokens) bool."""
        start = self.lengths[slot]
        chosen = start + visible.nonzero(as_tuple=True)[0]
        end = start + len(chosen)
        for store in self._stores():
            store[slot, start:end] = store[slot, chosen]
        self.lengths[slot] = end

    def _plan(self, slots: Sequence[int], layout: Layout, keys: int) -> Step:
        device = self._layers[0].keys.device
        starts = [self.lengths[slot] for slot in slots]
        counts = layout.lengths
        begin = torch.tensor([slot * self.capacity + start for slot, start in zip(slots, starts)], device=device)
        fresh = not any(starts)
        mask = None
        if max(counts) == 1:
            places = begin
            if not fresh and len(set(starts)) > 1:
                filled = torch.tensor(starts, device=device)
                mask = (torch.arange(keys, device=device)[None, :] <= filled[:, None])[:, None, None, :]
        else:
            lengths = torch.tensor(counts, device=device)
            first = torch.cumsum(lengths, 0) - lengths
            places = torch.arange(sum(counts), device=device) + torch.repeat_interleave(begin - first, lengths)
            if not fresh:
                mask = _append_mask(torch.tensor(starts, device=device), keys, layout)
        contiguous = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        index = slice(slots[0], slots[0] + len(slots)) if contiguous else torch.tensor(list(slots), device=device)
        self.positions.view(-1).index_copy_(0, places, layout.position[:, 0].to(device))
        positions = self.positions[index, :keys]
        return Step(index, places, keys, counts, fresh, mask, self._plan_read(list(slots), layout), positions, starts)

    def _plan_read(self, slots: list[int], layout: Layout) -> Read | None:
        new = layout.memory
        if new is None and not any(self.memory[slot] for slot in slots):
            return None
        held = [len(self.memory[slot]) for slot in slots]
        added: list[list[tuple[int, int]]] = [[] for _ in slots]
        if new is not None:
            self.reads = new.reads
            late = [slot for slot, count in zip(slots, new.lengths) if count and self.lengths[slot]]
            if new.reads == "all" and late:
                raise ValueError(f"slots {late} hold tokens that would have read what comes now: under memory rule "
                                 "'all' everything to read comes first, so read the document again")  # fmt: skip
            pairs = zip(new.starts.split(new.lengths), new.spans.split(new.lengths))
            for document, (slot, (starts, spans)) in enumerate(zip(slots, pairs)):
                before = self.memory[slot][-1][1] + 1 if self.memory[slot] else 0
                first = int(spans[0]) if len(spans) else 0
                numbers = [before + span - first for span in spans.tolist()]
                added[document] = [(self.lengths[slot] + start, n) for start, n in zip(starts.tolist(), numbers)]
            if not any(held):
                return Read(slots, new.mask, new.sees, held, added)
        device = self._layers[0].keys.device
        every = [[*self.memory[slot], *more] for slot, more in zip(slots, added)]
        longest = max(map(len, every))
        table = torch.full((len(slots), longest, 2), -1, dtype=torch.long, device=device)
        for row, pairs in enumerate(every):
            if pairs:
                table[row, : len(pairs)] = torch.tensor(pairs, device=device)
        at, number = table[..., 0][:, None, :], table[..., 1][:, None, :]
        begin = torch.tensor([self.lengths[slot] for slot in slots], device=device)
        place = begin[:, None, None] + torch.arange(layout.rows.shape[1], device=device)[None, :, None]
        allowed = (number >= 0) & ((at <= place) if self.reads != "all" else torch.ones_like(at <= place))
        if self.reads == "latest":
            chosen = torch.where(allowed, number, -1)
            allowed = allowed & (chosen == chosen.amax(-1, keepdim=True))
        some = allowed.any(-1)
        sees = layout.pack(some[:, :, None])[:, 0]
        mask = (allowed | ~some[:, :, None])[:, None]
        return Read(slots, mask, None if bool(sees.all()) else sees, held, added)

    def truncate(self, slot: int, length: int) -> None:
        """Forget what a slot holds beyond its first `length` tokens."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} tokens, it cannot be cut to {length}")
        self.lengths[slot] = length
        self._cut_memory(slot)

    def _cut_memory(self, slot: int) -> None:
        """Forget the memory that stands behind a slot's last token."""
        self.memory[slot] = [pair for pair in self.memory[slot] if pair[0] < self.lengths[slot]]
        if not self.memory[slot]:
            for layer in self._layers:
                layer.memory[slot] = None

    @torch.inference_mode()
    def fork(self, source: int, target: int, length: int | None = None) -> None:
        """Copy the first `length` tokens (default: all) of one slot into another, replacing what that held."""
        length = self.lengths[source] if length is None else length
        if not 0 <= length <= self.lengths[source]:
            raise ValueError(f"slot {source} holds {self.lengths[source]} tokens, {length} cannot be copied from it")
        if source != target:
            for store in self._stores():
                store[self.rows[target], :length].copy_(store[self.rows[source], :length])
            for layer in self._layers:
                layer.memory[target] = layer.memory[source]
            self.memory[target] = list(self.memory[source])
        self.lengths[target] = length
        self._cut_memory(target)

    def exchange(self, one: int, other: int) -> None:
        """What two slots hold changes places. Nothing is copied: each lies in the other's row from now on."""
        every: list[list[Any]] = [self.lengths, self.memory, self.rows, *(layer.memory for layer in self._layers)]
        for told in every:
            told[one], told[other] = told[other], told[one]

    def _settle(self, slots: Sequence[int]) -> None:
        """Move slots to the rows of their own numbers: torch reads rows that are neighbours where they lie, and copies
        others."""
        for slot in slots:
            row, other = self.rows[slot], self.rows.index(slot)
            if row != slot:
                for store in self._stores():
                    swap(store, slot, row, max(self.lengths[slot], self.lengths[other]))
                self.rows[slot], self.rows[other] = slot, row

    def _stores(self) -> list[Tensor]:
        """All that is kept of each token: (rows, capacity, ...)."""
        return [*(store for layer in self._layers for store in (layer.keys, layer.values)), self.positions]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in each slot, at least doubling, so that growing costs little on average."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, 2 * self.capacity)
        lengths = [self.lengths[self.rows.index(row)] for row in range(self.slots)]
        for layer in self._layers:
            layer.keys, layer.values = (grown(store, capacity, lengths) for store in (layer.keys, layer.values))
        self.positions = grown(self.positions, capacity, lengths)
        self.capacity = capacity


def _moved(added: list[tuple[int, int]], hidden: Tensor, end: int) -> list[tuple[int, int]]:
    """(token it stands at, span) of new memory, where hidden (new tokens) of a step up to `end` were not kept: what
    stood at one of these stands at the next."""
    start = end - len(hidden)
    before = (torch.cumsum(~hidden, 0) - (~hidden).long()).tolist()
    return [(start + before[at - start], span) for at, span in added]


def _append_mask(starts: Tensor, keys: int, layout: Layout) -> Tensor:
    """(B, 1, L, keys): a new token sees all that its slot held, and of the new ones what the layout allows."""
    length = layout.rows.shape[1]
    row = torch.arange(length, device=starts.device)
    local = torch.arange(keys, device=starts.device)[None, :] - starts[:, None]  # (B, keys), negative in the old part
    if layout.mask is None:
        return (local[:, None, :] <= row[None, :, None])[:, None]
    own = layout.mask[:, 0].expand(len(starts), -1, -1)
    index = local.clamp(0, length - 1)[:, None, :].expand(-1, length, -1)
    new = own.gather(2, index) & (local < length)[:, None, :]
    return ((local < 0)[:, None, :] | new)[:, None]
