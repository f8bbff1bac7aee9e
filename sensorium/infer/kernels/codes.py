"""Weights as codes of 8 or 4 bits, a scale for every 32 inputs, in the order that quant.h reads.

int8: w = scale * code, code -127 to 127, scale half precision: 8.5 bits a weight, as llama.cpp's q8_0.
int4: w = scale * code + least, code 0 to 15, both half precision: 5 bits a weight, as llama.cpp's q4_1. Scale and least
are those of the smallest squared error that a search finds; it begins at the range of the group, so weights that were
written in q4_1 are found again as they were. Those that were trained since are kept from falling back (`_kept_apart`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sensorium.infer.kernels import build

Kind = Literal["int8", "int4"]

PANEL, GROUP = 16, 32
"""Outputs that lie together, and inputs that share a scale: those of quant.h."""
ROWS = 512
"""Rows that are quantised at a time, whole panels, so that what is computed on the way is small beside a layer."""
SHRINKS = (1.0, 0.93, 0.86)
"""The search begins at these parts of a group's range: an outlier is worth less than all others' precision."""
REFITS = 2
NEAR = 0.7
"""Of the mean squared error of rounding, scale^2 / 12: what only weights that were on such levels once stay below.
Others' groups have 0.83 of it, half of them less; 0.65 one in ten."""
GOLDEN = 2654435769  # 2^32 over the golden ratio
STORED = 4 * 2.0**-18 / 3
"""Of the mean square of weights: four times the error that bfloat16 makes. Below, they are on their grid still."""


