"""Boxes of an answer, drawn on the picture that was asked about."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sensorium.data.boxes import FoundBox

COLOURS = ("#e6194b", "#2f6fde", "#1a9850", "#f58231", "#911eb4", "#008080", "#c2185b", "#6d4c41")
SMALLEST, LARGEST = 480, 1280
"""Longer side in pixels: a smaller picture is enlarged, so that lines do not cover it, a larger one reduced."""


def draw_boxes(picture: Image.Image, boxes: Sequence[FoundBox]) -> Image.Image:
    """A copy of an RGB picture with every box outlined, and its name, or its number where it has none.

    Boxes with the same name have the same colour. The copy's longer side has 480 to 1,280 pixels.
    """
    longer = max(picture.size)
    scale = max(SMALLEST / longer, 1.0) if longer < SMALLEST else min(LARGEST / longer, 1.0)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    drawn = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(max(width, height) / 200))
    font = ImageFont.load_default(size=max(14, round(max(width, height) / 30)))
    colours: dict[str, str] = {}
    tags: list[tuple[tuple[float, float], str, str]] = []
    for number, found in enumerate(boxes, start=1):
        tag = _tag(found.label, number, len(boxes))
        colour = colours.setdefault(found.label or tag, COLOURS[len(colours) % len(COLOURS)])
        x0, y0, x1, y1 = found.box
        corners = (x0 * (width - 1), y0 * (height - 1), x1 * (width - 1), y1 * (height - 1))
        pen.rectangle(corners, outline=colour, width=line)
        tags.append(((corners[0], corners[1]), tag, colour))
    for corner, tag, colour in tags:  # above all lines
        if tag:
            _write(pen, corner, tag, colour, font, drawn.size)
    return drawn


def _tag(label: str | None, number: int, count: int) -> str:
    """A name that the built-in font has the letters for, else the number; nothing for a single box without a name."""
    if label and all(letter.isprintable() and ord(letter) < 0x250 for letter in label):
        return label if len(label) <= 40 else label[:39] + "…"
    return str(number) if count > 1 or label else ""


def _write(
    pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: tuple[int, int],
) -> None:  # fmt: skip
    """A tag above the upper left corner of a box; within the picture where there is no room."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2, round((bottom - top) / 4))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + pad - left, y + pad - top), text, fill="white", font=font)
