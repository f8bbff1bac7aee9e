"""Clips of real pictures, frame by frame the same wherever they are made: nothing in them is resized."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).parents[2] / "sensorium/data/builtin/emoji/fluent.zip"
COLUMNS, ROWS, SIDE = 6, 5, 128


def sheet() -> Image.Image:
    """Pictures of the built-in set beside each other; RGB."""
    with zipfile.ZipFile(FILE) as archive:
        names = sorted(archive.namelist())[300 : 300 + COLUMNS * ROWS]
        drawn = [Image.open(io.BytesIO(archive.read(name))).convert("RGBA") for name in names]
    made = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), (250, 240, 214))
    for at, one in enumerate(drawn):
        made.paste(one.convert("RGB"), (at % COLUMNS * SIDE, at // COLUMNS * SIDE), one)
    return made


def frames(height: int, width: int, count: int) -> list[Image.Image]:
    """A window of this size that moves over the sheet, right and slowly down."""
    whole = sheet()
    across, down = whole.width - width, whole.height - height
    places = [((50 + at * 7) % across, (40 + at * 3 + at * 7 // across * 11) % down) for at in range(count)]
    return [whole.crop((left, top, left + width, top + height)) for left, top in places]


def digest(pictures: list[Image.Image]) -> str:
    return hashlib.sha256(np.stack([np.asarray(one) for one in pictures]).tobytes()).hexdigest()


def saved_clip(path: Path, pictures: list[Image.Image], rate: float) -> Path:
    """The frames in a lossless file (an animated PNG), so many a second."""
    first, *others = pictures
    first.save(path, save_all=True, append_images=others, duration=1000 / rate)
    with Image.open(path) as image:  # equal frames become one there
        assert getattr(image, "n_frames", 1) == len(pictures)
    return path
