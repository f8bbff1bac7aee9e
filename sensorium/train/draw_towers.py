"""The figure of a contrastive model: two towers, and the table of similarities that their vectors meet in."""

from __future__ import annotations

from collections.abc import Iterable

from sensorium.models.dual import Dual
from sensorium.train.describe import Description, count, part_configs
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

PAIRS = 5  # of the table
STEP = CELL + GAP


def draw_towers(described: Description, top: float) -> Iterable[str]:
    """Pictures on the left, texts on the right, their table above; pairs lie on its diagonal."""
    model = described.recipe.model
    assert isinstance(model, Dual.Config)
    kinds, side = list(model.encoders), PAIRS * STEP - GAP
    left, right = MARGIN + FIGURE * 0.27, MARGIN + FIGURE * 0.75
    table = Box(MARGIN + FIGURE / 2 - side / 2, top + 44, side, side)
    yield from _table(model, table)
    vectors = table.bottom + 46
    width = min(330.0, (FIGURE / 2 - 20) / len(kinds) - 10)
    for number, kind in enumerate(kinds):
        middle = left + (number - (len(kinds) - 1) / 2) * (width + 10)
        yield from _vectors(middle, vectors, ITEM, ITEM_EDGE, f"{kind} vectors of width {model.width}")
        yield from draw_column(described, kind, Box(middle - 45, 0, 90, 0), vectors + CELL + 46, width)
    yield from _vectors(right, vectors, TEXT, TEXT_EDGE, f"text vectors of width {model.width}")
    y = vectors + CELL + 46
    if "backbone" not in part_configs(model):
        yield text(right, y + 24, "texts are read by the connector's own stack", size=13, colour=SOFT)
        return
    head = described.parts.get("head", 0)
    stack = Box(right - 165, y, 330, 104)
    yield arrow(right, stack.y - 3, right, y - 36)
    yield from draw_part(described, "backbone", stack)
    y = stack.bottom + 40
    for index in range(7):
        x = right - 3.5 * STEP + index * STEP
        marked = {"first": index == 0, "last": index == 6, "mean": True}[model.text]
        yield rect(Box(x, y, CELL, CELL), ANSWER if marked else TEXT, ANSWER_EDGE if marked else TEXT_EDGE, 4, 1.2)
    yield arrow(right, y - 4, right, stack.bottom + 3)
    stands = {"first": "the first token stands", "last": "the token that ends it stands", "mean": "their mean stands"}
    yield text(right, y + CELL + 18, f"tokens of a text; {stands[model.text]} for it", size=12, colour=SOFT)
    box = Box(right - 100, y + CELL + 36, 200, 44)
    yield rect(box, "#ffffff", LINE, radius=10, width=1.2)
    yield text(box.middle, box.y + 27, "a cat with a hat", size=14)
    yield text(right, box.bottom + 22, f"projection, scale and bias: {count(head)} parameters", size=12, colour=SOFT)


def _vectors(middle: float, y: float, fill: str, edge: str, label: str) -> Iterable[str]:
    for index in range(PAIRS):
        yield rect(Box(middle - (PAIRS * STEP - GAP) / 2 + index * STEP, y, CELL, CELL), fill, edge, 4, 1.2)
    yield text(middle, y - 12, label, size=13, colour=edge, weight="bold")


def _table(model: Dual.Config, box: Box) -> Iterable[str]:
    for row in range(PAIRS):
        for column in range(PAIRS):
            pair = row == column
            cell = Box(box.x + column * STEP, box.y + row * STEP, CELL, CELL)
            yield rect(cell, ANSWER if pair else "#ffffff", ANSWER_EDGE if pair else LINE, radius=3, width=1.2)
    bias = "" if model.bias is None else f" {model.bias:+g}"
    scaled = f"scale x similarity{bias}, scale {model.scale:.3g} at first" if model.scale else f"similarity{bias}"
    says = f"{scaled}: pairs on the diagonal"
    yield text(box.middle, box.y - 14, says, size=13, colour=SOFT)