def encode(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """weight (N, K) of any float type -> codes and scales in the order of quant.h, on its device.

    int8: codes (P, G, 16, 16, 2) int8 and scales (P, G, 16) half; int4: codes (P, G, 4, 16, 2) int16 of four nibbles
    and scales (P, G, 2, 16) half; P panels of 16 outputs and G groups of 32 inputs, what is beyond N and K being zero.
    Raises ValueError for weights that are not finite, or too large for half precision.
    """
    panels, groups = -(-weight.shape[0] // PANEL), -(-weight.shape[1] // GROUP)
    shapes = ((16, PANEL, 2), (PANEL,)) if kind == "int8" else ((4, PANEL, 2), (2, PANEL))
    codes = torch.empty(panels, groups, *shapes[0], dtype=_stored(kind), device=weight.device)
    scales = torch.empty(panels, groups, *shapes[1], dtype=torch.half, device=weight.device)
    for first in range(0, weight.shape[0], ROWS):
        rows = weight[first : first + ROWS].detach().float()
        high = -(-len(rows) // PANEL)
        padded = rows.new_zeros(high * PANEL, groups * GROUP)
        padded[: len(rows), : rows.shape[1]] = rows
        place = slice(first // PANEL, first // PANEL + high)
        each = padded.view(-1, GROUP)
        codes[place], scales[place] = (
            _packed8(*_bytes(each), high) if kind == "int8" else _packed4(*_nibbles(each), high)
        )
    if not bool(scales.isfinite().all()):
        raise ValueError("weights that are not finite, or too large for a scale in half precision, cannot be quantised")
    return codes, scales


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """What `encode` made -> (16 P, 32 G) float32; any run of whole panels is decoded alone."""
    panels, groups = codes.shape[:2]
    if codes.dtype == torch.int8:
        plain = codes.permute(0, 3, 1, 2, 4).reshape(panels, PANEL, groups, GROUP)
        return (plain * scales.float().transpose(1, 2)[..., None]).flatten(0, 1).flatten(1)
    plain = _spread(codes).permute(0, 3, 1, 2, 5, 4).reshape(panels, PANEL, groups, GROUP)
    scale, least = (part.transpose(1, 2)[..., None] for part in scales.float().unbind(2))
    return torch.addcmul(least, plain.float(), scale).flatten(0, 1).flatten(1)


def decode_rows(codes: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    """rows (T) of the weight -> (T, 32 G) float32."""
    panel, lane = rows // PANEL, rows % PANEL
    if codes.dtype == torch.int8:
        return (codes[panel, :, :, lane].flatten(2) * scales[panel, :, lane].float()[..., None]).flatten(1)
    plain = _spread(codes[panel, :, :, lane]).transpose(-1, -2).flatten(2)
    scale, least = scales[panel, :, :, lane].float()[..., None].unbind(2)
    return torch.addcmul(least, plain.float(), scale).flatten(1)


@cache
def library() -> ctypes.CDLL | None:
    """The kernels of quantize.c; None where they cannot be built."""
    try:
        found = build.library()
    except build.Unavailable:
        return None
    pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    found.quant_product.argtypes = [number, pointer, pointer, number, number, pointer, number, pointer, number]
    found.quant_product.restype = number
    found.quant_transposed.argtypes = [number, pointer, pointer, number, number, number, number, pointer, number]
    found.quant_transposed.restype = None
    found.quant_search.argtypes = [pointer, long, pointer, number, number, *[pointer] * 4, number]
    found.quant_search.restype = None
    return found


def _stored(kind: Kind) -> torch.dtype:
    return torch.int8 if kind == "int8" else torch.int16


def _spread(codes: Tensor) -> Tensor:
    """int16 of four nibbles (...) -> (..., 4) from 0 to 15, lowest first."""
    return (codes[..., None] >> torch.arange(0, 16, 4, device=codes.device, dtype=codes.dtype)) & 15


# ---- groups (N, 32) float32 -> codes (N, 32) and scales


def _bytes(groups: Tensor) -> tuple[Tensor, Tensor]:
    scale = (groups.abs().amax(1, keepdim=True) / 127).half()
    exact = scale.float()
    codes = torch.where(exact > 0, groups / exact, 0).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


def _nibbles(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and halves scale and least: from parts of the range, codes and the line through them in turns (least
    squares); what had the smallest squared error stays."""
    found = library() if groups.device.type == "cpu" else None
    return _kept_apart(groups, *(_searched(groups) if found is None else _searched_in_c(found, groups)))


def _kept_apart(
    groups: Tensor, codes: Tensor, scale: Tensor, least: Tensor, error: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, but where weights lie nearer to 16 levels than by chance, and not on them: they were in 4 bits once and
    were trained since. Their nearest codes are those of before, which undo the training. These groups get levels a
    sixteenth of their range apart, shifted by another part of a step in each (dither: Schuchman 1964), so that where a
    weight lies between two levels has nothing to do with what it was, and small changes are kept on the average."""
    error = error / GROUP
    near = (error / (scale.float().square() / 12)).nanmedian() < NEAR
    if not near:
        return codes, scale, least
    trained = (error > STORED * groups.square().mean(1, keepdim=True))[:, 0].nonzero()[:, 0]
    if not len(trained):
        return codes, scale, least
    some = groups[trained]
    low, high = some.amin(1, keepdim=True), some.amax(1, keepdim=True)
    shift = (trained * GOLDEN & 0xFFFFFFFF)[:, None] * 2.0**-32  # from 0 to 1, evenly for neighbours too
    steps = ((high - low) / 16).half()
    begin = ((low + high) / 2 + (shift - 8) * steps.float()).half()
    scale[trained], least[trained] = steps, begin
    nearest = ((some - begin.float()) / steps.float()).nan_to_num_(0)  # steps may be too small for half precision
    codes[trained] = nearest.round_().clamp_(0, 15).to(codes.dtype)
    return codes, scale, least


def _searched_in_c(found: ctypes.CDLL, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scale, least, and the squared error of each group."""
    codes = torch.empty(groups.shape, dtype=torch.uint8)
    scale, least = (torch.empty(len(groups), 1, dtype=torch.half) for _ in range(2))
    error = torch.empty(len(groups), 1)
    cuts = torch.tensor([(1 - part) / 2 for part in SHRINKS for _ in range(2)])
    found.quant_search(
        groups.data_ptr(), len(groups), cuts.data_ptr(), len(SHRINKS), REFITS, codes.data_ptr(), scale.data_ptr(),
        least.data_ptr(), error.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return codes, scale, least, error


def _searched(groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    best = groups.new_full((len(groups), 1), torch.inf)
    kept = torch.zeros_like(groups), best.new_full(best.shape, torch.nan), best.new_full(best.shape, torch.nan)
    for part in SHRINKS:
        cut = (high - low) * (1 - part) / 2
        scale, least = ((high - low) * (part / 15)).half().float(), (low + cut).half().float()
        for turn in range(1 + REFITS):
            codes = torch.where(scale > 0, (groups - least) / scale, 0).round_().clamp_(0, 15)
            error = torch.addcmul(least, codes, scale).sub_(groups).square_().sum(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            kept = tuple(torch.where(better, new, old) for new, old in zip((codes, scale, least), kept))
            if turn < REFITS:
                scale, least = _line(codes, groups, scale, least)
    codes, scale, least = kept
    return codes.to(torch.uint8), scale.half(), least.half(), best


def _line(codes: Tensor, groups: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and least of the smallest squared error for codes as they are; where all are the same, as before."""
    mean, level = codes.mean(1, keepdim=True), groups.mean(1, keepdim=True)
    apart = codes - mean
    spread = apart.square().sum(1, keepdim=True)
    slope = torch.where(spread > 0, (apart * groups).sum(1, keepdim=True) / spread, scale).half().float()
    return slope, torch.where(spread > 0, level - slope * mean, least).half().float()


def _packed8(codes: Tensor, scale: Tensor, panels: int) -> tuple[Tensor, Tensor]:
    laid = codes.view(panels, PANEL, -1, 16, 2).permute(0, 2, 3, 1, 4)
    return laid, scale.view(panels, PANEL, -1).transpose(1, 2)


def _packed4(codes: Tensor, scale: Tensor, least: Tensor, panels: int) -> tuple[Tensor, Tensor]:
    laid = codes.view(panels, PANEL, -1, 4, 4, 2).permute(0, 2, 3, 1, 5, 4).to(torch.int32)
    shifts = torch.arange(0, 16, 4, device=codes.device, dtype=torch.int32)
    both = torch.stack([scale.view(panels, PANEL, -1), least.view(panels, PANEL, -1)], -1)
    return (laid << shifts).sum(-1).to(torch.int16), both.permute(0, 2, 3, 1)
