"""Masks against the right ones: mean intersection over union."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

IGNORED = 255
"""Pixels of no class (Pascal VOC's borders): they count neither way."""


def read_mask(value: Any) -> NDArray[np.int64] | None:
    """A mask (H, W) of class numbers, from rows of numbers or COCO's uncompressed run lengths
    ({"size": [H, W], "counts": [...]}, column by column, zeros first); None where it is neither."""
    if isinstance(value, dict):
        return _runs(value)
    try:
        mask = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iub":
        return None
    return mask.astype(np.int64) if mask.min() >= 0 else None


def _runs(value: dict[str, Any]) -> NDArray[np.int64] | None:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or not isinstance(counts, list) or len(size) != 2:
        return None
    if not all(type(one) is int and 0 <= one < 2**31 for one in (*size, *counts)):
        return None
    if sum(counts) != size[0] * size[1] or not sum(counts):
        return None
    return np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[1], size[0]).T


class MeanIou(Metric):
    """mIoU over classes of all pixels of all items (Everingham et al. 2015, section 4.2), and pixel accuracy.

    The right mask is `item.info["mask"]`; what was said is a mask as JSON (see `read_mask`), parsed as it is. A mask of
    another size or with a class that there is not is unreadable, and every pixel of the right one then missed. Classes
    that neither have are left out of the mean. Statistics: shared and joined pixels of each class, pixels right, all.

    classes  how many, the background 0 among them
    """

    names = (Score("mIoU"), Score("pixel accuracy"))
    classes: int = Field(default=2, ge=2)

    def parse(self, said: str | Likelihoods, item: TaskItem) -> Any:
        text = words_of(said)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        mask = read_mask(value)
        right = self._right(item)
        if mask is None or mask.shape != right.shape or mask.max() >= self.classes:
            return None
        return value

    def _right(self, item: TaskItem) -> NDArray[np.int64]:
        mask = read_mask(item.info.get("mask"))
        if mask is None or (mask[mask != IGNORED] >= self.classes).any():
            raise UserError(f"item {item.id} has no mask of {self.classes} classes: its info needs one, rows of class "
                            "numbers or COCO's run lengths; set classes to how many there are")  # fmt: skip
        return mask

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._row(item, said) for item, said in zip(items, parsed)]).reshape(len(items), -1)

    def _row(self, item: TaskItem, said: Any) -> Floats:
        right = self._right(item).ravel()
        counted = right != IGNORED
        right = right[counted]
        missed = np.full(len(right), self.classes)
        given = missed if said is None or (mask := read_mask(said)) is None else mask.ravel()[counted]
        pairs = np.bincount(right * (self.classes + 1) + given, minlength=self.classes * (self.classes + 1))
        table = pairs.reshape(self.classes, self.classes + 1)
        shared = np.diagonal(table)
        joined = table.sum(1) + table.sum(0)[: self.classes] - shared
        return np.concatenate([shared, joined, [shared.sum(), len(right)]]).astype(np.float64)

    def scores(self, sums: Floats) -> Floats:
        shared, joined = sums[..., : self.classes], sums[..., self.classes : 2 * self.classes]
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.where(joined > 0, shared / joined, 0.0)
            mean = each.sum(-1) / (joined > 0).sum(-1)
            return np.stack([mean, sums[..., -2] / sums[..., -1]], axis=-1)
