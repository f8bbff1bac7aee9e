"""Pictures of a report: small, and within the page itself."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from sensorium.evaluate.result import Picture

THUMBNAIL = 256  # pixels of the longer side


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
