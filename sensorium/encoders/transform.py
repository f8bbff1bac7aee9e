"""From a decoded picture to the views an image encoder reads."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from sensorium.config import Config
from sensorium.encoders.resample import TORCH, Backend, Filter, resized
from sensorium.errors import UserError

Size = tuple[int, int]
Colour = tuple[int, int, int]

_SMOOTH = ("bilinear", "bicubic")


class ImageTransform(Config):
    """How a picture becomes views: (views, 3, size, width) float32, the whole picture first, then its tiles.

    size    side of a view in pixels; its height, where it is not square
    width   pixels across a view; None: as many as its height
    resize  how the whole picture becomes a view. `shortest`: its shorter side to `size`, then the centre is cropped.
            `squash`: both sides to those of the view, the aspect ratio is lost. `centre`: it is cropped, nothing more.
            `pad`: padded to a square with `pad_color`, then resized; nothing is lost (LLaVA-1.5, arXiv 2310.03744,
            section 3.3). `keep`: no square at all; the picture keeps its size and aspect ratio (scaled down where a
            side exceeds `size`), and is padded at its right and bottom to multiples of `multiple` pixels (Fuyu).
            `area`: both sides to multiples of `multiple` near their own, scaled where there are fewer or more pixels
            than `area` says; nothing is padded (Qwen2-VL, arXiv 2409.12191, section 2.1; Emu3). `fit`: its longer side
            to `size`, then padded to a square with `pad_color` (Janus, arXiv 2410.13848).
            A crop beyond the picture is black there
    scaled  what the picture is resized to before the centre is cropped, where that is not the view: of `shortest` the
            shorter side (256, and 224 of it are seen), of `squash` (height, width)
    longest  shortest: the longer side is never longer than that before the crop, so the shorter one may be shorter
    rounded  resized values are rounded to 8 bits, as Pillow does; otherwise they stay floats (DINOv3)
    backend  whose arithmetic resizes 8-bit values, see `resample.resized`: torch's, of what is published for clips
    multiple  keep, area: what both sides are multiples of
    cells   keep: the picture is made smaller or larger, to at most so many squares of `multiple` pixels and as close
            to its aspect ratio as whole squares come; nothing is padded (NaFlex, arXiv 2502.14786, section 2.4.2)
    limit   keep: (height, width) that a picture is scaled down to where it is larger, its sides rounded down (released
            Fuyu: 1080, 1920); None: `size` both ways, rounded to the nearest
    area    area: the least and the most pixels
    least   fit: pixels that the shorter side has at least
    pad_color  RGB in 0-255; None is the mean colour, which is zero after normalisation
    scale   what the values of a pixel, 0 to 255, are multiplied by first; None: 1 / 255
    mean, std  of channels scaled so
    tiles   candidate (height, width) canvases in pixels, multiples of `size`; empty means one view. The picture is
            fitted into the best candidate and cut into tiles (LLaVA-NeXT's any-resolution pictures)
    first   squash: what the longer side becomes before all else, the shorter one an even number (Idefics 3)
    split   squash: instead of `tiles`; the picture is stretched to the fewest whole views that hold it and cut into
            them, and the whole view is made of what was cut. Of a picture within one view there is no other
            (Idefics 3, arXiv 2408.12637, section 3.1)
    """

    size: int = 224
    width: int | None = None
    resize: Literal["shortest", "squash", "centre", "pad", "keep", "area", "fit"] = "shortest"
    scaled: int | Size | None = None
    longest: int | None = None
    multiple: int = 1
    cells: int | None = None
    limit: Size | None = None
    area: tuple[int, int] = (512 * 512, 1024 * 1024)
    least: int = Field(default=1, ge=1)
    filter: Filter = "bicubic"
    rounded: bool = True
    backend: Backend = "pillow"
    pad_color: Colour | None = None
    scale: float | None = Field(default=None, gt=0)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    tiles: tuple[Size, ...] = ()
    first: int | None = None
    split: bool = False

    @field_validator("size", "width", "scaled", "longest", "first")
    @classmethod
    def _positive(cls, size: int | Size | None) -> int | Size | None:
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            raise ValueError("a view is at least 1 pixel wide")
        return size

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("every channel's standard deviation must be above 0")
        return std

    @field_validator("pad_color")
    @classmethod
    def _is_colour(cls, colour: Colour | None) -> Colour | None:
        if colour is not None and not all(0 <= channel <= 255 for channel in colour):
            raise ValueError("a colour is three numbers from 0 to 255")
        return colour

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        for height, width in self.tiles:
            if height < 1 or width < 1 or height % self.size or width % self.size:
                raise ValueError(f"tile canvas {(height, width)} (height, width) is no multiple of size {self.size}")
        return self

    @model_validator(mode="after")
    def _multiple_fits(self) -> Self:
        if self.multiple < 1 or (self.resize == "keep" and self.size % self.multiple):
            raise ValueError(f"the longest side, size={self.size}, is no multiple of multiple={self.multiple}")
        if self.cells is not None and (self.resize != "keep" or self.size != self.cells * self.multiple):
            raise ValueError(f"cells={self.cells} of {self.multiple} pixels are for resize 'keep', and size, the "
                             f"longest side, is then {self.cells * self.multiple}")  # fmt: skip
        if self.area[0] > self.area[1]:
            raise ValueError(f"area={self.area} is the least and the most pixels of a view, in this order")
        if self.limit is not None and (self.resize != "keep" or max(self.limit) != self.size or
                                       any(side < 1 or side % self.multiple for side in self.limit)):  # fmt: skip
            raise ValueError(f"limit {self.limit} belongs to resize 'keep': two multiples of multiple={self.multiple}, "
                             f"the larger of which is size={self.size}")  # fmt: skip
        if self.resize in ("keep", "area") and self.tiles:
            raise ValueError("a picture that keeps its shape is not cut into tiles: leave out tiles")
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        wanted = {"shortest": int, "squash": tuple}.get(self.resize)
        if self.scaled is not None and (wanted is None or not isinstance(self.scaled, wanted)):
            raise ValueError(f"resize {self.resize!r} with scaled={self.scaled}: 'shortest' takes a number of pixels, "
                             "'squash' (height, width), the others nothing")  # fmt: skip
        if self.longest is not None and self.resize != "shortest":
            raise ValueError(f"resize {self.resize!r} knows no longest={self.longest}: 'shortest' does")
        if self.width is not None and (self.tiles or self.resize in ("keep", "area", "fit")):
            raise ValueError("tiles are square, and a picture that keeps its shape says its own: leave out width")
        if not self.rounded and (
            self.resize in ("pad", "keep", "area", "fit")
            or self.scale
            or self.first
            or self.tiles
            or self.filter not in _SMOOTH
        ):
            raise ValueError(f"floats (rounded=False) are resized by {' or '.join(_SMOOTH)}, to one view that is not "
                             "padded before")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _backend_fits(self) -> Self:
        if self.backend == "torch" and (self.filter not in TORCH or not self.rounded):
            raise ValueError(f"torch resizes 8-bit values by {', '.join(TORCH)}: filter={self.filter!r}, "
                             f"rounded={self.rounded}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        if (self.split or self.first) and (self.resize != "squash" or self.scaled or self.tiles):
            raise ValueError("pictures are split, and first resized by their longer side, only where they are squashed "
                             "into a view: leave out scaled and tiles, with resize 'squash'")  # fmt: skip
        if self.split and (self.width is not None or not self.rounded):
            raise ValueError("tiles are square, of rounded pixels: leave out width, or split")
        return self

    @property
    def view(self) -> Size:
        """(height, width) in pixels of a view, where all are alike; otherwise of the largest."""
        return self.size, self.width or self.size

    def extent(self, shape: Size) -> Size:
        """(height, width) in pixels of a view of a picture of `shape` (height, width)."""
        if self.resize == "area":
            return within(shape, self.multiple, self.area)
        if self.resize != "keep":
            return self.view
        height, width = self._kept(shape)
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def _kept(self, shape: Size) -> Size:
        """(height, width) of a picture that keeps its aspect ratio, scaled down to `size` where it is larger."""
        if self.cells is not None:
            rows, cols = most_cells(shape, self.multiple, self.cells)
            return rows * self.multiple, cols * self.multiple
        if self.limit is not None:
            scale = min(self.limit[0] / shape[0], self.limit[1] / shape[1])
            return shape if scale >= 1 else (max(1, int(shape[0] * scale)), max(1, int(shape[1] * scale)))
        scale = min(1.0, self.size / max(shape))
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))

    def canvas(self, shape: Size) -> Size | None:
        """(height, width) of what a picture of `shape` (height, width) becomes to be cut; None without tiles."""
        if self.split:
            rows, cols = self._views_of(self._led(shape))
            return None if rows == cols == 1 else (rows * self.size, cols * self.size)
        return best_canvas(shape, self.tiles) if self.tiles else None

    def _led(self, shape: Size) -> Size:
        """(height, width) once the longer side is `first`, the shorter one rounded down, then up to an even number."""
        if self.first is None:
            return shape
        height, width = shape
        aspect = width / height  # a product of floats is rounded as the released processor rounds it
        shorter = int(self.first / aspect) if width >= height else int(self.first * aspect)
        shorter = max(1, shorter + shorter % 2)
        return (shorter, self.first) if width >= height else (self.first, shorter)

    def _views_of(self, shape: Size) -> Size:
        """(rows, columns) of views that a picture is stretched to: its longer side to whole ones, then the other."""
        (height, width), side = shape, self.size
        aspect = width / height
        if width >= height:
            cols = -(-width // side)
            return max(1, -(-int(cols * side / aspect) // side)), cols
        rows = -(-height // side)
        return rows, max(1, -(-int(rows * side * aspect) // side))

    def grid_tiles(self, shape: Size) -> Size | None:
        """(rows, columns) of tiles for a picture of `shape` (height, width) pixels; None without tiles."""
        canvas = self.canvas(shape)
        return None if canvas is None else (canvas[0] // self.size, canvas[1] // self.size)

    def views(self, shape: Size) -> int:
        """How many views a picture of `shape` (height, width) gives."""
        tiles = self.grid_tiles(shape)
        return 1 if tiles is None else 1 + tiles[0] * tiles[1]

    def __call__(self, image: Image.Image) -> Tensor:
        """image: RGB -> (views, 3, height, width) float32, each view of `extent`'s height and width.

        Raises UserError for a picture in another mode.
        """
        if image.mode != "RGB":
            raise UserError(f"a picture in mode {image.mode!r} was given, RGB is expected: use image.convert('RGB')")
        if not self.rounded:
            return self._floats(image)
        canvas = self.canvas((image.height, image.width))
        if self.first is not None:
            rows, cols = self._led((image.height, image.width))
            image = self._resized(image, (cols, rows))
        if self.split and canvas is not None:
            image = self._resized(image, (canvas[1], canvas[0]))
        pixels = [np.asarray(self._whole(image))]
        if canvas is not None:
            fitted = np.asarray(image if self.split else self._fit(image, canvas))
            rows, cols, side = canvas[0] // self.size, canvas[1] // self.size, self.size
            tiles = fitted.reshape(rows, side, cols, side, 3).swapaxes(1, 2)
            pixels.extend(tiles.reshape(rows * cols, side, side, 3))
        return self._normalise(np.stack(pixels))

    def _resized(self, image: Image.Image, size: Size) -> Image.Image:
        return resized(image, size, self.filter, self.backend)

    def _whole(self, image: Image.Image) -> Image.Image:
        """The whole picture as one view."""
        if self.resize == "keep":
            return self._keep(image)
        if self.resize == "fit":
            return self._longest(image)
        if self.resize == "area":
            rows, cols = self.extent((image.height, image.width))
            return self._resized(image, (cols, rows))
        height, width = self.view
        if self.resize == "pad":
            longest = max(image.size)
            if image.width != image.height:
                image = self._paste(image, (longest, longest))
            return self._resized(image, (width, height))
        rows, cols = self._scaled((image.height, image.width))
        if self.resize != "centre":
            image = self._resized(image, (cols, rows))
        if (rows, cols) == (height, width):
            return image
        left, top = (cols - width) // 2, (rows - height) // 2
        return image.crop((left, top, left + width, top + height))

    def _scaled(self, shape: Size) -> Size:
        """(height, width) of a picture before its centre is cropped."""
        if self.resize == "centre":
            return shape
        if self.resize == "squash":
            return self.scaled if isinstance(self.scaled, tuple) else self.view
        height, width = shape
        shorter, longer = min(shape), max(shape)
        side: int = self.scaled if isinstance(self.scaled, int) else self.size
        long = max(side, side * longer // shorter)
        if self.longest is not None and longer / shorter * side > self.longest:
            exact = self.longest * float(shorter) / longer
            side = max(1, round(exact))
            long = longer if side == shorter else int(exact * longer / shorter)
        return (side, long) if height <= width else (long, side)

    def _floats(self, image: Image.Image) -> Tensor:
        """The whole picture as one view whose pixels are never rounded: (1, 3, height, width)."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        rows, cols = self._scaled((image.height, image.width))
        if (rows, cols) != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, (rows, cols), mode=self.filter, align_corners=False, antialias=True)
        height, width = self.view
        left, top = (cols - width) // 2, (rows - height) // 2
        pixels = F.pad(pixels, (-left, left + width - cols, -top, top + height - rows))
        return (pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def _keep(self, image: Image.Image) -> Image.Image:
        """The picture in the upper left corner of a view that is just large enough."""
        height, width = self._kept((image.height, image.width))
        rows, cols = self.extent((image.height, image.width))
        scaled = image if (width, height) == image.size else self._resized(image, (width, height))
        return scaled if (cols, rows) == scaled.size else self._paste(scaled, (cols, rows), (0, 0))

    def _longest(self, image: Image.Image) -> Image.Image:
        """The picture with its longer side as long as a view, centred on `pad_color`."""
        ratio = self.size / max(image.size)
        width, height = (max(round(side * ratio), self.least) for side in image.size)
        scaled = self._resized(image, (width, height))
        return scaled if width == height else self._paste(scaled, (self.size, self.size))

    def _fit(self, image: Image.Image, canvas: Size) -> Image.Image:
        """The picture as large as it goes on a canvas (height, width), its aspect kept, centred on `pad_color`."""
        width, height = image.size
        across, down = canvas[1] / width, canvas[0] / height
        if across < down:
            scaled = (canvas[1], min(math.ceil(height * across), canvas[0]))
        else:
            scaled = (min(math.ceil(width * down), canvas[1]), canvas[0])
        return self._paste(self._resized(image, scaled), (canvas[1], canvas[0]))

    def _paste(self, image: Image.Image, size: Size, corner: Size | None = None) -> Image.Image:
        """The picture on a plain one of `size` (width, height), in its middle or with its own `corner` (left, top)."""
        most = 255 if self.scale is None else 1 / self.scale
        red, green, blue = self.pad_color or [int(most * channel) for channel in self.mean]
        padded = Image.new("RGB", size, (red, green, blue))
        padded.paste(image, corner or ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        return padded

    def _normalise(self, pixels: np.ndarray) -> Tensor:
        """pixels: (views, H, W, 3) uint8 -> (views, 3, H, W) float32. One multiplication and one addition a value."""
        std = np.asarray(self.std, np.float32)[:, None, None]
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        factor = 1 / (255 * std) if self.scale is None else self.scale / std
        values = np.multiply(pixels.transpose(0, 3, 1, 2), factor, dtype=np.float32, order="C")
        values -= mean / std
        return torch.from_numpy(values)


def most_cells(shape: Size, side: int, most: int) -> Size:
    """(rows, columns) of at most `most` squares that cover a picture of `shape` (height, width), as large as it goes.

    The scale, from 1e-6 to 100, is found to 1e-5 by halving, as the published processor of SigLIP 2 finds it: the
    last step decides where a row or a column more would still fit.
    """

    def covered(scale: float) -> Size:
        rows, cols = (max(1, math.ceil(extent * scale / side)) for extent in shape)
        return rows, cols

    low, high = 1e-5 / 10, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, cols = covered(middle)
        low, high = (middle, high) if rows * cols <= most else (low, middle)
    return covered(low)


def within(shape: Size, side: int, area: Size) -> Size:
    """(height, width) in whole squares of `side` pixels, as close to `shape` (height, width) as they come.

    Where these cover fewer or more pixels than `area` (least, most), the picture is first scaled to that many, and then
    takes squares that it needs, or squares that it fills. A picture with one side shorter than a square may stay above.
    Raises UserError for a picture that is more than 200 times as long as it is wide.
    """
    if max(shape) > 200 * min(shape):
        raise UserError(f"a picture of {shape} (height, width) pixels is more than 200 times as long as it is wide, "
                        "and this model reads no such pictures: crop it")  # fmt: skip
    height, width = (round(extent / side) * side for extent in shape)
    (least, most), pixels = area, shape[0] * shape[1]
    if height * width > most:
        scale = math.sqrt(pixels / most)
        height, width = (max(side, math.floor(extent / scale / side) * side) for extent in shape)
    elif height * width < least:
        scale = math.sqrt(least / pixels)
        height, width = (math.ceil(extent * scale / side) * side for extent in shape)
    return height, width


def best_canvas(shape: Size, candidates: tuple[Size, ...]) -> Size:
    """The candidate (height, width) for a picture of `shape` (height, width): LLaVA-NeXT's published rule.

    The picture is scaled into each candidate, its aspect kept. The most effective pixels win (never counted above the
    picture's own); among equals the least wasted area; among equals the first.
    """
    height, width = shape
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {shape} (height, width) pixels cannot be tiled")

    def rank(candidate: Size) -> Size:
        scale = min(candidate[1] / width, candidate[0] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - candidate[0] * candidate[1]

    return max(candidates, key=rank)
