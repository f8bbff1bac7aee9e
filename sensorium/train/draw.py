"""A recipe as a picture, like the figure of its paper: SVG without scripts, fonts or links.

From below: the item and its encoder, the connector, the token stream with item and text tokens interleaved, the
language backbone, the answer. Blue parts with a snowflake are frozen, orange ones with a flame train; a mark on each
part says so for every stage, and a card for each stage says it again with its numbers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from sensorium.train.describe import Description, StageView, count, describe, native, part_configs, size_of, summary
from sensorium.train.recipe import Recipe

WIDTH, MARGIN, FIGURE = 1240, 36, 800  # pixels; the figure's own width, the cards stand to its right
CELL, GAP = 24, 5  # of a token in the stream

INK, SOFT, LINE = "#1f2733", "#5b6675", "#9aa5b1"
FROZEN, FROZEN_EDGE = "#dcebf9", "#3b7dbd"
TRAINED, TRAINED_EDGE = "#ffe3c7", "#d9730d"
TEXT, TEXT_EDGE = "#eceff3", "#9aa5b1"
ITEM, ITEM_EDGE = "#d8cdf0", "#7a5fc0"
ANSWER, ANSWER_EDGE = "#cfeccf", "#3f9142"


@dataclass(frozen=True, slots=True)
class Box:
    """x, y of the upper left corner, width and height."""

    x: float
    y: float
    w: float
    h: float

    @property
    def middle(self) -> float:
        return self.x + self.w / 2

    @property
    def bottom(self) -> float:
        return self.y + self.h


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
    yield _text(MARGIN, 44, recipe.title, size=26, weight="bold", anchor="start")
    facts = ", ".join(filter(None, (f"{count(described.total)} parameters", f"size {recipe.size}", recipe.paper)))
    yield _text(MARGIN, 68, facts, size=14, colour=SOFT, anchor="start")


def _figure(described: Description, top: float) -> Iterable[str]:
    kinds = list(described.recipe.model.encoders)
    backbone = Box(MARGIN, top + 70, FIGURE, 104)
    stream = backbone.bottom + 52
    places = _stream_places(kinds)
    yield from _answer(places["answer"], top, backbone)
    yield from _part(described, "backbone", backbone)
    yield from _stream(described, places, stream, backbone)
    width = min(330.0, (FIGURE - 250) / len(kinds) - 20)
    for kind in kinds:
        yield from _column(described, kind, places[kind], stream + CELL + 40, width)
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
                yield _text(x + CELL / 2, y + CELL - 8, "...", size=16, colour=edge, weight="bold")
                continue
            yield _rect(Box(x, y, CELL, CELL), fill, edge, radius=4, width=1.2)
        yield _arrow(place.middle, y - 4, place.middle, backbone.bottom + 3)
        label = f"{described.tokens[name]:,} {name} tokens" if item else name
        if not item:
            yield _text(place.middle, y + CELL + 17, label, size=12, colour=SOFT)
        else:
            yield _text(place.middle + 8, y - 12, label, size=13, colour=edge, weight="bold", anchor="start")


def _answer(place: Box, top: float, backbone: Box) -> Iterable[str]:
    y = top + 8
    for index in range(5):
        yield _rect(Box(place.x + index * (CELL + GAP), y, CELL, CELL), ANSWER, ANSWER_EDGE, radius=4, width=1.2)
    yield _text(place.x - 12, y + 16, "answer, predicted token by token: the loss", size=13, colour=SOFT, anchor="end")
    yield _arrow(place.middle, backbone.y - 3, place.middle, y + CELL + 5)


def _column(described: Description, kind: str, place: Box, y: float, width: float) -> Iterable[str]:
    """Connector, encoder and item of one kind, from above, under their tokens."""
    x = min(max(MARGIN, place.middle - width / 2), MARGIN + FIGURE - width)
    connector = Box(x + width * 0.08, y, width * 0.84, 80)
    encoder = Box(x, connector.bottom + 38, width, 96)
    config = described.recipe.model.encoders[kind]
    grid = config.grid(native(config))
    yield _arrow(place.middle, connector.y - 3, place.middle, y - 36)
    yield from _part(described, f"connectors.{kind}", connector)
    yield _arrow(encoder.middle, encoder.y - 3, encoder.middle, connector.bottom + 4)
    views = f"{grid.views} views x " if grid.views > 1 else ""
    features = f"{views}{grid.rows * grid.cols} features of {config.width}"
    yield _text(encoder.middle + 10, encoder.y - 15, features, size=12, colour=SOFT, anchor="start")
    yield from _part(described, f"encoders.{kind}", encoder, trapezoid=True)
    item = Box(encoder.middle - 46, encoder.bottom + 36, 92, 70)
    yield _arrow(encoder.middle, item.y - 3, encoder.middle, encoder.bottom + 4)
    yield from _picture(item, grid.tiles)
    if grid.tiles is not None:
        yield from _picture(Box(item.x - 62, item.bottom - 32, 42, 32), None)
        yield _text(item.x - 10, item.bottom - 10, "+", size=15, colour=SOFT)
    shape = native(config)
    side = config.transform.size
    size = f"{side} x {side} pixels"
    if grid.tiles is not None:
        size = f"up to {shape[1]} x {shape[0]} pixels: a thumbnail and {grid.views - 1} tiles of {side}"
    yield _text(item.middle, item.bottom + 20, size, size=12, colour=SOFT)


def _words(place: Box, y: float) -> Iterable[str]:
    """The question in words, under its tokens."""
    box = Box(min(place.x + 46, MARGIN + FIGURE - 200), y + 26, 200, 44)  # right of the connector before it
    yield _arrow(place.middle, box.y - 3, place.middle, y - 12)
    yield _rect(box, "#ffffff", LINE, radius=10, width=1.2)
    yield _text(box.middle, box.y + 27, "What is in the picture?", size=14)
    yield _text(box.middle, box.bottom + 18, "word embeddings", size=12, colour=SOFT)


def _part(described: Description, part: str, box: Box, trapezoid: bool = False) -> Iterable[str]:
    """A part's box: name, what it is, parameters, and for each stage whether it trains."""
    trains = [bool(view.parts.get(part, (0, 0))[0]) for view in described.stages]
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
        yield _rect(box, fill, edge, radius=10, width=1.6)
    config = part_configs(described.recipe.model)[part]
    kind, _, facts = summary(config).partition(": ")
    room, _, item = part.partition(".")
    title = {"encoders": f"{item.capitalize()} encoder ({kind})", "connectors": f"Connector ({kind})"}.get(
        room, "Language backbone"
    )
    lines = textwrap.wrap(facts, max(24, int((box.w - 40) / 6.1)))[:2]
    amount = f"{count(described.parts.get(part, 0))} parameters"
    y = box.y + (box.h - 18 * (1 + len(lines)) - 16) / 2 + 12
    yield _text(box.middle, y, title, size=15, weight="bold")
    for line in lines:
        y += 17
        yield _text(box.middle, y, line, size=12, colour=SOFT)
    yield _text(box.middle, y + 19, amount, size=13, colour=edge, weight="bold")
    right = box.x + box.w - (box.w * 0.05 if trapezoid else 0)
    for index, learning in enumerate(trains):
        x = right - 18 - 24 * (len(trains) - 1 - index)
        yield from _mark(x, box.y, str(index + 1), learning)
    lora = described.parts.get(f"{part}.lora")
    if lora is not None:
        chip = Box(box.x + box.w - 152, box.bottom - 36, 136, 24)
        yield _rect(chip, TRAINED, TRAINED_EDGE, radius=6, width=1.2)
        yield from _flame(chip.x + 15, chip.y + 12, TRAINED_EDGE)
        yield _text(chip.x + 28, chip.y + 16, f"LoRA  {count(lora)}", size=12, anchor="start")


