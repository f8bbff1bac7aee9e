"""A recipe as a picture, like the figure of its paper: SVG without scripts, fonts or links.

From below: the item and its encoder, the connector, the token stream with item and text tokens interleaved, the
language backbone, the answer. Blue parts with a snowflake are frozen, orange ones with a flame train; a mark on each
part says so for every stage, and a card for each stage says it again with its numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from xml.sax.saxutils import escape

from sensorium.models.denoiser import Denoiser
from sensorium.models.dual import Dual
from sensorium.train.describe import Description, StageView, count, describe, native, size_of
from sensorium.train.draw_denoiser import draw_denoiser
from sensorium.train.draw_generators import TALL, draw_generators
from sensorium.train.draw_parts import draw_column, draw_part
from sensorium.train.draw_towers import draw_towers
from sensorium.train.recipe import Recipe
from sensorium.train.shapes import (
    ANSWER,
    ANSWER_EDGE,
    CELL,
    FIGURE,
    FROZEN,
    FROZEN_EDGE,
    GAP,
    ITEM,
    ITEM_EDGE,
    LINE,
    MARGIN,
    SOFT,
    TEXT,
    TEXT_EDGE,
    TRAINED,
    TRAINED_EDGE,
    WIDTH,
    Box,
    arrow,
    flame,
    rect,
    snowflake,
    text,
)


def draw_svg(recipe: Recipe | Description) -> str:
    """The architecture of a recipe, or of its description, as an SVG document."""
    described = recipe if isinstance(recipe, Description) else describe(recipe)
    cards = [_card_height(view) for view in described.stages]
    height = max(800, 96 + sum(cards) + 18 * len(cards) + MARGIN)
    body = [*_header(described), *_figure(described, top=96), *_legend(height - 24)]
    y = 96
    for number, (view, tall) in enumerate(zip(described.stages, cards, strict=True), 1):
        body += _card(described, view, number, Box(MARGIN + FIGURE + 34, y, WIDTH - FIGURE - 2 * MARGIN - 34, tall))
        y += tall + 18
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            f"<title>{escape(described.recipe.title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


# ---- the figure


def _header(described: Description) -> Iterable[str]:
    recipe = described.recipe
    yield text(MARGIN, 44, recipe.title, size=26, weight="bold", anchor="start")
    facts = ", ".join(filter(None, (f"{count(described.total)} parameters", f"size {recipe.size}", recipe.paper)))
    yield text(MARGIN, 68, facts, size=14, colour=SOFT, anchor="start")


def _figure(described: Description, top: float) -> Iterable[str]:
    if isinstance(described.recipe.model, Dual.Config):
        yield from draw_towers(described, top)
        return
    if isinstance(described.recipe.model, Denoiser.Config):
        yield from draw_denoiser(described, top)
        return
    kinds = list(described.recipe.model.readers)
    made = TALL * len(getattr(described.recipe.model, "generators", {}))
    yield from draw_generators(described, top, _stream_places(kinds)["answer"])
    top += made
    backbone = Box(MARGIN, top + 70, FIGURE, 104)
    stream = backbone.bottom + 52
    places = _stream_places(kinds)
    yield from _answer(places["answer"], top, backbone)
    yield from draw_part(described, "backbone", backbone)
    yield from _stream(described, places, stream, backbone)
    width = min(330.0, (FIGURE - 250) / max(len(kinds), 1) - 20)
    for kind in kinds:
        yield from draw_column(described, kind, places[kind], stream + CELL + 40, width)
    yield from _words(places["question"], stream + CELL + 40)


def _stream_places(kinds: list[str]) -> dict[str, Box]:
    """Where each run of the token stream lies; y and h are not used."""
    runs = [("prompt", 3), *((kind, 9) for kind in kinds), ("question", 5), ("answer", 5)]
    step = CELL + GAP
    x = MARGIN + (FIGURE - step * sum(number for _, number in runs) - 14 * (len(runs) - 1)) / 2
    places = {}
    for name, number in runs:
        places[name] = Box(x, 0, number * step - GAP, CELL)
        x += number * step + 14
    return places


def _stream(described: Description, places: dict[str, Box], y: float, backbone: Box) -> Iterable[str]:
    for name, place in places.items():
        item = name in described.tokens
        fill, edge = (ITEM, ITEM_EDGE) if item else (ANSWER, ANSWER_EDGE) if name == "answer" else (TEXT, TEXT_EDGE)
        number = round((place.w + GAP) / (CELL + GAP))
        for index in range(number):
            x = place.x + index * (CELL + GAP)
            if item and index == number // 2:
                yield text(x + CELL / 2, y + CELL - 8, "...", size=16, colour=edge, weight="bold")
                continue
            yield rect(Box(x, y, CELL, CELL), fill, edge, radius=4, width=1.2)
        yield arrow(place.middle, y - 4, place.middle, backbone.bottom + 3)
        label = f"{described.tokens[name]:,} {name} tokens{_how(described, name)}" if item else name
        if not item:
            yield text(place.middle, y + CELL + 17, label, size=12, colour=SOFT)
        else:
            yield text(place.middle + 8, y - 12, label, size=13, colour=edge, weight="bold", anchor="start")


def _how(described: Description, kind: str) -> str:
    """How the tokens of a kind are read, where they do not simply stand in the stream."""
    model = described.recipe.model
    plan = model.plan(kind, native(model.readers[kind]))
    if plan.mode == "token":
        return ", read and said"
    return " as memory" if plan.mode == "memory" else ", routed" if plan.route else ""


def _answer(place: Box, top: float, backbone: Box) -> Iterable[str]:
    y = top + 8
    for index in range(5):
        yield rect(Box(place.x + index * (CELL + GAP), y, CELL, CELL), ANSWER, ANSWER_EDGE, radius=4, width=1.2)
    yield text(place.x - 12, y + 16, "answer, predicted token by token: the loss", size=13, colour=SOFT, anchor="end")
    yield arrow(place.middle, backbone.y - 3, place.middle, y + CELL + 5)


def _words(place: Box, y: float) -> Iterable[str]:
    """The question in words, under its tokens."""
    box = Box(min(place.x + 46, MARGIN + FIGURE - 200), y + 26, 200, 44)  # right of the connector before it
    yield arrow(place.middle, box.y - 3, place.middle, y - 12)
    yield rect(box, "#ffffff", LINE, radius=10, width=1.2)
    yield text(box.middle, box.y + 27, "What is in the picture?", size=14)
    yield text(box.middle, box.bottom + 18, "word embeddings", size=12, colour=SOFT)


# ---- cards of stages


def _card_height(view: StageView) -> float:
    return 98 + 26 * len(_rows(view)) + 16 * len(_published(view))


def _rows(view: StageView) -> list[str]:
    return [part for part in view.parts if not part.endswith(".lora")] + [p for p in view.parts if p.endswith(".lora")]


def _published(view: StageView) -> list[str]:
    return textwrap.wrap(f"published: {view.stage.published}", 47) if view.stage.published else []


def _card(described: Description, view: StageView, number: int, box: Box) -> Iterable[str]:
    yield rect(box, "#fafbfc", LINE, radius=10, width=1)
    yield text(box.x + 16, box.y + 28, f"{number}  {view.name}", size=17, weight="bold", anchor="start")
    y = box.y + 44
    for part in _rows(view):
        trained, every = view.parts[part]
        fill, edge = (TRAINED, TRAINED_EDGE) if trained else (FROZEN, FROZEN_EDGE)
        yield rect(Box(box.x + 16, y, box.w - 32, 21), fill, edge, radius=5, width=1)
        yield from (flame if trained else snowflake)(box.x + 29, y + 10.5, edge)
        yield text(box.x + 44, y + 15, part, size=12, anchor="start")
        if trained:
            rate = f"lr {_rate(view, part)}"
            yield text(box.x + box.w - 96, y + 15, rate, size=12, colour=SOFT, anchor="end")
        yield text(box.x + box.w - 24, y + 15, count(every), size=12, colour=edge, anchor="end", weight="bold")
        y += 26
    y += 16
    yield text(box.x + 16, y, f"trains {count(view.trained)}, frozen {count(view.frozen)}", size=13, anchor="start")
    lines = []
    if view.cost is not None:
        flops, memory = count(view.cost.flops.training), size_of(view.cost.memory.total)
        lines.append(f"{flops} FLOPs a sample, about {memory}")
    for line in lines:
        y += 18
        yield text(box.x + 16, y, line, size=12, colour=SOFT, anchor="start")
    y += 4
    for line in _published(view):
        y += 16
        yield text(box.x + 16, y, line, size=12, colour=SOFT, anchor="start", style="italic")


def _rate(view: StageView, part: str) -> str:
    """The peak learning rate of a part: 2e-5."""
    return f"{view.stage.lr_of(f'{part}.x'):.1e}".replace(".0e", "e").replace("e-0", "e-")


def _legend(y: float) -> Iterable[str]:
    x = float(MARGIN)
    for sign, edge, words in ((snowflake, FROZEN_EDGE, "frozen"), (flame, TRAINED_EDGE, "trains")):
        yield from sign(x + 8, y - 4, edge)
        yield text(x + 22, y, words, size=12, colour=SOFT, anchor="start")
        x += 84
    notes = "numbers on a part: blue where that stage leaves it frozen, orange where it trains"
    yield text(x, y, notes, size=12, colour=SOFT, anchor="start")
