"""Pictures from files and bytes, decoded lazily, safely and correctly.

What is decided here, once, for training, evaluation and chat:

- the content decides the format, never the extension; only raster formats are tried (no PostScript, no SVG);
- EXIF (and XMP) rotation is applied, and `shape()` already reports the rotated size, from the header alone;
- alpha is composited on white; CMYK and palettes become RGB; 16-bit values are scaled to 8 bits, not clipped;
- of an animated or multi-page file the first frame is taken;
- a picture of more than `Limits.max_pixels` pixels is refused before it is decoded (decompression bombs).

Everything that cannot be decoded raises MediaError, which names the file and the reason.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from pydantic import Field

from sensorium.config import Config
from sensorium.sequence import MediaError

RASTER_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000", "MPO", "DIB")

# What Pillow's plugins raise on damaged input. Listed, so that a mistake of this program is not reported as a bad file.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Limits(Config):
    """What is refused before decoding.

    max_pixels  width x height; the default is Pillow's own limit, 256 MB of RGB. Pillow itself refuses
                more than twice `PIL.Image.MAX_IMAGE_PIXELS`, which must be raised too for larger pictures.
    """

    max_pixels: int = Field(default=89_478_485, gt=0)


DEFAULT_LIMITS = Limits()


class PictureFile:
    """One picture, from a path or from bytes: the Media protocol of sequence.py.

    content  path of the file, or the encoded bytes
    name     what errors call it; the path when not given
    """

    __slots__ = ("_content", "limits", "name")

    def __init__(self, content: str | os.PathLike[str] | bytes, *, name: str = "", limits: Limits = DEFAULT_LIMITS):
        self._content = content if isinstance(content, bytes) else os.fspath(content)
        self.name = name or ("picture given as bytes" if isinstance(content, bytes) else str(self._content))
        self.limits = limits

    def __repr__(self) -> str:
        return f"PictureFile({self.name!r})"

    @property
    def path(self) -> Path | None:
        """The file, or None for a picture given as bytes."""
        return None if isinstance(self._content, bytes) else Path(self._content)

    def key(self) -> str:
        """sha256 (hex) of the encoded content. Cached by path, size and modification time within the process."""
        if isinstance(self._content, bytes):
            return hashlib.sha256(self._content).hexdigest()
        status = self._stat()
        try:
            return _file_digest(self._content, status.st_size, status.st_mtime_ns, status.st_ino)
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror or error}") from error

    def shape(self) -> tuple[int, int]:
        """(height, width) after rotation, from the header. Raises MediaError."""
        with self._open() as stream:
            image = self._header(stream)
            try:
                return _rotated_shape(image, _orientation(image, stream))
            except DECODER_ERRORS as error:
                raise self._error(f"its header is damaged: {_reason(error)}") from error

    def load(self) -> Image.Image:
        """The decoded picture, mode RGB, upright. Raises MediaError."""
        with self._open() as stream:
            image = self._header(stream)
            try:
                orientation = _orientation(image, stream)
                height, width = _rotated_shape(image, orientation)
                image.load()
                if image.format == "TIFF" and ORIENTATION not in getattr(image, "tag_v2", ()):
                    orientation = 1  # this Pillow has applied, and removed, the tag while loading
                upright = image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image
                picture = _to_rgb(upright, image)
            except DECODER_ERRORS as error:
                raise self._error(f"cannot be decoded: {_reason(error)}") from error
        if picture.size != (width, height):
            found = f"{picture.width} x {picture.height}"
            raise self._error(f"its header says {width} x {height} pixels, its content has {found}")
        return picture

    def read(self) -> bytes:
        """The encoded content. Raises MediaError."""
        with self._open() as stream:
            return stream.read()

    def _stat(self) -> os.stat_result:
        assert not isinstance(self._content, bytes)
        try:
            status = os.stat(self._content)
        except FileNotFoundError as error:
            raise self._error("no such file") from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise self._error(f"cannot be read: {error}") from error
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could block for ever
            raise self._error("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        return status

    def _open(self) -> IO[bytes]:
        if isinstance(self._content, bytes):
            if not self._content:
                raise self._error("is empty (0 bytes)")
            return io.BytesIO(self._content)
        if self._stat().st_size == 0:
            raise self._error("is empty (0 bytes)")
        try:
            return open(self._content, "rb")
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror or error}") from error

    def _header(self, stream: IO[bytes]) -> Image.Image:
        try:
            image = Image.open(stream, formats=_formats())
        except Image.UnidentifiedImageError as error:
            stream.seek(0)
            raise self._error(_what_is(stream.read(1024))) from error
        except DECODER_ERRORS as error:
            raise self._error(f"cannot be opened: {_reason(error)}") from error
        width, height = image.size
        if width < 1 or height < 1:
            raise self._error(f"has no pixels: {width} x {height}")
        if width * height > self.limits.max_pixels:
            raise self._error(
                f"has {width} x {height} = {width * height:,} pixels, the limit is {self.limits.max_pixels:,}; "
                "shrink the picture or raise limits.max_pixels"
            )
        return image

    def _error(self, reason: str) -> MediaError:
        return MediaError(f"{self.name}: {reason}")


@functools.lru_cache(maxsize=1 << 18)
def _file_digest(path: str, size: int, modified: int, inode: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The raster formats this Pillow was built with."""
    Image.init()
    return tuple(name for name in RASTER_FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image, stream: IO[bytes]) -> int:
    """EXIF orientation 1 to 8; 1 (upright) for an absent or undefined value."""
    if image.format == "PNG" and "exif" not in image.info:
        late = _late_png_exif(stream)
        if late:
            image.info["exif"] = late
    # Pillow's PNG class decodes the pixels in getexif(); its base class does not.
    value = Image.Image.getexif(image).get(ORIENTATION, 1)
    return value if value in TRANSPOSE else 1


