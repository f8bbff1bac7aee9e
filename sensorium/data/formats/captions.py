"""Pictures with captions: COCO, and a folder of pictures with metadata.jsonl, metadata.csv or same-name .txt files."""

from __future__ import annotations

import csv
import os
from array import array
from collections import Counter
from typing import Any

from pydantic import Field

from sensorium.config import Config
from sensorium.data.formats.base import FileSource, JsonSource, RowSource
from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, RowReader, show
from sensorium.data.media import Limits
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError, nearest
from sensorium.sequence import Sample

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".jp2", ".ico")
PICTURE_COLUMNS = ("file_name", "image")
TEXT_COLUMNS = ("text", "caption")
METADATA = ("metadata.jsonl", "metadata.csv")


class CocoCaptions(FileSource):
    """COCO captions: one object with `images` [{id, file_name}] and `annotations` [{image_id, caption}].

    A row is an annotation: a picture with five captions is five rows.

    picture_root  the folder of the pictures
    prompt        None: plain samples, every word of the caption trained; text: the caption answers it
    """

    picture_root: str
    prompt: str | None = None

    def build(self) -> CocoSource:
        return CocoSource(self)


class CocoSource(JsonSource):
    def __init__(self, config: CocoCaptions):
        super().__init__(
            JsonRows(config.path, "annotations"), RowReader(config.picture_root, config.path, config.limits)
        )
        self._prompt = config.prompt
        self._pictures = JsonRows(config.path, "images", key="id")
        self._number: dict[int | str, int] = {}
        for number, key in enumerate(self._pictures.keys):
            if key is None:
                raise UserError(f"{self._pictures.where(number)}: an image without an id")
            if key in self._number:
                raise UserError(f"{self._pictures.where(number)}: the image id {key!r} is used twice")
            self._number[key] = number

    def read(self, row: dict[str, Any], where: str) -> Sample:
        self.reader.keys(row, ("image_id", "caption", "id"), ("image_id", "caption"))
        key = row["image_id"]
        number = self._number.get(key) if isinstance(key, int | str) else None
        if number is None:
            raise BadRow(f"image_id {show(key)} is not among the file's {len(self._number)} images")
        picture = self._pictures.row(number)
        self.reader.keys(picture, COCO_IMAGE_KEYS, ("file_name",), f"image {show(key)}")
        media = self.reader.picture(picture["file_name"], where)
        return self.reader.caption(row, where, media, row["caption"], self._prompt)


COCO_IMAGE_KEYS = ("id", "file_name", "width", "height", "license", "coco_url", "flickr_url", "date_captured")


class Columns(Config):
    """Which columns of a caption table hold what."""

    picture: str = Field(min_length=1)
    text: str = Field(min_length=1)


class PictureFolder(SourceConfig):
    """A folder of pictures with captions, or the table that names both.

    path     the folder, or the table itself (.jsonl or .csv)
    table    the file in the folder that has a picture and a text column (Hugging Face imagefolder: metadata.jsonl or
             metadata.csv with file_name and text); None: each picture has a .txt of the same name beside it
    columns  the columns of the table
    prompt   None: plain samples, every word of the caption trained; text: the caption answers it
    """

    path: str = Field(min_length=1)
    table: str | None = None
    columns: Columns = Columns(picture="file_name", text="text")
    prompt: str | None = None
    limits: Limits = Limits()

    def build(self) -> RowSource:
        if self.table is None:
            return TextFileSource(self)
        path = os.path.join(self.path, self.table)
        return CsvSource(self, path) if path.lower().endswith(".csv") else TableSource(self, path)


class TableSource(JsonSource):
    """Rows of a metadata.jsonl."""

    def __init__(self, config: PictureFolder, path: str):
        super().__init__(JsonRows(path), RowReader(config.path, path, config.limits))
        self._columns, self._prompt = config.columns, config.prompt

    def read(self, row: dict[str, Any], where: str) -> Sample:
        return _table_sample(self.reader, self._columns, self._prompt, row, where)


