"""Sounds from files, as one channel of samples at a rate."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property

import numpy as np

from sensorium.data.media import DECODER_ERRORS, PictureFile
from sensorium.sequence import MediaError, Waveform


class SoundFile:
    """A sound (or the sound of a clip), from a path: the Media protocol of sequence.py.

    Everything that cannot be decoded raises MediaError, which names the file and the reason.
    """

    def __init__(self, path: str | os.PathLike[str], rate: int = 16_000) -> None:
        """rate: samples a second that it is brought to, by FFmpeg's resampler."""
        self.path, self.rate = os.fspath(path), rate
        self._file = PictureFile(self.path)

    def __repr__(self) -> str:
        return f"SoundFile({self.path!r}, rate={self.rate})"

    def key(self) -> str:
        """sha256 (hex) of the encoded content and the rate."""
        return hashlib.sha256(f"{self._file.key()} {self.rate}".encode()).hexdigest()

    def shape(self) -> tuple[int]:
        """(samples). Decodes: headers are not to be relied upon."""
        return (len(self._samples),)

    def load(self) -> Waveform:
        return Waveform(self._samples, self.rate)

    @cached_property
    def _samples(self) -> np.ndarray:
        """(samples) float32, the mean of all channels."""
        import av  # FFmpeg's libraries take 15 MB: only who reads sounds brings them in

        self._file.key()  # a missing, empty or unreadable file is named here
        pieces: list[np.ndarray] = []
        try:
            with av.open(self.path) as container:
                if not container.streams.audio:
                    raise MediaError(f"{self.path} has no sound")
                resampler = av.AudioResampler(format="fltp", layout="mono", rate=self.rate)
                for frame in container.decode(container.streams.audio[0]):
                    pieces += [made.to_ndarray()[0] for made in resampler.resample(frame)]
                pieces += [made.to_ndarray()[0] for made in resampler.resample(None)]
        except DECODER_ERRORS as error:
            raise MediaError(f"{self.path} cannot be decoded as a sound: {error}") from error
        if not sum(map(len, pieces)):
            raise MediaError(f"{self.path} has no samples")
        return np.concatenate(pieces).astype(np.float32)
