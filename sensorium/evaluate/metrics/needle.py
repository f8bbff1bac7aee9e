"""A needle in a haystack: whether what stands somewhere in a long context is found, by length and depth."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Mean, Score, words_of
from sensorium.evaluate.result import Table
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods


class Needle(Mean):
    """Recall: one of `item.answers` stands in what was said, as whole words, but for case and white space.

    `item.info["length"]` (tokens, frames or pictures) and `item.info["depth"]` (0 start, 1 end) are the table's columns
    and rows.
    """

    names = (Score("recall"),)

    def parse(self, said: str | Likelihoods, item: TaskItem) -> str | None:
        return words_of(said) or None

    def each(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        return np.array([float(said is not None and _holds(said, item.answers)) for item, said in zip(items, parsed)])

    def tables(self, items: Sequence[TaskItem], rows: Floats) -> list[Table]:
        cells: dict[tuple[float, float], list[float]] = defaultdict(list)
        for item, score in zip(items, rows[:, 0]):
            try:
                cells[float(item.info["depth"]), float(item.info["length"])].append(float(score))
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"item {item.id} has no length and depth as numbers: needles need info like "
                    '{"length": 4096, "depth": 0.5}'
                ) from None
        lengths = sorted({length for _, length in cells})
        body = []
        for depth in sorted({depth for depth, _ in cells}):
            found = [cells.get((depth, length)) for length in lengths]
            body.append((f"{depth:.0%}", *("" if one is None else f"{sum(one) / len(one):.0%}" for one in found)))
        return [Table("Recall by depth and length", ("depth", *(f"{length:,g}" for length in lengths)), tuple(body))]


def _holds(said: str, answers: Sequence[str]) -> bool:
    text = _plain(said)
    return any(
        re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
        for answer in answers
        if (words := _plain(answer))
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")
