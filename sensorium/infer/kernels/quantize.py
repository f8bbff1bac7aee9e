"""A language stack whose weights are codes of 8 or 4 bits, for inference alone.

    report = quantize(model, "int8")

Linear layers of the blocks, the head and the embedding are replaced, one by one; norms, vision encoders, connectors and
all else stay as they are. A head that is the embedding stays that: both read the same codes. Head and embedding are
int8 in either kind, as in llama.cpp's files of 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sensorium.errors import UserError, nearest
from sensorium.infer.kernels.codes import GROUP, PANEL, Kind, decode, decode_rows, encode, library
from sensorium.models.denoiser import Denoiser
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.lora import merge_lora
from sensorium.nn.modulation import Modulation
from sensorium.nn.moe import MixtureOfExperts

KINDS: tuple[Kind, ...] = ("int8", "int4")
FEW = {torch.float32: 128, torch.bfloat16: 32}
"""Most rows, by their type, that the kernels in C take; for more of them (and for rows of other types) weights are made
anew, tile by tile, and multiplied by BLAS."""
TILE = 1 << 21
"""Weights of such a tile: it should stay in the cache until it is multiplied."""


class QuantWeight(nn.Module):
    """A weight (N, K) as codes and scales (see codes.py); a linear layer and an embedding may share one.

    shape  (N, K)
    kind   int8 or int4
    codes, scales  in the order of quant.h
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, kind: Kind) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.shape = (int(weight.shape[0]), int(weight.shape[1]))
        codes, scales = encode(weight, kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def bits(self) -> int:
        return 8 if self.kind == "int8" else 4

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def values(self) -> Tensor:
        """(N, K) float32: the weight that is multiplied with."""
        return decode(self.codes, self.scales)[: self.shape[0], : self.shape[1]]

    def rows(self, rows: Tensor) -> Tensor:
        """rows (...) -> (..., K) float32."""
        found = decode_rows(self.codes, self.scales, rows.flatten())[:, : self.shape[1]]
        return found.view(*rows.shape, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        """x (M, K) -> (M, N), of its type; the kernels in C sum in float32."""
        learns = torch.is_grad_enabled() and x.requires_grad
        if 0 < len(x) <= FEW.get(x.dtype, 0) and x.device.type == self.codes.device.type == "cpu" and not learns:
            made = self._product_in_c(x)
            if made is not None:
                return made
        step = max(TILE // self.shape[1] // PANEL, 1) * PANEL
        ends = [min(first + step, self.shape[0]) for first in range(0, self.shape[0], step)]
        if len(ends) == 1:
            return x @ self._transposed(0, self.shape[0], x.dtype)
        out = x.new_empty(len(x), self.shape[0])
        for first, end in zip(range(0, self.shape[0], step), ends):
            out[:, first:end] = x @ self._transposed(first, end, x.dtype)
        return out

    def _product_in_c(self, x: Tensor) -> Tensor | None:
        kernels = library()
        if kernels is None:
            return None
        rows = x.detach().float().contiguous()
        out = torch.empty(len(x), self.shape[0])
        failed = kernels.quant_product(
            self.bits, self.codes.data_ptr(), self.scales.data_ptr(), *self.shape, rows.data_ptr(), len(x),
            out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for {len(x)} rows of {self.shape[1]} inputs")
        return out.to(x.dtype)

    def _transposed(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """(K, end - first) of outputs `first` (the first of a panel) to `end`."""
        kernels = library() if self.codes.device.type == "cpu" else None
        if kernels is None or dtype not in (torch.float32, torch.bfloat16):
            place = slice(first // PANEL, -(-end // PANEL))
            rows = decode(self.codes[place], self.scales[place])
            return rows[: end - first, : self.shape[1]].to(dtype).T
        out = torch.empty(self.shape[1], end - first, dtype=dtype)
        kernels.quant_transposed(
            self.bits, self.codes.data_ptr(), self.scales.data_ptr(), self.shape[1], first, end,
            int(dtype == torch.bfloat16), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise UserError("a quantised model is for inference: save or convert the one that it was made of, opened "
                        "without `quantize`")  # fmt: skip

    def _apply(self, fn: Any, recurse: bool = True) -> QuantWeight:
        """To another device, not to another type: codes and scales are what they are."""
        device = fn(torch.empty(0, device=self.codes.device)).device
        self.codes, self.scales = self.codes.to(device), self.scales.to(device)
        return self

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.shape[0]} x {self.shape[1]}"


class QuantLinear(nn.Module):
    """A linear layer on a quantised weight: (..., K) -> (..., N)."""

    def __init__(self, weight: QuantWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"this layer reads {self.in_features} numbers of each row, given {x.shape[-1]}")
        made = self.weight.product(x.reshape(-1, self.in_features))
        made = made if self.bias is None else made + self.bias.to(made.dtype)
        return made.view(*x.shape[:-1], self.out_features)


class QuantEmbedding(nn.Module):
    """Rows of a quantised weight: ids (...) -> (..., K) in the type that the model computes in."""

    def __init__(self, weight: QuantWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        # a parameter without numbers: a stack says by its first one where and in what it computes
        self.like = nn.Parameter(torch.empty(0, dtype=dtype, device=weight.codes.device), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight.rows(ids).to(self.like.dtype)


# ---- a whole model


@dataclass(slots=True)
class Report:
    """What became of a model.

    layers  names of the layers that are codes now, with what is shared named once
    kept    what of the language stack stays in its type: name and why
    before, after  bytes of what was quantised, and of the codes and scales it is now
    rest    bytes of everything else: norms, encoders, connectors, ...
    """

    kind: Kind
    layers: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    before: int = 0
    after: int = 0
    rest: int = 0

    def summary(self) -> str:
        """One line for people."""
        kept = ", ".join(f"{name} ({why})" for name, why in self.kept.items())
        return (
            f"{self.kind}: {len(self.layers)} linear layers and embeddings of the language stack, "
            f"{self.before / 1e6:.1f} MB are now {self.after / 1e6:.1f} MB; the other {self.rest / 1e6:.1f} MB stay as "
            f"they were: norms and all parts outside of that stack{', and of it ' + kept if kept else ''}"
        )


def quantize(model: Wiring, kind: str) -> Report:
    """Replace the weights of a model's language stacks by codes; originals are freed one by one. Adapters are merged.

    The stacks are what reads the text, the encoder of an encoder-decoder, and those of a model that is listened to.
    Raises UserError for a kind that is not known, for a model without such a stack or that is quantised already.
    """
    chosen = check_kind(kind)
    if isinstance(model, Denoiser):
        raise UserError("a denoiser has no language stack to quantise: open it without `quantize`")
    if not model.config.reads_text:
        raise UserError("this model reads no text, so there is no language stack to quantise: leave out `quantize`")
    if quantised(model) is not None:
        raise UserError(f"this model is {quantised(model)} already: open it again to choose {kind}")
    report = Report(chosen)
    names = {id(part): name for name, part in model.named_modules()}
    for stack in _stacks(model):
        merge_lora(stack)
        _quantize_stack(stack, names[id(stack)], chosen, report)
    stay = {id(one): one for one in (*model.parameters(), *model.buffers())}
    report.rest = sum(one.nbytes for one in stay.values()) - report.after
    coded = {id(one) for part in model.modules() if isinstance(part, QuantWeight) for one in part.buffers()}
    for name in stay.keys() - coded:  # else they would keep the file that the originals are mapped from
        stay[name].data = stay[name].data.clone()
    return report


def check_kind(kind: str) -> Kind:
    """The kind of that name. Raises UserError for one that is not known."""
    for known in KINDS:
        if known == kind:
            return known
    raise UserError(f"weights cannot be quantised to {kind!r}: {nearest(str(kind), KINDS)}")


def quantised(model: nn.Module) -> Kind | None:
    """What a model was quantised to; None where it was not."""
    kinds = {part.kind for part in model.modules() if isinstance(part, QuantWeight)}
    return "int4" if "int4" in kinds else "int8" if kinds else None


def _stacks(model: Wiring) -> Iterator[Backbone]:
    yield model.stack
    if isinstance(model, Fused):
        if model.source is not None:
            yield model.source
        if model.thinker is not None:
            yield from _stacks(model.thinker.model)


def _quantize_stack(stack: Backbone, name: str, kind: Kind, report: Report) -> None:
    if stack.head is not None:
        stack.head = _linear(stack, "head", f"{name}.head", "int8", report)  # type: ignore[assignment]
    if stack.embed is not None:
        dtype = stack.embed.weight.dtype
        stack.embed = QuantEmbedding(_taken(stack, "embed", f"{name}.embed", "int8", report), dtype)  # type: ignore[assignment]
        if stack.head is None:
            stack.head = QuantLinear(stack.embed.weight)  # type: ignore[assignment,arg-type]
    for inner in [one for one, part in stack.blocks.named_modules() if isinstance(part, nn.Linear)]:
        parent, _, leaf = inner.rpartition(".")
        holder = stack.blocks.get_submodule(parent)
        reason = _why_not(holder, getattr(holder, leaf))
        if reason is not None:
            report.kept[f"{name}.blocks.{inner}"] = reason
        else:
            setattr(holder, leaf, _linear(holder, leaf, f"{name}.blocks.{inner}", kind, report))


def _why_not(holder: nn.Module, linear: nn.Linear) -> str | None:
    if isinstance(holder, MixtureOfExperts):
        return "it chooses experts"
    if isinstance(holder, Modulation):
        return "it modulates norms"
    if linear.in_features < GROUP:
        return f"fewer than {GROUP} inputs"
    return None


def _linear(holder: nn.Module, leaf: str, name: str, kind: Kind, report: Report) -> QuantLinear:
    bias = getattr(holder, leaf).bias
    return QuantLinear(_taken(holder, leaf, name, kind, report), bias)


def _taken(holder: nn.Module, leaf: str, name: str, kind: Kind, report: Report) -> QuantWeight:
    """The codes of holder.leaf, of which no reference is kept here: it is freed when it is replaced."""
    weight = getattr(holder, leaf).weight
    try:
        held = QuantWeight(weight, kind)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    report.layers.append(name)
    report.before += weight.nbytes
    report.after += held.nbytes
    return held
