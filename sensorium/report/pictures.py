"""Pictures of a report: small, and within the page itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from sensorium.evaluate.result import Picture

THUMBNAIL = 256  # pixels of the longer side
BUDGET = 5_500_000  # characters of all thumbnails of one page
MOST = 600  # thumbnails of one page: each takes milliseconds to make


def thumbnail(picture: Picture) -> tuple[str, str]:
    """(data URL, "") of a picture's thumbnail, or ("", reason): one bad picture must not cost a run its report."""
    try:
        if isinstance(picture, Path | str):
            with Image.open(picture) as opened:
                image = ImageOps.exif_transpose(opened)
        else:
            image = picture if isinstance(picture, Image.Image) else picture.load()
        image = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        data = BytesIO()
        image.save(data, "WEBP", quality=80)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return "", f"{type(error).__name__}: {error}"
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode(), ""


class Album:
    """The thumbnails of one page: each picture once, within a budget of bytes.

    `urls` has them in order; a place is what `add` gave. "" where there was no room, or the picture cannot be shown.
    """

    def __init__(self, budget: int = BUDGET, most: int = MOST) -> None:
        self.budget, self.most = budget, most
        self.urls: list[str] = []
        self.reasons: list[str] = []
        self.left_out = 0
        self._places: dict[object, int] = {}
        self._waiting: list[Picture] = []

    def add(self, picture: Picture) -> int:
        """The place of a picture. Nothing is decoded before `make`."""
        mark = str(picture) if isinstance(picture, Path | str) else id(picture)
        if mark not in self._places:
            self._places[mark] = len(self._waiting)
            self._waiting.append(picture)
            self.urls.append("")
            self.reasons.append("")
        return self._places[mark]

    def make(self, places: Iterable[int]) -> None:
        """Decode pictures in this order, as many as there is room for."""
        done: set[int] = set()
        for place in places:
            if place in done:
                continue
            done.add(place)
            if self.most <= 0 or self.budget <= 0:
                self.left_out += 1
                self.reasons[place] = "left out, so that this page stays small"
                continue
            self.urls[place], self.reasons[place] = thumbnail(self._waiting[place])
            self.most -= 1
            self.budget -= len(self.urls[place])
