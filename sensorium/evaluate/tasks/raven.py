"""Raven's progressive matrices, as RAVEN and I-RAVEN publish them."""

from __future__ import annotations

import glob
import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from sensorium.data.formats.rows import BadRow, show
from sensorium.data.media import PictureFile
from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE, Items, TaskItem, TaskSource
from sensorium.evaluate.tasks.reading import LETTER, Gathering, shown
from sensorium.sequence import MediaError

CONTEXT = 8
"""Panels that are given, row by row; the ninth is asked for."""
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a matrix, a Media: grey pixels of `image` in an .npz, decoded when they are needed."""

    path: str
    number: int
    height: int
    width: int

    def key(self) -> str:
        return hashlib.sha256(f"{PictureFile(self.path).key()} {self.number}".encode()).hexdigest()

    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def load(self) -> Image.Image:
        """Raises MediaError."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return Image.fromarray(arrays["image"][self.number]).convert("RGB")
        except DAMAGED as error:
            raise MediaError(f"{self.path}: panel {self.number} cannot be read: {error}") from error


class Raven(TaskSource):
    """A folder per configuration of RAVEN_0_test.npz ...: image (16, 160, 160) uint8, target (arXiv 1903.02741).

    Of the 16 panels the first 8 are the matrix, row by row, the others the candidates; target is the number of the
    right one. The arrays `structure` and `meta_*` are not needed, nor read: they may be pickles. Kosmos-1's own
    matrices (IQ50) are asked alike, each candidate as an option.

    path      the folder of the configurations, or one of them: its name is the part of an item
    split     test, val or train: the end of a file's name
    question  what is asked, with a place for each panel of the matrix
    """

    title: ClassVar[str] = "Raven"
    metric: ClassVar[str] = "choice"
    asks: ClassVar[str] = LETTER
    layout: ClassVar[str] = "center_single/RAVEN_0_test.npz, distribute_four/... of RAVEN-10000"

    path: str = Field(min_length=1)
    split: str = "test"
    question: str = f"Here are eight images of a pattern in three rows of three: {PLACE * CONTEXT} Which comes next?"

    def load(self) -> Items:
        if not os.path.isdir(self.path):
            raise UserError(f"{self.path} is no folder; expected {self.layout}")
        if self.question.count(PLACE) != CONTEXT:
            raise UserError(f"the question of a matrix has {CONTEXT} places {PLACE}, this has another number")
        found = Gathering()
        folder = glob.escape(self.path)
        name = f"*_{glob.escape(self.split)}.npz"
        paths = [*glob.glob(os.path.join(folder, name)), *glob.glob(os.path.join(folder, "*", name))]
        for path in sorted(paths, key=lambda path: (os.path.dirname(path), _number(path))):
            found.add(path, self._read, path)
        return found.given(f"{self.path} as {self.title}", self.layout)

    def _read(self, path: Any, where: str) -> TaskItem:
        count, height, width, target = _head(path)
        candidates = count - CONTEXT
        if not 0 <= target < candidates:
            raise BadRow(f"target is {target}, there are {candidates} candidates: 0 to {candidates - 1}")
        part = os.path.basename(os.path.dirname(os.path.abspath(path)))
        key = f"{part}/{os.path.splitext(os.path.basename(path))[0]}"
        return TaskItem(
            id=key,
            question=self.question,
            media=shown(*(Panel(path, number, height, width) for number in range(count))),
            options=(PLACE,) * candidates,
            answer=target,
            group=key,
            part=part,
        )


def _number(path: str) -> tuple[int, str]:
    """RAVEN_10_test after RAVEN_9_test."""
    digits = os.path.basename(path).split("_")[1:2]
    return (int(digits[0]) if digits and digits[0].isdigit() else -1), path


def _head(path: str) -> tuple[int, int, int, int]:
    """Panels, height, width and target; pixels are not decoded. Raises BadRow."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("image.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        with np.load(path, allow_pickle=False) as arrays:
            target = arrays["target"]
    except DAMAGED as error:
        raise BadRow(f"is no matrix with image and target: {error}") from error
    if len(shape) != 3 or dtype != np.uint8 or shape[0] < CONTEXT + 2:
        raise BadRow(f"image must be (16, height, width) uint8, found {shape} {dtype}")
    if target.shape != () or not np.issubdtype(target.dtype, np.integer):
        raise BadRow(f"target must be a number, found {show(target.tolist())}")
    return *shape, int(target)
