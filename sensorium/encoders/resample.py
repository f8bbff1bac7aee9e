"""Pictures of 8 bits, made smaller or larger by one of Pillow's filters, in Pillow's arithmetic or in torch's."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sensorium.errors import UserError

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
FILTERS = {name: Image.Resampling(number) for number, name in enumerate(get_args(Filter))}
"""In Pillow's own order, so that published settings, which give its numbers, name them."""
Backend = Literal["pillow", "torch"]
TORCH: tuple[Filter, ...] = ("nearest", "lanczos", "bilinear", "bicubic")
"""Filters of torch's backend."""


def resized(image: Image.Image, size: tuple[int, int], filter: Filter, backend: Backend = "pillow") -> Image.Image:
    """image, mode RGB -> the same at `size` (width, height).

    backend  whose arithmetic: they round weights and sums between the two directions in their own ways, so that values
             differ by a level here and there. torch: of its 8-bit tensors, on a CPU, antialiased, which is what
             torchvision's functions for tensors call, and published processors of clips with them
    Raises UserError for a filter that this backend, or this version of it, does not have.
    """
    if backend == "pillow":
        return image.resize(size, FILTERS[filter])
    if size == image.size:
        return image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()
    smooth = {} if filter == "nearest" else {"align_corners": False, "antialias": True}
    try:
        made = F.interpolate(pixels, (size[1], size[0]), mode=filter, **smooth)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"torch {torch.__version__} does not resize 8-bit pictures with the filter {filter!r}: "
                        "lanczos needs a later one, box and hamming are Pillow's alone") from error  # fmt: skip
    return Image.fromarray(made[0].permute(1, 2, 0).contiguous().numpy())
