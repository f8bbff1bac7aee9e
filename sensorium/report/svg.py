"""Small charts as inline SVG: no script, no library, colours from the page's CSS classes. All text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Point = tuple[float, float]
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 520, 58, 14, 12, 44


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order; a y that is not finite breaks the line. `style` is a CSS class of the page."""

    points: Sequence[Point]
    style: str = "c0"
    kind: Literal["line", "dots"] = "line"


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], about `target` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; with their 2 and 5 when there are few, evenly spaced when fewer still."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**power for power in powers if low * 0.999 <= 10.0**power <= high * 1.001]
    if len(inside) > 6:
        return inside[:: math.ceil(len(inside) / 6)]
    if len(inside) >= 3:
        return inside
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    fine = [float(f"{tick:.6g}") for tick in fine if low * 0.999 <= tick <= high * 1.001]
    return fine if len(fine) >= 2 else ticks(low, high)


def tick_label(value: float) -> str:
    """0.25, 3, 1,500, 12k, 5e-4."""
    size = abs(value)
    if size and size < 1e-2:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1e3:g}k" if size < 1e6 else f"{value / 1e6:g}M"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def wants_log(values: Sequence[float], ratio: float = 8.0) -> bool:
    """Whether a curve spans so much that a linear axis would hide its end."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > ratio


class Axis:
    """Maps numbers to pixels along one direction, linearly or by their logarithm."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool, pad: float) -> None:
        low, high = min(values), max(values)
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):  # a constant: give it room on both sides
            room = (abs(low) or 1.0) * 0.5 if not log else 0.5
            low, high = low - room, high + room
        self.low, self.high = low - pad * (high - low), high + pad * (high - low)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            return log_ticks(10.0**self.low, 10.0**self.high)
        return ticks(self.low, self.high)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    height: int = 250,
    log: bool = False,
    bad: Sequence[float] = (),
) -> Markup:
    """A chart with axes, ticks and labels. `bad`: x of points that have no finite y, marked at the upper edge.

    On a logarithmic axis points that are not positive break the line. Without any point to draw, a chart that says so.
    """
    usable = [point for line in lines for point in line.points if _drawable(point[1], log)]
    if not usable:
        text = text_at(WIDTH / 2, height / 2, "nothing to draw", "middle")
        return framed(WIDTH, height, title, [text], "chart")
    xs = [point[0] for line in lines for point in line.points] + list(bad)
    if 0 < min(xs) <= 0.1 * max(xs):
        xs.append(0.0)  # an axis that starts at 0 reads easier than one that starts at 1
    bottom = height - BOTTOM
    x = Axis(xs, LEFT, WIDTH - RIGHT, False, 0.0)
    y = Axis([point[1] for point in usable], bottom, TOP, log, 0.05)
    parts = [
        _grid(x, y, bottom),
        text_at((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "label"),
        f'<text class="label" text-anchor="middle" transform="translate(11 {(TOP + bottom) / 2:.1f}) rotate(-90)">'
        f"{escape(y_label)}</text>",
    ]
    parts += [_draw(line, x, y, log) for line in lines]
    parts += [_cross(x(place), TOP + 5) for place in bad]
    return framed(WIDTH, height, title, parts, "chart")


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _grid(x: Axis, y: Axis, bottom: float) -> str:
    parts = []
    for tick in y.ticks():
        height = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text_at(LEFT - 7, height + 4, tick_label(tick), "end"))
    for tick in x.ticks():
        if float(tick).is_integer():  # steps are whole
            place = x(tick)
            parts.append(f'<path class="axis" d="M{place:.1f} {bottom}v5"/>')
            parts.append(text_at(place, bottom + 18, tick_label(tick), "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _draw(line: Line, x: Axis, y: Axis, log: bool) -> str:
    placed = [(x(px), y(py)) if _drawable(py, log) else None for px, py in line.points]
    if line.kind == "dots":
        dots = "".join(f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="3"/>' for p in placed if p)
        return f'<g class="{escape(line.style)} dots">{dots}</g>'
    path, pen_down = [], False
    for place, following in zip(placed, [*placed[1:], None]):
        if place is not None:
            path.append(f"{'L' if pen_down else 'M'}{place[0]:.1f} {place[1]:.1f}")
            if not pen_down and following is None:
                path.append("h0.01")  # a point between two gaps is still seen, by its round line cap
        pen_down = place is not None
    return f'<path class="line {escape(line.style)}" d="{"".join(path)}"/>'


def _cross(x: float, y: float) -> str:
    return f'<path class="bad" d="M{x - 3.5:.1f} {y - 3.5}l7 7m0 -7l-7 7"/>'


def interval_bar(
    score: float,
    low: float,
    high: float,
    blind: float | None = None,
    chance: float | None = None,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    words: Callable[[float], str] = lambda value: f"{value:.1%}",
) -> Markup:
    """A score within `scale` with its interval as a whisker, blind as a diamond and chance as a dashed line."""
    width, height, middle, edge = 240, 30, 15, 6
    first, last = scale
    span = last - first or 1.0

    def at(value: float) -> float:
        return edge + (min(max(value, first), last) - first) / span * (width - 2 * edge)

    parts = [f'<path class="grid" d="M{at(first + span * tick / 4):.1f} 4V{height - 4}"/>' for tick in range(5)]
    start, end = sorted((at(max(first, min(0.0, last))), at(score)))
    parts.append(f'<rect class="bar" x="{start:.1f}" y="{middle - 6}" width="{end - start:.1f}" height="12" rx="2"/>')
    title = f"score {words(score)}, interval {words(low)} to {words(high)}"
    if chance is not None:
        parts.append(f'<path class="chance" d="M{at(chance):.1f} 3V{height - 3}"/>')
        title += f", chance {words(chance)}"
    whisker = f"M{at(low):.1f} {middle}H{at(high):.1f}M{at(low):.1f} {middle - 4}v8M{at(high):.1f} {middle - 4}v8"
    parts.append(
        f'<path class="whisker" d="{whisker}"/><circle class="score" cx="{at(score):.1f}" cy="{middle}" r="3"/>'
    )
    if blind is not None:
        parts.append(diamond(at(blind), middle))
        title += f", blind {words(blind)}"
    return framed(width, height, title, parts, "interval")


def diamond(x: float, y: float) -> str:
    """The mark of the blind control."""
    return f'<path class="blind" d="M{x:.1f} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>'


def stacked_bar(parts: Sequence[tuple[str, float]], title: str) -> Markup:
    """Shares of a whole, one after the other; (name, amount) in order. Colours are the classes c0, c1, ..."""
    total = sum(amount for _, amount in parts) or 1.0
    drawn, start = [], 0.0
    for number, (name, amount) in enumerate(parts):
        width = amount / total * 1000
        drawn.append(
            f'<rect class="share c{number % 8}" x="{start:.2f}" y="0" width="{width:.2f}" height="22">'
            f"<title>{escape(name)}</title></rect>"
        )
        start += width
    return framed(1000, 22, title, drawn, "stacked", stretch=True)


def text_at(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def framed(width: int, height: int, title: str, parts: Sequence[str], style: str, stretch: bool = False) -> Markup:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    head = f'<svg class="{style}" viewBox="0 0 {width} {height}"{ratio} role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>")