def _mark(x: float, y: float, label: str, trained: bool) -> Iterable[str]:
    """The badge of one stage on the edge of a part."""
    edge = TRAINED_EDGE if trained else FROZEN_EDGE
    yield f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="#ffffff" stroke="{edge}" stroke-width="1.6"/>'
    yield _text(x, y + 4, label, size=11, colour=edge, weight="bold")


def _picture(box: Box, tiles: tuple[int, int] | None) -> Iterable[str]:
    """A landscape, cut into tiles where the encoder sees tiles."""
    x, y, w, h = box.x, box.y, box.w, box.h
    yield _rect(box, "#eaf4fb", INK, radius=3, width=1.4)
    yield f'<circle cx="{x + w * 0.76:g}" cy="{y + h * 0.27:g}" r="{h * 0.12:g}" fill="#f2c14e"/>'
    near = f"M{x + 1:g},{y + h - 1:g} L{x + w * 0.33:g},{y + h * 0.38:g} L{x + w * 0.66:g},{y + h - 1:g} Z"
    far = f"M{x + w * 0.4:g},{y + h - 1:g} L{x + w * 0.7:g},{y + h * 0.55:g} L{x + w - 1:g},{y + h - 1:g} Z"
    yield f'<path d="{far}" fill="#a3c9a8"/><path d="{near}" fill="#6a9c78"/>'
    rows, cols = tiles or (1, 1)
    for row in range(1, rows):
        yield _line(x, y + h * row / rows, x + w, y + h * row / rows, INK)
    for col in range(1, cols):
        yield _line(x + w * col / cols, y, x + w * col / cols, y + h, INK)


# ---- cards of stages


def _card_height(view: StageView) -> float:
    return 98 + 26 * len(_rows(view)) + 16 * len(_published(view))


def _rows(view: StageView) -> list[str]:
    return [part for part in view.parts if not part.endswith(".lora")] + [p for p in view.parts if p.endswith(".lora")]


