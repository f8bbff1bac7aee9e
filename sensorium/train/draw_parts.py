"""Parts of a drawing: a part's box, and the column of item, encoder and connector."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from sensorium.codecs.base import Codec
from sensorium.models.denoiser import Denoiser
from sensorium.train.describe import Description, StageView, count, native, part_configs, summary
from sensorium.train.shapes import (
    FIGURE,
    FROZEN,
    FROZEN_EDGE,
    MARGIN,
    SOFT,
    TRAINED,
    TRAINED_EDGE,
    Box,
    arrow,
    flame,
    mark,
    picture,
    rect,
    snowflake,
    text,
)


def draw_column(described: Description, kind: str, place: Box, y: float, width: float) -> Iterable[str]:
    """Connector, encoder and item of one kind, from above, under their tokens; a codec has no connector above it."""
    x = min(max(MARGIN, place.middle - width / 2), MARGIN + FIGURE - width)
    connector = Box(x + width * 0.08, y, width * 0.84, 80)
    encoder = Box(x, connector.bottom + 38, width, 96)
    model = described.recipe.model
    config = model.readers[kind]
    grid = config.grid(native(config))
    yield arrow(place.middle, connector.y - 3, place.middle, y - 36)
    if isinstance(config, Codec.Config):
        encoder = Box(x, y, width, 96)
    else:
        yield from draw_part(described, f"connectors.{kind}", connector)
        yield arrow(encoder.middle, encoder.y - 3, encoder.middle, connector.bottom + 4)
        views = f"{grid.views} views x " if grid.views > 1 else ""
        features = f"{views}{grid.rows * grid.cols} features of {config.width}"
        yield text(encoder.middle + 10, encoder.y - 15, features, size=12, colour=SOFT, anchor="start")
    room = "codecs" if model.coded(kind) else "encoders"
    yield from draw_part(described, f"{room}.{kind}", encoder, trapezoid=True)
    item = Box(encoder.middle - 46, encoder.bottom + 36, 92, 70)
    yield arrow(encoder.middle, item.y - 3, encoder.middle, encoder.bottom + 4)
    yield from picture(item, grid.tiles)
    if grid.tiles is not None:
        yield from picture(Box(item.x - 62, item.bottom - 32, 42, 32), None)
        yield text(item.x - 10, item.bottom - 10, "+", size=15, colour=SOFT)
    shape = native(config)
    side = config.transform.size
    size = f"{config.transform.view[1]} x {side} pixels"
    if grid.tiles is not None:
        size = f"up to {shape[1]} x {shape[0]} pixels: a thumbnail and {grid.views - 1} tiles of {side}"
    yield text(item.middle, item.bottom + 20, size, size=12, colour=SOFT)


def draw_part(described: Description, part: str, box: Box, trapezoid: bool = False) -> Iterable[str]:
    """A part's box: name, what it is, parameters, and for each stage whether it trains."""
    trains = [_trains(described, view, part) for view in described.stages]
    fill, edge = (TRAINED, TRAINED_EDGE) if any(trains) else (FROZEN, FROZEN_EDGE)
    if trapezoid:
        inset = box.w * 0.08
        corners = [
            (box.x + inset, box.y),
            (box.x + box.w - inset, box.y),
            (box.x + box.w, box.bottom),
            (box.x, box.bottom),
        ]
        points = " ".join(f"{x:g},{y:g}" for x, y in corners)
        yield f'<polygon points="{points}" fill="{fill}" stroke="{edge}" stroke-width="1.6" stroke-linejoin="round"/>'
    else:
        yield rect(box, fill, edge, radius=10, width=1.6)
    config = part_configs(described.recipe.model)[part]
    kind, _, facts = summary(config).partition(": ")
    room, _, item = part.partition(".")
    model = described.recipe.model
    stack = "Language backbone" if model.speaks else "Text tower"
    if isinstance(model, Denoiser.Config):
        stack = "Denoising stack"
    title = {"encoders": f"{item.capitalize()} encoder ({kind})", "connectors": f"Connector ({kind})",
             "codecs": f"{item.capitalize()} codec ({kind})",
             "text": "Text stack" if getattr(config, "depth", 1) else "Labels"}.get(room, stack)  # fmt: skip
    if room == "generators":
        title = f"Output connector ({kind})" if item.endswith(".connector") else "Denoiser"
    lines = textwrap.wrap(facts, max(24, int((box.w - 40) / 6.1)))[:2]
    amount = f"{count(described.parts.get(part, 0))} parameters"
    y = box.y + (box.h - 18 * (1 + len(lines)) - 16) / 2 + 12
    yield text(box.middle, y, title, size=15, weight="bold")
    for line in lines:
        y += 17
        yield text(box.middle, y, line, size=12, colour=SOFT)
    yield text(box.middle, y + 19, amount, size=13, colour=edge, weight="bold")
    right = box.x + box.w - (box.w * 0.05 if trapezoid else 0)
    for index, learning in enumerate(trains):
        x = right - 18 - 24 * (len(trains) - 1 - index)
        yield from mark(x, box.y, str(index + 1), learning)
    yield from _added(described, part, box)


def _trains(described: Description, view: StageView, part: str) -> bool:
    """Whether a part of the model trains in a stage, which may be of a wiring within it."""
    inside = described.recipe.inside(view.stage)
    return view.trained > 0 if inside == part else not inside and view.parts.get(part, (0, 0))[0] > 0


ADDED = {"lora": "LoRA", "cross": "cross-attention", "routes": "weights of other routes"}
"""What stands beside a published stack, by the last word of its part's name."""


def _added(described: Description, part: str, box: Box) -> Iterable[str]:
    """A chip in a part's box for each thing that the design adds to it."""
    right = box.x + box.w - 16
    for word, label in ADDED.items():
        name = f"{part}.{word}"
        amount = described.parts.get(name)
        if amount is None:
            continue
        learns = any(view.parts.get(name, (0, 0))[0] for view in described.stages)
        fill, edge = (TRAINED, TRAINED_EDGE) if learns else (FROZEN, FROZEN_EDGE)
        words = f"{label}  {count(amount)}"
        chip = Box(right - 42 - 6.4 * len(words), box.bottom - 36, 42 + 6.4 * len(words), 24)
        yield rect(chip, fill, edge, radius=6, width=1.2)
        yield from (flame if learns else snowflake)(chip.x + 15, chip.y + 12, edge)
        yield text(chip.x + 28, chip.y + 16, words, size=12, anchor="start")
        right = chip.x - 8
