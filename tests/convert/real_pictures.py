"""Pictures of the built-in set, cut and stretched to odd sizes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

import sensorium

FILE = Path(sensorium.__file__).parent / "data/builtin/emoji/fluent.zip"
SHAPES = ((37, 101), (101, 37), (64, 64), (427, 640), (300, 1), (1, 150), (33, 32), (8, 9))


def real_picture(height: int, width: int, number: int = 5) -> Image.Image:
    """Four of the set's pictures beside each other, two by two, stretched to this size; RGB."""
    with zipfile.ZipFile(FILE) as archive:
        names = sorted(archive.namelist())
        each = [Image.open(io.BytesIO(archive.read(names[(number + at) % len(names)]))) for at in range(4)]
    side = max(max(one.size) for one in each)
    sheet = Image.new("RGB", (2 * side, 2 * side), (250, 240, 214))
    for at, one in enumerate(each):
        sheet.paste(one.convert("RGB"), (at % 2 * side, at // 2 * side), one.convert("RGBA"))
    return sheet.resize((width, height), Image.Resampling.BICUBIC)
