"""Clips from files: a few frames, evenly spread, decoded lazily and safely."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property

import av
from PIL import Image, ImageSequence

from sensorium.data.media import DECODER_ERRORS, DEFAULT_LIMITS, Limits, PictureFile
from sensorium.sequence import MediaError

ANIMATIONS = (".webp", ".gif", ".png", ".apng")


class ClipFile:
    """`frames` frames of a clip (all, where it has fewer), from a path: the Media protocol of sequence.py.

    Animated pictures (WebP, GIF, APNG) are read by Pillow, everything else by FFmpeg. Frame i of n is the one in the
    middle of the i-th of n equal parts of the clip.

    Everything that cannot be decoded raises MediaError, which names the file and the reason.
    """

    def __init__(self, path: str | os.PathLike[str], frames: int = 8, limits: Limits = DEFAULT_LIMITS) -> None:
        if frames < 1:
            raise ValueError(f"a clip is at least one frame, {frames} were asked for")
        self.path, self.frames, self.limits = os.fspath(path), frames, limits
        self._file = PictureFile(self.path, limits=limits)

    def __repr__(self) -> str:
        return f"ClipFile({self.path!r}, frames={self.frames})"

    def key(self) -> str:
        """sha256 (hex) of the encoded content and the number of frames."""
        return hashlib.sha256(f"{self._file.key()} {self.frames}".encode()).hexdigest()

    def shape(self) -> tuple[int, int, int]:
        """(frames, height, width), from the header. Raises MediaError."""
        count, height, width = self._extent
        return min(self.frames, count), height, width

    def load(self) -> list[Image.Image]:
        """The frames in order, mode RGB. Raises MediaError."""
        count = self._extent[0]
        taken = min(self.frames, count)
        wanted = [int((index + 0.5) * count / taken) for index in range(taken)]
        try:
            found = self._pictures(wanted) if self._animated else self._video(wanted)
        except DECODER_ERRORS as error:
            raise self._error(f"cannot be decoded: {error}") from error
        if len(found) != taken:
            raise self._error(f"its header says {count} frames, {len(found)} of the {taken} asked for could be decoded")
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
                with av.open(self.path) as container:
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

    def _pictures(self, wanted: list[int]) -> list[Image.Image]:
        chosen = set(wanted)
        with Image.open(self.path) as image:
            frames = enumerate(ImageSequence.Iterator(image))
            return [_on_white(frame) for number, frame in frames if number in chosen]

    def _video(self, wanted: list[int]) -> list[Image.Image]:
        chosen, found = set(wanted), []
        with av.open(self.path) as container:
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


def _counted(path: str) -> int:
    """Frames of a file whose header does not say: its packets, without decoding them."""
    with av.open(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
