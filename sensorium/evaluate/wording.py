"""Items, answers and scores in words, for records, tables and examples."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any

from sensorium.data.boxes import format_box
from sensorium.data.media import PictureFile
from sensorium.evaluate.item import PLACE, TaskItem
from sensorium.sequence import Sample


def shown(value: float, percent: bool) -> str:
    """A score in a table."""
    return "-" if not math.isfinite(value) else f"{value:.1%}" if percent else f"{value:.4g}"


def expected_of(item: TaskItem) -> str:
    """The right answer, in one line."""
    if item.options and item.answer is not None:
        return item.options[item.answer]
    if item.answers:
        return " | ".join(dict.fromkeys(item.answers))
    return "; ".join(format_box(box, "decimal") for box in item.boxes)


def words_of(sample: Sample) -> str:
    """A conversation as words, a turn a paragraph; media as PLACE."""
    turns: list[tuple[str, str]] = []
    for one in sample.segments:
        text = str(one.data) if one.kind == "text" else PLACE
        if turns and turns[-1][0] == (one.role or ""):
            turns[-1] = (turns[-1][0], turns[-1][1] + text)
        else:
            turns.append((one.role or "", text))
    return "\n\n".join(f"{role}: {text}" if len(turns) > 1 else text for role, text in turns)


def places(item: TaskItem) -> list[str]:
    """Where media are: paths, or what they are made from."""
    found = []
    for one in item.media:
        data = one.data
        made = repr(data)[:200] if is_dataclass(data) else type(data).__name__
        found.append(str(data.path or data.name) if isinstance(data, PictureFile) else made)
    return found


def shown_answer(said: Any, item: TaskItem) -> str:
    if isinstance(said, dict):
        best = max(range(len(said["sums"])), key=said["sums"].__getitem__)
        return item.options[best] if best < len(item.options) else str(best)
    return said or ""