def _table_sample(reader: RowReader, columns: Columns, prompt: str | None, row: dict[str, Any], where: str) -> Sample:
    needed = (columns.picture, columns.text)
    reader.keys(row, (*needed, "id"), needed)
    media = reader.picture(row[columns.picture], where)
    return reader.caption(row, where, media, row[columns.text], prompt)


class CsvSource(RowSource):
    """Rows of a metadata.csv, with quoted cells over several lines. Cells are held in memory: pictures are not."""

    def __init__(self, config: PictureFolder, path: str):
        self.reader = RowReader(config.path, path, config.limits)
        self._path, self._columns, self._prompt = path, config.columns, config.prompt
        self._rows: list[list[str]] = []
        self._lines = array("q")
        before = 0
        try:
            with open(path, encoding="utf-8-sig", newline="") as stream:
                table = csv.reader(stream, strict=True)
                self._header = next(table, [])
                before = table.line_num
                for cells in table:
                    if cells:
                        self._rows.append(cells)
                        self._lines.append(before + 1)
                    before = table.line_num
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}): save it as UTF-8"
            ) from error
        except csv.Error as error:
            raise UserError(f"{path} line {before + 1}: malformed CSV: {error}") from error
        for column in (config.columns.picture, config.columns.text):
            if column not in self._header:
                raise UserError(f"{path} line 1: no column {column!r}: {nearest(column, self._header)}")
        if not self._rows:
            raise UserError(f"{path} has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return f"{self._path} line {self._lines[index]}"

    def convert(self, index: int) -> Sample:
        cells = self._rows[index]
        if len(cells) != len(self._header):
            raise BadRow(f"{len(cells)} cells, the header has {len(self._header)}")
        row = dict(zip(self._header, cells))
        return _table_sample(self.reader, self._columns, self._prompt, row, self.where(index))


class TextFileSource(RowSource):
    """Pictures with a .txt of the same name, in folders of any depth, sorted by path. A .txt is one caption."""

    def __init__(self, config: PictureFolder):
        self.reader = RowReader(config.path, config.path, config.limits)
        self._prompt = config.prompt
        self._pairs, self.without_caption, self.without_picture = pairs(config.path)
        if not self._pairs:
            raise UserError(f"{config.path}: no picture has a .txt of the same name beside it")

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def standing(self) -> Counter[str]:
        return +Counter(
            {
                "pictures without a .txt of the same name (not used)": len(self.without_caption),
                ".txt files without a picture of the same name (not used)": len(self.without_picture),
            }
        )

    def where(self, index: int) -> str:
        return self._pairs[index][1]

    def convert(self, index: int) -> Sample:
        picture, words = self._pairs[index]
        try:
            with open(words, encoding="utf-8-sig") as stream:
                text = stream.read().strip()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadRow(f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8; save the file as UTF-8") from error
        except OSError as error:
            raise BadRow(f"cannot be read: {error.strerror or error}") from error
        row = {"id": os.path.relpath(picture, self.reader.base)}
        return self.reader.caption(row, words, self.reader.picture(picture, words), text, self._prompt)


def pairs(folder: str) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """((picture, text) paths, pictures without text, texts without picture), each sorted.

    Two pictures of one stem (a.png and a.jpg) both take a.txt: nothing is dropped.
    """
    pictures: list[str] = []
    texts: set[str] = set()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            stem, suffix = os.path.splitext(os.path.join(place, name))
            if suffix.lower() in PICTURE_SUFFIXES:
                pictures.append(stem + suffix)
            elif suffix == ".txt":
                texts.add(stem)
    pictures.sort()
    stems = {os.path.splitext(picture)[0] for picture in pictures}
    found = [(picture, os.path.splitext(picture)[0] + ".txt") for picture in pictures]
    paired = [pair for pair in found if pair[1][:-4] in texts]
    missing = [picture for picture, text in found if text[:-4] not in texts]
    return paired, missing, sorted(stem + ".txt" for stem in texts - stems)
