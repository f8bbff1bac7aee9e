"""Boxes that an answer names, against the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.data.boxes import Box, find_boxes, parse_box
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods


def overlaps(one: Sequence[Box], other: Sequence[Box]) -> Floats:
    """Intersection over union of every pair of (N) and (M) boxes -> (N, M). Boxes without an area overlap nothing."""
    a = np.asarray(one, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(other, dtype=np.float64).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1) for boxes in (a, b)]
    whole = areas[0] + areas[1] - shared
    return np.divide(shared, whole, out=np.zeros_like(whole), where=whole > 0)


def matched(values: Floats) -> list[tuple[int, int]]:
    """The pairs (row, column) of a (N, M) table, each used once, whose values have the largest sum.

    The Hungarian method with potentials (Kuhn 1955; Munkres 1957), rows added one by one.
    """
    table = -np.asarray(values, dtype=np.float64)
    turned = table.shape[0] > table.shape[1]
    table = table.T if turned else table
    rows, columns = table.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)
    taken, came = np.zeros(columns + 1, dtype=int), np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        taken[0], column = row, 0
        least, done = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=bool)
        while taken[column]:
            done[column] = True
            open_ = np.flatnonzero(~done[1:]) + 1
            slack = table[taken[column] - 1, open_ - 1] - of_row[taken[column]] - of_column[open_]
            nearer = slack < least[open_]
            least[open_[nearer]], came[open_[nearer]] = slack[nearer], column
            nearest = open_[least[open_].argmin()]
            step = least[nearest]
            of_row[taken[done]] += step
            of_column[done] -= step
            least[open_] -= step
            column = nearest
        while column:
            taken[column], column = taken[came[column]], came[column]
    pairs = [(int(taken[column]) - 1, column - 1) for column in range(1, columns + 1) if taken[column]]
    return sorted((column, row) if turned else (row, column) for row, column in pairs)


class Grounding(Metric):
    """Acc@0.5 and mean IoU of the boxes said against `item.boxes` (RefCOCO; Yu et al. 2016, arXiv 1608.00272).

    Of one right box the first box said counts, and of several each is matched with another one that was said so that
    the sum of IoU is largest; boxes too many are then wrong: an item scores what is matched over the larger number.
    Parsed: the boxes, in [0, 1], in every convention of data/boxes.py; None where there is none that is well formed.

    threshold   of IoU, from which on a box is right
    convention  the one whose first box is read; None: any, and all boxes
    """

    names = (Score("Acc@0.5"), Score("mean IoU"))
    threshold: float = 0.5
    convention: str | None = None

    def parse(self, said: str | Likelihoods, item: TaskItem) -> list[list[float]] | None:
        text = words_of(said)
        if self.convention is None:
            found = [one.box for one in find_boxes(text)]
        else:
            box = parse_box(text, self.convention)
            found = [] if box is None else [box]
        return [list(box) for box in found] or None

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([self._row(item, said) for item, said in zip(items, parsed)], dtype=np.float64).reshape(-1, 3)

    def _row(self, item: TaskItem, said: Sequence[Box] | None) -> tuple[float, float, float]:
        if not said or not item.boxes:
            return (0.0, 0.0, 1.0)
        said = said[:1] if len(item.boxes) == 1 else said
        table = overlaps(said, item.boxes)
        found = np.array([table[pair] for pair in matched(table)])
        most = max(len(said), len(item.boxes))
        return (float((found >= self.threshold).sum()) / most, float(found.sum()) / most, 1.0)

    def scores(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[..., :2] / sums[..., 2:]
