"""How published settings say that pictures are prepared, as an ImageTransform here, both ways."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.convert.settings import REQUIRED, Settings
from sensorium.encoders.resample import Filter
from sensorium.encoders.transform import ImageTransform, Size
from sensorium.errors import UserError, nearest

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILTERS: tuple[Filter, ...] = get_args(Filter)
_BYTE = 1 / 255


@dataclass(frozen=True)
class Defaults:
    """What a published image processor does where its settings say nothing: its class decides.

    shortest  a size that is one number is the shorter side's; otherwise both sides'
    side      of the view, and of the resized picture before a crop
    floats    resized pixels are not rounded
    pads      what do_pad does: `behind` pads what comes out, which cannot be said here; `square` pads to a square
              before all else; `apart`: the family whose class it is asks for it
    """

    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    filter: Filter = "bicubic"
    shortest: bool = False
    side: int = 224
    scaled: int = 224
    crops: bool = False
    floats: bool = False
    pads: Literal["behind", "square", "apart"] = "behind"


_CLIP = Defaults(CLIP_MEAN, CLIP_STD, shortest=True, crops=True)
CLASSES = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Llava": replace(_CLIP, pads="square"),
    "LlavaNext": replace(_CLIP, pads="apart"),
    "Blip": Defaults(CLIP_MEAN, CLIP_STD, side=384, scaled=384),
    "Idefics": Defaults(CLIP_MEAN, CLIP_STD),
    "ViT": Defaults(filter="bilinear"),
    "Siglip": Defaults(shortest=True),
    "Beit": Defaults(),
    "DeiT": Defaults(scaled=256, crops=True),
    "DINOv3ViT": Defaults(IMAGENET_MEAN, IMAGENET_STD, "bilinear", floats=True),
}
"""By the published class, without what such names end with."""
_ENDS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


def transform_of(settings: Settings, kind: str | None = None) -> ImageTransform:
    """The settings of an image processor (preprocessor_config.json) -> how pictures are prepared.

    What they leave out is what their class does without it; where they name no class they must say everything.

    kind  the class whose way of reading them is to be taken (one of CLASSES); None: the one that they name
    Raises UserError for settings that are missing, that cannot be said here, or of a class that is not known.
    """
    if not settings.values:
        raise settings.error("it is missing or empty: nothing says how pictures are prepared for this model")
    kind = kind or class_of(settings)
    if kind and kind not in CLASSES:
        raise settings.error(f"its class is {kind + 'ImageProcessor'!r}, whose way of preparing pictures cannot be "
                             f"said here: {nearest(kind, CLASSES)}")  # fmt: skip
    default = CLASSES[kind] if kind else None
    settings.only("do_flip_channel_order", False)
    settings.skip("do_convert_rgb", "do_reduce_labels", "data_format", "input_data_format", "device", "return_tensors",
                  "disable_grouping", "default_to_square")  # fmt: skip
    mean, std = _colours(settings, default)
    values: dict[str, Any] = {"mean": mean, "std": std, "filter": filter_of(settings, default)}
    if default is not None and default.floats:
        values["rounded"] = False
    values |= _geometry(settings, default)
    if _padded(settings, default):
        if values["resize"] not in ("shortest", "squash") or "scaled" in values or "width" in values:
            raise settings.error("do_pad makes a square picture, which is then resized to a square view; here the "
                                 f"resized picture and the view differ: {values}")  # fmt: skip
        values["resize"] = "pad"
    try:
        return ImageTransform(**values)
    except ValidationError as error:
        raise settings.error(explain(error)) from error


def class_of(settings: Settings) -> str:
    """The published class that reads these settings, without what such names end with; "" where they name none."""
    name = settings.take("image_processor_type", str, settings.take("feature_extractor_type", str, ""))
    return next((name.removesuffix(end) for end in _ENDS if name.endswith(end)), name)


def _colours(settings: Settings, default: Defaults | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of channels in [0, 1], whatever range the published ones are for."""
    factor = settings.take("rescale_factor", float, _BYTE)
    if not settings.take("do_rescale", bool, True):
        factor = 1.0
    mean = channels_of(settings, "image_mean", default and default.mean)
    std = channels_of(settings, "image_std", default and default.std)
    if not settings.take("do_normalize", bool, True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if not math.isclose(factor, _BYTE, rel_tol=1e-9):
        mean, std = (tuple(value * _BYTE / factor for value in of) for of in (mean, std))
    return mean, std


def channels_of(settings: Settings, name: str, default: tuple[float, ...] | None) -> tuple[float, float, float]:
    """A number for each of the three channels, or one for all."""
    if not settings.take("do_normalize", bool, True):
        default = HALF  # not used
    given = settings.take(name, (list, tuple, float), REQUIRED if default is None else default)
    values = (given,) * 3 if isinstance(given, float) else tuple(given)
    if len(values) != 3 or not all(isinstance(one, int | float) for one in values):
        raise settings.error(f"{name} is {given!r}, expected three numbers: red, green and blue")
    return float(values[0]), float(values[1]), float(values[2])


def filter_of(settings: Settings, default: Defaults | None) -> Filter:
    """The filter that `resample` numbers. Raises UserError for one that is not known."""
    resizes = settings.take("do_resize", bool, True)
    fallback = None if not resizes else REQUIRED if default is None else _FILTERS.index(default.filter)
    number = settings.take("resample", int, fallback)
    if number is None:
        return "bicubic"  # nothing is resized
    if not 0 <= number < len(_FILTERS):
        raise settings.error(f"resample is {number}, expected a filter of Pillow: "
                             f"{', '.join(f'{at} ({name})' for at, name in enumerate(_FILTERS))}")  # fmt: skip
    return _FILTERS[number]


def filter_number(filter: Filter) -> int:
    """How published settings number a filter."""
    return _FILTERS.index(filter)


def _geometry(settings: Settings, default: Defaults | None) -> dict[str, Any]:
    """The fields of a transform that say how large a picture becomes, and what of it is seen."""
    resizes = settings.take("do_resize", bool, True)
    crops = settings.take("do_center_crop", bool, False if default is None else default.crops)
    if default is None:
        size, crop = settings.take("size", object), settings.take("crop_size", object, None)
    else:
        side = (
            {"shortest_edge": default.scaled}
            if default.shortest and default.crops
            else {"height": default.scaled, "width": default.scaled}
        )
        size, crop = settings.take("size", object, side), settings.take("crop_size", object, default.side)
    shortest = default is not None and default.shortest
    seen = _sides(settings, "crop_size", crop) if crops else None
    if not resizes:
        if seen is None:
            raise settings.error("do_resize and do_center_crop are both false: pictures would keep sizes of their own, "
                                 "and a model of fixed views reads one size")  # fmt: skip
        return {"resize": "centre", **_view(seen)}
    if isinstance(size, int) and shortest:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.get("shortest_edge"):
        fields = Settings({name: value for name, value in size.items() if value is not None}, f"{settings.where} size")
        edge, longest = fields.count("shortest_edge"), fields.count("longest_edge", None)
        fields.done(idle=())
        if seen is None:
            raise settings.error(f"size is {size!r} without do_center_crop: views would have sizes of their own, and a "
                                 "model of fixed views reads one size")  # fmt: skip
        more = {} if longest is None else {"longest": longest}
        return {"resize": "shortest", **_view(seen), **more, **({} if edge == seen[0] else {"scaled": edge})}
    scaled = _sides(settings, "size", size)
    if seen is None or seen == scaled:
        return {"resize": "squash", **_view(scaled)}
    return {"resize": "squash", **_view(seen), "scaled": scaled}


def _view(seen: Size) -> dict[str, int]:
    height, width = seen
    return {"size": height} if height == width else {"size": height, "width": width}


def _sides(settings: Settings, name: str, given: Any) -> Size:
    """(height, width) of a size that is written {"height", "width"} or as a number."""
    if type(given) is int:
        return given, given
    if not isinstance(given, dict):
        raise settings.error(f'{name} is {given!r}, expected {{"height": .., "width": ..}} or a number')
    fields = Settings({key: value for key, value in given.items() if value is not None}, f"{settings.where} {name}")
    if "height" not in fields and "width" not in fields:
        raise settings.error(f'{name} is {given!r}; only {{"height", "width"}}, {{"shortest_edge"}} before a crop, or '
                             "a number can be said here")  # fmt: skip
    sides = fields.count("height"), fields.count("width")
    fields.done(idle=())
    return sides


def _padded(settings: Settings, default: Defaults | None) -> bool:
    """Whether a picture is padded to a square before it is resized."""
    settings.skip("pad_size")
    pads = "behind" if default is None else default.pads
    if pads == "square":
        return settings.take("do_pad", bool, False)
    if pads == "behind":
        settings.only("do_pad", False)
    return False


def picture_settings(transform: ImageTransform, kind: str | None = None) -> dict[str, Any]:
    """How pictures are prepared -> the settings that a published image processor reads; they read back as the same.

    kind  its class without "ImageProcessor"; None: one that can do it
    Raises UserError for a transform that this class cannot say (tiles, sizes of their own, a colour of padding).
    """
    if kind is None:
        kind = "Llava" if transform.resize == "pad" else "CLIP" if transform.rounded else "DINOv3ViT"
    height, width = transform.view
    view, size = {"height": height, "width": width}, transform.scaled or transform.view
    crops = transform.resize in ("shortest", "centre") or size != transform.view
    written: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor", "do_resize": transform.resize != "centre",
        "resample": filter_number(transform.filter), "do_center_crop": crops, "do_rescale": True,
        "rescale_factor": _BYTE, "do_normalize": True, "image_mean": list(transform.mean),
        "image_std": list(transform.std), "do_convert_rgb": True,
    }  # fmt: skip
    if transform.resize == "shortest":
        edge = {"shortest_edge": transform.scaled or height}
        written["size"] = edge if transform.longest is None else {**edge, "longest_edge": transform.longest}
    elif isinstance(size, tuple):
        written["size"] = {"height": size[0], "width": size[1]}
    if crops:
        written["crop_size"] = view
    if transform.resize == "pad":
        written["do_pad"] = True
    again = transform_of(Settings(written, "what was written")) if transform.resize != "keep" else None
    if again is None or not _alike(again, transform):
        raise UserError(f"the settings of {written['image_processor_type']} cannot say how pictures are prepared for "
                        f"this model ({transform}): {again} is what would be read")  # fmt: skip
    return written


def _alike(first: ImageTransform, second: ImageTransform) -> bool:
    """Whether two transforms give the same views: what one resize does not look at may differ."""
    unread: dict[str, Any] = {"multiple": 1} if first.resize != "keep" else {}
    if first.resize == "centre":
        unread["filter"] = "bicubic"
    return first.replace(**unread) == second.replace(**unread)