def _late_png_exif(stream: IO[bytes]) -> bytes | None:
    """The eXIf chunk behind the pixel data, where exiftool writes it. Walks chunk headers; the position is kept."""
    position = stream.tell()
    try:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"eXIf":
                return b"Exif\0\0" + stream.read(length)
            if name == b"IEND":
                return None
            stream.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        stream.seek(position)


def _rotated_shape(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) after rotation, before or after the pixels are decoded."""
    width, height = image.size
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:  # Pillow versions differ in whether size is already rotated
        width, height = int(tags.get(256, width)), int(tags.get(257, height))
    return (width, height) if orientation >= 5 else (height, width)


def _to_rgb(image: Image.Image, original: Image.Image) -> Image.Image:
    """Any mode to RGB. `original` still has the tags that say how values are to be read."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, original).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image, original: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits, or float in [0, 1], scaled to 8 bits with rounding.

    Raises ValueError for values whose range is not known: guessing it would silently change brightness.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not finite numbers")
    tags: Any = getattr(original, "tag_v2", {})
    top = 1.0 if image.mode == "F" else float(2 ** min(16, int(tags.get(258, (16,))[0])) - 1)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > top:
        kind = "float" if image.mode == "F" else "integer"
        raise ValueError(f"its {kind} pixels lie in [{low:g}, {high:g}], expected [0, {top:g}]")
    if tags.get(262) == 0:  # TIFF PhotometricInterpretation 0: white is zero
        values = top - values
    return Image.fromarray(np.rint(values * (255.0 / top)).astype(np.uint8))


def _what_is(head: bytes) -> str:
    """Why a file is no picture, from its first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "is an SVG drawing; only raster pictures are decoded: convert it to PNG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not a picture (a download that failed?)"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a picture: run `git lfs pull`"
    if text.startswith((b"%pdf", b"%!ps")):
        return "is a PDF or PostScript document, not a picture: convert it to PNG"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "is a HEIC picture, which is not decoded: convert it to JPEG or PNG"
    start = head[:12]
    return f"is not a picture in a known format (it begins with {start!r}) or its header is damaged"


def _reason(error: BaseException) -> str:
    return f"{error}" or type(error).__name__
