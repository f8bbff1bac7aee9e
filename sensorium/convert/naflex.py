"""The vision tower of SigLIP 2 for pictures of any aspect ratio (NaFlex; Tschannen et al. 2025, arXiv 2502.14786)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sensorium.convert.files import Files
from sensorium.convert.keys import Fit, Rule
from sensorium.convert.settings import Settings
from sensorium.convert.stack import Stack, activation, activation_name
from sensorium.convert.towers import layers
from sensorium.encoders.flex import FlexViT
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import stack
from sensorium.errors import UserError

_PATCH = "embeddings.patch_embedding"
Colour = tuple[float, float, float]
_HALF: Colour = (0.5, 0.5, 0.5)
_BYTE = 1 / 255


class ColoursLast(Fit):
    """The weights of a patch are there pixel by pixel, here colour by colour."""

    def __init__(self, side: int) -> None:
        self.side = side

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [one.unflatten(1, (self.side**2, 3)).transpose(1, 2).flatten(1) for one in tensors]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [one.unflatten(1, (3, self.side**2)).transpose(1, 2).flatten(1) for one in tensors]


def _rules(config: FlexViT.Config) -> Sequence[Rule]:
    return [
        Rule(f"{_PATCH}.weight", "linear.weight", ColoursLast(config.patch)),
        Rule(f"{_PATCH}.bias", "linear.bias"),
        *layers("post_layernorm"),
    ]


def _read(settings: Settings) -> FlexViT.Config:
    settings.only("num_channels", 3)
    settings.only("vision_use_head", False)
    cells, patch = settings.count("num_patches"), settings.count("patch_size")
    if math.isqrt(cells) ** 2 != cells:
        raise settings.error(f"num_patches is {cells}: positions are learned for a square grid, and this makes none")
    backbone = stack(
        settings.count("hidden_size"), settings.count("num_hidden_layers"), settings.count("num_attention_heads"),
        settings.count("intermediate_size"), activation(settings, "hidden_act", "gelu_pytorch_tanh"),
        settings.take("layer_norm_eps", float, 1e-6),
    )  # fmt: skip
    return FlexViT.Config(
        transform=_transform(patch, cells, "bilinear", _HALF, _HALF), patch=patch, backbone=backbone,
        trained=math.isqrt(cells),
    )  # fmt: skip


def _transform(patch: int, cells: int, kind: Any, mean: Colour, std: Colour) -> ImageTransform:
    return ImageTransform(
        size=patch * cells, resize="keep", multiple=patch, cells=cells, filter=kind, mean=mean, std=std
    )  # fmt: skip


def _write(config: FlexViT.Config) -> dict[str, Any]:
    block = config.backbone.block
    if config.trained is None:
        raise UserError("the layout of NaFlex has learned positions, and this tower has none")
    written = {
        "model_type": "siglip2_vision_model", "hidden_size": config.width, "num_hidden_layers": config.backbone.depth,
        "num_attention_heads": block.attention.heads, "intermediate_size": block.ffn.hidden, "num_channels": 3,
        "hidden_act": activation_name(block.ffn.activation), "layer_norm_eps": block.norm.eps,
        "patch_size": config.patch, "num_patches": config.trained**2, "vision_use_head": False,
    }  # fmt: skip
    again = _read(Settings(written)).replace(transform=config.transform)
    if again != config:
        raise UserError(f"the layout of NaFlex cannot say this tower: {config}; {again} is what would be read")
    return written


NAFLEX_VISION = Stack(
    ("siglip2_vision_model",), "Siglip2VisionModel", _read, _write, _rules,
    absent={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "num_patches": 256, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
)  # fmt: skip


def flexible(tower: FlexViT.Config, files: Files) -> FlexViT.Config:
    """The tower with pictures prepared as the folder says. Raises UserError for settings that cannot be said here."""
    settings = files.pictures
    for name, value in (("do_resize", True), ("do_rescale", True), ("rescale_factor", _BYTE), ("do_normalize", True)):
        settings.only(name, value)
    settings.skip("do_convert_rgb", "data_format", "input_data_format", "default_to_square", "size")
    patch = settings.count("patch_size", 16)
    if patch != tower.patch:
        raise settings.error(f"pictures are cut into patches of {patch}, and the vision tower of config.json reads "
                             f"{tower.patch}")  # fmt: skip
    numbers = {number: name for name, number in _FILTERS.items()}
    number = settings.take("resample", int, 2)
    if number not in numbers:
        raise settings.error(f"resample is {number}; only {sorted(numbers)} can be said here: {_FILTERS}")
    cells, colours = (
        settings.count("max_num_patches", 256),
        [_three(settings, f"image_{one}") for one in ("mean", "std")],
    )
    return tower.replace(transform=_transform(patch, cells, numbers[number], *colours))


def _three(settings: Settings, name: str) -> Colour:
    given = settings.take(name, list, list(_HALF))
    if len(given) != 3 or not all(isinstance(one, int | float) for one in given):
        raise settings.error(f"{name} is {given!r}, expected three numbers: red, green and blue")
    return float(given[0]), float(given[1]), float(given[2])


_FILTERS = {"bilinear": 2, "bicubic": 3}
"""As Pillow numbers them."""


def flexible_settings(tower: FlexViT.Config) -> dict[str, Any]:
    """The fields of an image processor that prepares pictures as the tower has them.

    Raises UserError for pictures that are prepared in another way than NaFlex's.
    """
    own = tower.transform
    if own.cells is None or own != _transform(tower.patch, own.cells, own.filter, own.mean, own.std):
        raise UserError(
            f"the layout of NaFlex has pictures of at most so many patches: this model prepares them as {own}"
        )
    if own.filter not in _FILTERS:
        raise UserError(f"NaFlex's pictures are resized by {sorted(_FILTERS)}, this model's by {own.filter!r}")
    return {
        "image_processor_type": "Siglip2ImageProcessor", "do_resize": True, "resample": _FILTERS[own.filter],
        "do_rescale": True, "rescale_factor": _BYTE, "do_normalize": True, "image_mean": list(own.mean),
        "image_std": list(own.std), "patch_size": tower.patch, "max_num_patches": own.cells,
    }  # fmt: skip
