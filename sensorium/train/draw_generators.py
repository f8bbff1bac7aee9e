"""The figure's top row for a model that has generators: signals go up, a picture comes out on the left."""

from __future__ import annotations

from collections.abc import Iterable

from sensorium.train.describe import Description
from sensorium.train.draw_parts import draw_part
from sensorium.train.shapes import FIGURE, MARGIN, SOFT, Box, arrow, line, picture, text

TALL = 148
"""Height of the row of one generator."""


def draw_generators(described: Description, top: float, answer: Box) -> Iterable[str]:
    """A row for each generator: output connector on the right, over the answer; left of it denoiser and picture."""
    generators = getattr(described.recipe.model, "generators", {})
    for row, (kind, one) in enumerate(generators.items()):
        y = top + row * TALL
        width = FIGURE * 0.4
        connector = Box(MARGIN + FIGURE - width, y, width, 96)
        denoiser = Box(connector.x - 40 - width, y, width, 96)
        made = Box(MARGIN, y + 13, denoiser.x - 36 - MARGIN, 70)
        yield from draw_part(described, f"generators.{kind}.connector", connector)
        yield from draw_part(described, f"generators.{kind}.denoiser", denoiser)
        yield from picture(made, None)
        for right, left in ((connector.x, denoiser.x + width), (denoiser.x, made.x + made.w)):
            at, end = y + 48, left + 6
            yield line(right - 3, at, end, at, SOFT)
            yield f'<path d="M{end + 7:g},{at - 4:g} L{end:g},{at:g} L{end + 7:g},{at + 4:g} Z" fill="{SOFT}"/>'
        yield arrow(answer.middle, top + len(generators) * TALL + 2, answer.middle, connector.bottom + 3)
        told = f"states of {one.signals.count} signal tokens become {one.tokens} tokens of condition"
        yield text(answer.middle - 12, connector.bottom + 24, told, size=12, colour=SOFT, anchor="end")
