"""The figure of a denoiser: noised patches below, the stack that says what was added, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable

from sensorium.models.denoiser import Denoiser
from sensorium.train.describe import Description, count
from sensorium.train.draw_parts import draw_column, draw_part
from sensorium.train.shapes import (
    ANSWER,
    ANSWER_EDGE,
    CELL,
    FIGURE,
    GAP,
    ITEM,
    ITEM_EDGE,
    LINE,
    MARGIN,
    SOFT,
    TEXT,
    TEXT_EDGE,
    Box,
    arrow,
    rect,
    text,
)

CELLS = 9
STEP = CELL + GAP
SAYS = {
    "noise": "the noise that was added", "clean": "the clean latent", "velocity": "alpha noise - sigma clean",
    "flow": "noise - clean, the way from one to the other",
}  # fmt: skip


def draw_denoiser(described: Description, top: float) -> Iterable[str]:
    """From below: items and codec on the left, text and time on the right, the denoising stack above both."""
    model = described.recipe.model
    assert isinstance(model, Denoiser.Config)
    stack = Box(MARGIN, top + 84, FIGURE, 104)
    left, right = MARGIN + FIGURE * 0.27, MARGIN + FIGURE * 0.75
    yield from _cells(left, top + 12, ANSWER, ANSWER_EDGE)
    says = f"predicted: {SAYS[model.predictor.kind]}"
    yield text(left + CELLS * STEP / 2 + 14, top + 12 + CELL - 5, says, size=13, colour=SOFT, anchor="start")
    yield arrow(left, stack.y - 3, left, top + 12 + CELL + 5)
    yield from draw_part(described, "backbone", stack)
    stream = stack.bottom + 58
    yield from _cells(left, stream, ITEM, ITEM_EDGE)
    kind = next(iter(described.tokens))
    label = f"{described.tokens[kind]:,} tokens: patches of {' x '.join(map(str, model.patch))}, noised"
    yield text(left, stream - 12, label, size=13, colour=ITEM_EDGE, weight="bold")
    yield arrow(left, stream - 28, left, stack.bottom + 3)
    yield from draw_column(described, kind, Box(left - 45, 0, 90, 0), stream + CELL + 40, 330.0)
    yield from _told(described, model, right, stack.bottom)


def _told(described: Description, model: Denoiser.Config, middle: float, bottom: float) -> Iterable[str]:
    """What the stack is told: the time and the text, and how."""
    how = "scale, shift and gate in every block (adaLN-zero)"
    if model.backbone.block.cross is not None:
        how += ", and cross-attention"
    yield arrow(middle, bottom + 44, middle, bottom + 3)
    yield text(middle, bottom + 60, how, size=12, colour=SOFT)
    small = sum(described.parts.get(part, 0) for part in ("time", "prompt"))
    joined = Box(middle - 165, bottom + 76, 330, 40)
    yield rect(joined, "#ffffff", LINE, radius=10, width=1.2)
    yield text(
        middle, joined.y + 25, f"time of {model.schedule.steps:,} + condition: {count(small)} parameters", size=13
    )
    reader = Box(middle - 165, joined.bottom + 34, 330, 104)
    yield arrow(middle, reader.y - 3, middle, joined.bottom + 3)
    yield from draw_part(described, "text", reader)
    y = reader.bottom + 40
    yield from _cells(middle, y, TEXT, TEXT_EDGE, 7 if model.text.depth else 1)
    yield arrow(middle, y - 4, middle, reader.bottom + 3)
    words = Box(middle - 100, y + CELL + 16, 200, 44)
    yield rect(words, "#ffffff", LINE, radius=10, width=1.2)
    yield text(words.middle, words.y + 27, "a class" if not model.text.depth else "a red apple", size=14)


def _cells(middle: float, y: float, fill: str, edge: str, number: int = CELLS) -> Iterable[str]:
    for index in range(number):
        yield rect(Box(middle - (number * STEP - GAP) / 2 + index * STEP, y, CELL, CELL), fill, edge, 4, 1.2)
