"""Pictures and sounds of a request: from their text to Media, checked by their headers before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import math
import wave
from collections.abc import Mapping

import numpy as np
from PIL import Image

from sensorium.data.media import DECODER_ERRORS, PictureFile
from sensorium.data.media import Limits as PictureLimits
from sensorium.errors import UserError
from sensorium.sequence import MediaError, Waveform
from sensorium.serve.errors import wrong
from sensorium.serve.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
RATE = 16_000
"""Samples a second that sounds are brought to: what speech encoders read."""
RATES = (4_000, 192_000)
SLIMMEST = 200
"""How many times as long as the other a side of a picture may be. Encoders make the short side as long as they want it,
and the long one grows with it: a line of a million pixels, a few hundred bytes as a file, would take gigabytes."""


class Intake:
    """Counts what one request brings against the limits.

    fetched  content by address, of the pictures that were fetched
    """

    def __init__(self, limits: Limits, fetched: Mapping[str, bytes] | None = None) -> None:
        self.limits, self.fetched = limits, fetched or {}
        self.pictures = self.pixels = self.characters = 0

    def text(self, text: str, place: str) -> str:
        """Raises ApiError where all texts together are too long."""
        self.characters += len(text)
        if self.characters > self.limits.characters:
            raise wrong(f"the texts of the request have more than {self.limits.characters:,} characters", place,
                        "too_large")  # fmt: skip
        return text

    def picture(self, url: str, place: str) -> PictureFile:
        """A picture of a data: URL, or one that was fetched; its pixels are decoded later. Raises ApiError."""
        self.pictures += 1
        if self.pictures > self.limits.pictures:
            raise wrong(f"the request has more than {self.limits.pictures} pictures", place, "too_large")
        content = self.fetched.get(url)
        content = of_data_url(url, place) if content is None else content
        width, height = size_of(content, place)
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            raise wrong(
                f"{place}: {width} x {height} pixels are more than the {self.limits.pixels:,} that the pictures of a "
                "request may have together: shrink it", place, "too_large",
            )  # fmt: skip
        if max(width, height) > SLIMMEST * min(width, height):
            raise wrong(f"{place}: one side of {width} x {height} pixels is more than {SLIMMEST} times as long as the "
                        "other: cut it, or send parts of it", place, "invalid_image")  # fmt: skip
        return PictureFile(content, name=place, limits=PictureLimits(max_pixels=self.limits.pixels))

    def sound(self, data: str, place: str) -> Waveform:
        """A sound of base64 of a WAV file, one channel at 16 kHz. Raises ApiError."""
        try:
            samples, rate = _wav(_base64(data, place), self.limits.sound_seconds)
            return Waveform(resampled(samples, rate), RATE)
        except MediaError as error:
            raise wrong(f"{place}: {error}", place, "invalid_audio") from error


def fetchable(url: str) -> bool:
    return url[:6].lower() == "https:" or url[:5].lower() == "http:"


def of_data_url(url: str, place: str) -> bytes:
    """The bytes of data:image/...;base64,... Raises ApiError for everything else, paths above all."""
    head, comma, body = url.partition(",")
    head = head[:100].lower()
    if not head.startswith("data:"):
        raise wrong(f"{place}: a picture is given as data:image/...;base64,...; paths and other addresses are not read",
                    place, "invalid_image_url")  # fmt: skip
    if not comma or not head.endswith(";base64") or not head.startswith("data:image/"):
        raise wrong(f"{place}: a data: URL must be data:image/...;base64,...", place, "invalid_image_url")
    return _base64(body, place)


def _base64(text: str, place: str) -> bytes:
    try:
        content = base64.b64decode("".join(text.split()) if any(map(str.isspace, text[:100])) else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(f"{place}: its base64 is damaged", place, "invalid_base64") from error
    if not content:
        raise wrong(f"{place}: it is empty", place, "invalid_base64")
    return content


def size_of(content: bytes, place: str) -> tuple[int, int]:
    """(width, height) that a picture's header says, of the formats that are taken. Raises ApiError."""
    try:
        if content[:4] == b"RIFF":
            return webp_size(content)  # Pillow would make room for all of its pixels
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise wrong(f"{place}: it has far too many pixels: shrink it", place, "too_large") from error
    except DECODER_ERRORS as error:
        names = "PNG, JPEG, WebP, GIF or BMP"
        raise wrong(f"{place}: it is no whole picture in the format {names}", place, "invalid_image") from error


def webp_size(content: bytes) -> tuple[int, int]:
    """(width, height) of a WebP file's canvas (RFC 9649). Raises ValueError."""
    kind, head = content[8:16], content[20:30]
    if len(head) < 10 or not kind.startswith(b"WEBP"):
        raise ValueError("no WebP header")
    if kind == b"WEBPVP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"WEBPVP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"WEBPVP8 " and head[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise ValueError("no WebP picture")


# ---- sounds


def _wav(content: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """(samples) float32, the mean of all channels, and their rate. Raises MediaError."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if not RATES[0] <= rate <= RATES[1] or channels > 16 or width > 4:
                raise MediaError(f"a sound has {RATES[0]} to {RATES[1]} samples a second, at most 16 channels and 32 "
                                 f"bits; this one {rate}, {channels} and {8 * width}")  # fmt: skip
            raw = file.readframes(math.ceil(seconds * rate) + 1)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise MediaError(f"it is no WAV file of PCM samples: {error}") from error
    frames = len(raw) // (width * channels)
    if not frames:
        raise MediaError("it has no samples")
    if frames > seconds * rate:
        raise MediaError(f"it is longer than {seconds:g} s")
    samples = _numbers(raw[: frames * width * channels], width)
    return samples.reshape(frames, channels).mean(1, dtype=np.float32), rate


def _numbers(raw: bytes, width: int) -> np.ndarray:
    """Samples from -1 to 1 of integers of 8 (unsigned), 16, 24 or 32 bits."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)
    return (np.frombuffer(raw, f"<i{width}") / 2 ** (8 * width - 1)).astype(np.float32)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples) at 16 kHz, by FFmpeg's resampler."""
    if rate == RATE:
        return samples
    import av  # 15 MB of libraries, which a server that hears nothing does without

    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    made = [*resampler.resample(frame), *resampler.resample(None)]
    if not made:
        raise UserError("a sound is too short to be read")
    return np.concatenate([one.to_ndarray()[0] for one in made]).astype(np.float32)