def _published(view: StageView) -> list[str]:
    return textwrap.wrap(f"published: {view.stage.published}", 47) if view.stage.published else []


def _card(described: Description, view: StageView, number: int, box: Box) -> Iterable[str]:
    yield _rect(box, "#fafbfc", LINE, radius=10, width=1)
    yield _text(box.x + 16, box.y + 28, f"{number}  {view.name}", size=17, weight="bold", anchor="start")
    y = box.y + 44
    for part in _rows(view):
        trained, every = view.parts[part]
        fill, edge = (TRAINED, TRAINED_EDGE) if trained else (FROZEN, FROZEN_EDGE)
        yield _rect(Box(box.x + 16, y, box.w - 32, 21), fill, edge, radius=5, width=1)
        yield from (_flame if trained else _snowflake)(box.x + 29, y + 10.5, edge)
        yield _text(box.x + 44, y + 15, part, size=12, anchor="start")
        if trained:
            rate = f"lr {_rate(view, part)}"
            yield _text(box.x + box.w - 96, y + 15, rate, size=12, colour=SOFT, anchor="end")
        yield _text(box.x + box.w - 24, y + 15, count(every), size=12, colour=edge, anchor="end", weight="bold")
        y += 26
    y += 16
    yield _text(box.x + 16, y, f"trains {count(view.trained)}, frozen {count(view.frozen)}", size=13, anchor="start")
    lines = []
    if view.cost is not None:
        flops, memory = count(view.cost.flops.training), size_of(view.cost.memory.total)
        lines.append(f"{flops} FLOPs a sample, about {memory}")
    for line in lines:
        y += 18
        yield _text(box.x + 16, y, line, size=12, colour=SOFT, anchor="start")
    y += 4
    for line in _published(view):
        y += 16
        yield _text(box.x + 16, y, line, size=12, colour=SOFT, anchor="start", style="italic")


def _rate(view: StageView, part: str) -> str:
    """The peak learning rate of a part: 2e-5."""
    return f"{view.stage.lr_of(f'{part}.x'):.1e}".replace(".0e", "e").replace("e-0", "e-")


def _legend(y: float) -> Iterable[str]:
    x = float(MARGIN)
    for draw, edge, text in ((_snowflake, FROZEN_EDGE, "frozen"), (_flame, TRAINED_EDGE, "trains")):
        yield from draw(x + 8, y - 4, edge)
        yield _text(x + 22, y, text, size=12, colour=SOFT, anchor="start")
        x += 84
    notes = "numbers on a part: blue where that stage leaves it frozen, orange where it trains"
    yield _text(x, y, notes, size=12, colour=SOFT, anchor="start")


def _snowflake(x: float, y: float, colour: str) -> Iterable[str]:
    arm = "M0,0 L0,-7 M0,-4.5 L-2,-6.3 M0,-4.5 L2,-6.3"
    arms = "".join(f'<path d="{arm}" transform="rotate({angle})"/>' for angle in range(0, 360, 60))
    yield f'<g transform="translate({x:g},{y:g})" stroke="{colour}" stroke-width="1.3" fill="none">{arms}</g>'


def _flame(x: float, y: float, colour: str) -> Iterable[str]:
    outer = (
        "M0,-8 C1,-4 5,-3 5,2 C5,6 2.5,7.5 0,7.5 C-2.5,7.5 -5,6 -5,2 C-5,-0.5 -3.5,-1.5 -2.8,-3.5 "
        "C-1.5,-2.5 -0.6,-4.5 0,-8 Z"
    )
    inner = "M0,0.5 C1,2 2.4,2.6 2.4,4.6 C2.4,6.3 1.2,7 0,7 C-1.2,7 -2.4,6.3 -2.4,4.6 C-2.4,2.8 -0.6,2.2 0,0.5 Z"
    paths = f'<path d="{outer}" fill="{colour}"/><path d="{inner}" fill="#ffd9a0"/>'
    yield f'<g transform="translate({x:g},{y:g})">{paths}</g>'


# ---- shapes


def _rect(box: Box, fill: str, edge: str, radius: float, width: float) -> str:
    return (
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.w:g}" height="{box.h:g}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{edge}" stroke-width="{width:g}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.2"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """An upright arrow from (x1, y1) up to (x2, y2)."""
    head = f"M{x2 - 4:g},{y2 + 7:g} L{x2:g},{y2:g} L{x2 + 4:g},{y2 + 7:g} Z"
    return _line(x1, y1, x2, y2 + 6, SOFT) + f'<path d="{head}" fill="{SOFT}"/>'


def _text(
    x: float, y: float, text: str, *, size: float, colour: str = INK, weight: str = "normal", anchor: str = "middle",
    style: str = "normal",
) -> str:  # fmt: skip
    extra = f" font-weight={quoteattr(weight)}" if weight != "normal" else ""
    extra += f" font-style={quoteattr(style)}" if style != "normal" else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"'
    return f"<text {place}{extra}>{escape(text)}</text>"
