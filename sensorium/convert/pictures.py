"""How a published image processor prepares pictures: its fields, and the transform here."""

from __future__ import annotations

from typing import Any

from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform

_NUMBERS = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3,
            "do_normalize": True, "do_convert_rgb": True}  # fmt: skip


def transform_of(settings: Settings) -> ImageTransform:
    """Raises UserError for settings that cannot be said here."""
    size, crop = settings.take("size", dict), settings.take("crop_size", dict, {})
    settings.skip("default_to_square", "data_format", "do_pad")
    for name, value in _NUMBERS.items():
        settings.only(name, value)
    resize = "shortest" if "shortest_edge" in size else "squash"
    return ImageTransform(
        size=crop.get("height", size.get("height", size.get("shortest_edge"))), resize=resize,
        mean=tuple(settings.take("image_mean", list)), std=tuple(settings.take("image_std", list)),
    )  # fmt: skip


def picture_settings(transform: ImageTransform) -> dict[str, Any]:
    """The fields of an image processor that prepares pictures so."""
    side, kind = {"height": transform.size, "width": transform.size}, "SiglipImageProcessor"
    size, crop = (
        (side, {}) if transform.resize == "squash" else ({"shortest_edge": transform.size}, {"crop_size": side})
    )
    if crop:
        kind = "CLIPImageProcessor"
    plain = {name: value for name, value in _NUMBERS.items() if name != "do_center_crop" or crop}
    return {"image_processor_type": kind, "size": size, **crop, **plain, "image_mean": list(transform.mean),
            "image_std": list(transform.std)}  # fmt: skip
