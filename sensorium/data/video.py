"""Clips from files: a few frames, evenly spread, decoded lazily and safely."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image, ImageSequence

from sensorium.data.media import DECODER_ERRORS, DEFAULT_LIMITS, Limits, PictureFile
from sensorium.sequence import MediaError, Timing

if TYPE_CHECKING:
    from av.container import InputContainer

ANIMATIONS = (".webp", ".gif", ".png", ".apng")
FRAMES = 8
"""How many are taken where neither the user nor the model says."""


class ClipFile:
    """A few frames of a clip, from a path: the Clip protocol of sequence.py.

    Animated pictures (WebP, GIF, APNG) are read by Pillow, everything else by FFmpeg.

    frames  how many (all, where it has fewer): frame i of n is the one in the middle of the i-th of n equal parts of
            the clip. None: as the model has it, and FRAMES of a model that does not say
    taken   their numbers, in order, instead

    Everything that cannot be decoded raises MediaError, which names the file and the reason.
    """

    def __init__(
        self, path: str | os.PathLike[str], frames: int | None = None, limits: Limits = DEFAULT_LIMITS,
        taken: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        if (frames is not None and frames < 1) or taken == ():
            raise ValueError(f"a clip is at least one frame, {frames or 0} were asked for")
        self.path, self.limits, self._taken = os.fspath(path), limits, taken
        self.frames = len(taken) if taken else frames or FRAMES
        self.asked = frames is not None or taken is not None
        self._file = PictureFile(self.path, limits=limits)

    def __repr__(self) -> str:
        return f"ClipFile({self.path!r}, frames={self.frames})"

    def key(self) -> str:
        """sha256 (hex) of the encoded content and the number of frames, or their numbers."""
        return hashlib.sha256(f"{self._file.key()} {self._taken or self.frames}".encode()).hexdigest()

    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width), from the header. Raises MediaError."""
        _, height, width = self._extent
        return len(self._wanted()), height, width

    def timing(self) -> Timing:
        """Frames follow each other evenly, at the clip's average rate. Raises MediaError where it says no times."""
        count = self._extent[0]
        duration = self._duration
        if duration <= 0:
            raise self._error("does not say how long it is, or how many frames it shows a second")
        return Timing(count, float(count / duration), float(duration), tuple(self._wanted()))

    def taking(self, numbers: Sequence[int]) -> ClipFile:
        """Raises ValueError for numbers that are no frames of it, or out of order."""
        taken = tuple(map(int, numbers))
        if not taken or list(taken) != sorted(set(taken)) or not 0 <= taken[0] <= taken[-1] < self._extent[0]:
            raise ValueError(f"{taken} are no frames of a clip that has {self._extent[0]}: numbers from 0, in order")
        found = ClipFile(self.path, None, self.limits, taken)
        found._extent = self._extent  # read once
        return found

    def _wanted(self) -> list[int]:
        """Numbers of the frames that are given."""
        count = self._extent[0]
        if self._taken is not None:
            return list(self._taken)
        taken = min(self.frames, count)
        return [int((index + 0.5) * count / taken) for index in range(taken)]

    def load(self) -> list[Image.Image]:
        """The frames in order, mode RGB. Raises MediaError."""
        count, wanted = self._extent[0], self._wanted()
        try:
            found = self._pictures(wanted) if self._animated else self._video(wanted)
        except DECODER_ERRORS as error:
            raise self._error(f"cannot be decoded: {error}") from error
        if len(found) != len(wanted):
            raise self._error(f"its header says {count} frames, {len(found)} of the {len(wanted)} asked for could be "
                              "decoded")  # fmt: skip
        return found

    @property
    def _animated(self) -> bool:
        return self.path.lower().endswith(ANIMATIONS)

    @cached_property
    def _extent(self) -> tuple[int, int, int]:
        """(frames in all, height, width)."""
        self._file.key()  # a missing, empty or unreadable file is named here
        try:
            if self._animated:
                with Image.open(self.path) as image:
                    extent = getattr(image, "n_frames", 1), image.height, image.width
            else:
                with _opened(self.path) as container:
                    if not container.streams.video:
                        raise self._error("has no video stream")
                    stream = container.streams.video[0]
                    extent = stream.frames or _counted(self.path), stream.height, stream.width
        except DECODER_ERRORS as error:
            raise self._error(f"cannot be opened as a clip: {error}") from error
        if min(extent) < 1 or extent[1] * extent[2] > self.limits.max_pixels:
            raise self._error(f"has {extent[0]} frames of {extent[2]} x {extent[1]} pixels; a frame has at least one "
                              f"pixel and at most {self.limits.max_pixels:,}")  # fmt: skip
        return extent

    @cached_property
    def _duration(self) -> Fraction:
        """Seconds in all; 0 where nothing says."""
        try:
            if self._animated:
                with Image.open(self.path) as image:
                    shown = [_milliseconds(frame) for frame in ImageSequence.Iterator(image)]
                return Fraction(sum(shown)) / 1000 if all(shown) else Fraction(0)
            with _opened(self.path) as container:
                rate = container.streams.video[0].average_rate
            return Fraction(self._extent[0]) / rate if rate else Fraction(0)
        except DECODER_ERRORS as error:
            raise self._error(f"its times cannot be read: {error}") from error

    def _pictures(self, wanted: list[int]) -> list[Image.Image]:
        chosen = set(wanted)
        with Image.open(self.path) as image:
            frames = enumerate(ImageSequence.Iterator(image))
            return [_on_white(frame) for number, frame in frames if number in chosen]

    def _video(self, wanted: list[int]) -> list[Image.Image]:
        chosen, found = set(wanted), []
        with _opened(self.path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in chosen:
                    found.append(frame.to_image())
                if number >= wanted[-1]:
                    break
        return found

    def _error(self, reason: str) -> MediaError:
        return MediaError(f"{self.path}: {reason}")


def _on_white(frame: Image.Image) -> Image.Image:
    picture = frame.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _milliseconds(frame: Image.Image) -> float:
    """How long a frame of an animated picture is shown."""
    frame.load()  # some formats say it only then
    return frame.info.get("duration", 0)


def _opened(path: str) -> InputContainer:
    """By FFmpeg, whose libraries take 15 MB: only who reads clips brings them in."""
    import av

    return av.open(path)


def _counted(path: str) -> int:
    """Frames of a file whose header does not say: its packets, without decoding them."""
    with _opened(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
