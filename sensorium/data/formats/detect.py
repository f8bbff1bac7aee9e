"""`open_data`: which format a file or folder has. The structure decides; names only find the parts of a folder.

Rules, in order:
1. a folder with metadata.jsonl or metadata.csv, or with pictures that have a .txt of the same name: PictureFolder
2. a folder with .parquet files: Parquet
3. a folder with one questions and at most one annotations file (both .json): Vqa
4. a folder with exactly one .jsonl or .json file: that file
5. a file that begins with PAR1: Parquet
6. one JSON object with the arrays `questions`: Vqa; `images` and `annotations`: CocoCaptions
7. JSON Lines or an array whose rows have `messages`: ChatJsonl; `conversations`: LlavaJson; `question` and `answer` or
   `answers`: QuestionJsonl; a picture and a text column: PictureFolder with that table
8. a .csv with a picture and a text column: PictureFolder with that table
Anything else is a UserError that says what was found.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.data.formats.captions import (
    METADATA,
    PICTURE_COLUMNS,
    TEXT_COLUMNS,
    CocoCaptions,
    Columns,
    PictureFolder,
    pairs,
)
from sensorium.data.formats.chat import ChatJsonl, LlavaJson
from sensorium.data.formats.files import JsonRows, first_character, scan
from sensorium.data.formats.parquet import Parquet, guess_columns
from sensorium.data.formats.questions import QuestionJsonl
from sensorium.data.formats.vqa import Vqa, picture_name
from sensorium.data.media import Limits
from sensorium.data.source import RowError, SourceConfig
from sensorium.errors import UserError, nearest

LOOKED_AT = 20  # rows that are read to recognise a layout
LONGEST_LINE = 1 << 26


def open_data(
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    picture_root: str | os.PathLike[str] | None = None,
    prompt: str | None = None,
    limits: Limits | None = None,
) -> SourceConfig:
    """The typed value that describes a user's data, found by its structure.

    columns       what columns hold, for tables and Parquet: {"image": ..., "text": ...} and others (see Parquet)
    annotations   the answers of a VQA questions file, when it does not lie beside it
    picture_root  folder of the pictures, when it is not found beside the file
    prompt        makes captions the answer to this text

    Raises UserError naming the file when nothing fits, with the nearest known key where a key is misspelt.
    """
    given = os.path.abspath(path)
    guess = _Guess(
        given,
        dict(columns or {}),
        os.path.abspath(annotations) if annotations is not None else None,
        os.path.abspath(picture_root) if picture_root is not None else None,
        prompt,
        limits or Limits(),
    )
    if not os.path.exists(given):
        raise UserError(f"{given}: no such file or folder")
    try:
        return guess.folder() if os.path.isdir(given) else guess.file(given)
    except ValidationError as error:
        raise UserError(f"{given}: {explain(error)}") from error


class _Guess:
    def __init__(
        self,
        path: str,
        columns: dict[str, str],
        annotations: str | None,
        root: str | None,
        prompt: str | None,
        limits: Limits,
    ):
        self.path, self.columns, self.annotations = path, columns, annotations
        self.root, self.prompt, self.limits = root, prompt, limits

    def folder(self) -> SourceConfig:
        names = sorted(os.listdir(self.path))
        for name in METADATA:
            if name in names:
                return self.file(os.path.join(self.path, name))
        if pairs(self.path)[0]:
            return PictureFolder(path=self.path, prompt=self.prompt, limits=self.limits)
        if any(name.endswith(".parquet") for _, _, found in os.walk(self.path) for name in found):
            return self.parquet(self.path)
        tables = [name for name in names if name.endswith((".jsonl", ".json"))]
        questions = [name for name in tables if "questions" in name.lower()]
        if len(questions) == 1 and all("annotations" in name.lower() for name in tables if name not in questions):
            return self.file(os.path.join(self.path, questions[0]))
        if len(tables) == 1:
            return self.file(os.path.join(self.path, tables[0]))
        found = f"{len(tables)} of them ({', '.join(tables[:5])})" if tables else "none"
        raise UserError(
            f"{self.path}: expected metadata.jsonl, metadata.csv, pictures with a .txt of the same name, .parquet "
            f"files, or exactly one .json or .jsonl file; of the last there are {found}. Name the file to use"
        )

    def file(self, path: str) -> SourceConfig:
        with open(path, "rb") as stream:
            if stream.read(4) == b"PAR1":
                return self.parquet(path)
        start = first_character(path)
        if start == "":
            raise UserError(f"{path} is empty")
        if path.lower().endswith(".csv"):
            return self.csv(path)
        if start == "[":
            return self.rows(path)
        if start == "{":
            lines = _first_lines(path)
            whole = [_whole(line) for line in lines]
            # A damaged first row still ends like a row, and others are whole; an object over several lines does not.
            if len(lines) > 1 and (whole[0] or (lines[0].endswith(b"}") and any(whole))):
                return self.rows(path)
            return self.single(path, whole[0])
        raise UserError(
            f"{path}: expected JSON Lines, JSON, CSV, Parquet or a folder of pictures; the file begins with {start!r}"
        )

    def parquet(self, path: str) -> Parquet:
        columns = self.columns or guess_columns(path)
        value = {"path": path, "columns": columns, "picture_root": self.root, "prompt": self.prompt}
        return Parquet.model_validate({**value, "limits": self.limits})

    def single(self, path: str, one_line: bool) -> SourceConfig:
        """One object in the file: VQA or COCO, known by its arrays; on one line it may be a row as well."""
        first: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for element in scan(path):
            if element.length and element.field not in first:
                first[str(element.field)] = element.value
            elif not element.length:
                plain[str(element.field)] = element.value
        if "questions" in first:
            return self.vqa(path, first["questions"], str(plain.get("data_subtype", "train2014")))
        if "annotations" in first and "images" in first:
            name = first["images"].get("file_name") if isinstance(first["images"], dict) else None
            if not isinstance(name, str):
                raise UserError(f"{path}: its first image has no file_name")
            root = self.find_root(path, lambda folder: os.path.exists(os.path.join(folder, name)), name)
            return CocoCaptions(path=path, picture_root=root, prompt=self.prompt, limits=self.limits)
        if one_line:
            return self.rows(path)
        keys = [*first, *plain]
        hints = "; ".join(filter(None, (_hint(key, ("questions", "annotations", "images")) for key in keys)))
        expected = "expected the arrays questions (VQA), or images and annotations (COCO); rows need one line each"
        raise UserError(f"{path}: one JSON object with the keys {', '.join(keys)}; {expected}. {hints}".rstrip(". "))

    def vqa(self, path: str, question: Any, subtype: str) -> Vqa:
        answers = self.annotations or _beside(path)
        question = question if isinstance(question, dict) else {}
        named, number = question.get("image", question.get("file_name")), question.get("image_id")
        if isinstance(named, str):
            root = self.find_root(path, lambda folder: os.path.exists(os.path.join(folder, named)), named)
            return Vqa(path=path, annotations=answers, picture_root=root, limits=self.limits)
        if not isinstance(number, int):
            raise UserError(f"{path}: its first question has neither image_id nor image")
        root = self.find_root(path, lambda folder: picture_name(folder, subtype, number) is not None, f"image {number}")
        name = picture_name(root, subtype, number)
        assert name is not None
        return Vqa(path=path, annotations=answers, picture_root=root, picture_name=name, limits=self.limits)

    def find_root(self, path: str, holds: Callable[[str], bool], what: str) -> str:
        """The folder that has the first picture: the given one, or one beside or above the file."""
        if self.root is not None:
            folders = [self.root]
        else:
            here = os.path.dirname(path)
            folders = [here, os.path.dirname(here)]
            for parent in tuple(folders):
                folders += sorted(entry.path for entry in os.scandir(parent) if entry.is_dir())
        for folder in folders:
            if holds(folder):
                return folder
        raise UserError(f"{path}: the first picture ({what}) is not in {', '.join(folders[:6])}: give picture_root")

    def rows(self, path: str) -> SourceConfig:
        """JSON Lines or an array, known by the keys of the first rows."""
        rows = JsonRows(path)
        if not len(rows):
            raise UserError(f"{path} has no rows")
        seen: dict[str, int] = {}
        problem: RowError | None = None
        for index in range(min(LOOKED_AT, len(rows))):
            try:
                for key in rows.row(index):
                    seen.setdefault(key, index)
            except RowError as error:
                problem = problem or error
        if "messages" in seen:
            return ChatJsonl(path=path, picture_root=self.root, limits=self.limits)
        if "conversations" in seen:
            return LlavaJson(path=path, picture_root=self.root, limits=self.limits)
        if "question" in seen and ("answer" in seen or "answers" in seen):
            return QuestionJsonl(path=path, picture_root=self.root, limits=self.limits)
        columns = self.table_columns(list(seen))
        if columns is not None:
            return self.table(path, columns)
        if not seen and problem is not None:
            raise UserError(str(problem))
        known = ("messages", "conversations", "question", "answer", *PICTURE_COLUMNS, *TEXT_COLUMNS)
        hints = "; ".join(f"{rows.where(seen[key])}: {hint}" for key in seen if (hint := _hint(key, known)))
        keys = ", ".join(map(repr, seen)) or "none"
        expected = (
            "expected rows with messages (chat), conversations (LLaVA), question and answer, or file_name and text "
            "(captions)"
        )
        raise UserError(f"{hints or rows.where(0)}: {expected}; the keys are {keys}")

    def csv(self, path: str) -> PictureFolder:
        try:
            with open(path, encoding="utf-8-sig", newline="") as stream:
                header = next(csv.reader(stream), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} line 1 cannot be read as CSV in UTF-8: {error}") from error
        columns = self.table_columns(header)
        if columns is None:
            hints = "; ".join(filter(None, (_hint(key, (*PICTURE_COLUMNS, *TEXT_COLUMNS)) for key in header)))
            expected = "expected a file_name and a text column, or columns={'image': ..., 'text': ...}"
            raise UserError(f"{path} line 1: {expected}; the columns are {', '.join(header)}. {hints}".rstrip(". "))
        return self.table(path, columns)

    def table_columns(self, names: list[str]) -> Columns | None:
        unknown = set(self.columns) - {"image", "text"}
        if unknown:
            raise UserError(f"columns: {sorted(unknown)[0]!r} is not one of image, text for a table of captions")
        picture = self.columns.get("image") or next((name for name in PICTURE_COLUMNS if name in names), None)
        text = self.columns.get("text") or next((name for name in TEXT_COLUMNS if name in names), None)
        for column in self.columns.values():
            if column not in names:
                raise UserError(f"{self.path}: no column {column!r}: {nearest(column, names)}")
        return None if picture is None or text is None else Columns(picture=picture, text=text)

    def table(self, path: str, columns: Columns) -> PictureFolder:
        folder, name = os.path.split(path)
        if self.root is not None:
            folder, name = self.root, path  # os.path.join keeps an absolute second path as it is
        return PictureFolder(path=folder, table=name, columns=columns, prompt=self.prompt, limits=self.limits)


def _first_lines(path: str) -> list[bytes]:
    """The first lines that are not blank, at most LOOKED_AT."""
    lines: list[bytes] = []
    with open(path, "rb") as stream:
        while len(lines) < LOOKED_AT and (line := stream.readline(LONGEST_LINE)):
            lines += [stripped] if (stripped := line.removeprefix(b"\xef\xbb\xbf").strip()) else []
    return lines


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _beside(path: str) -> str | None:
    """The annotations of a questions file: VQA v2 swaps one word of the name and drops its prefix."""
    folder, name = os.path.split(path)
    found = [
        entry for entry in sorted(os.listdir(folder)) if "annotations" in entry.lower() and entry.endswith(".json")
    ]
    if len(found) > 1:
        words = set(name.lower().replace(".", "_").split("_"))
        found.sort(key=lambda entry: -len(words & set(entry.lower().replace(".", "_").split("_"))))
    return os.path.join(folder, found[0]) if found else None


def _hint(key: str, known: Iterable[str]) -> str:
    fragment = nearest(key, known)
    return f"key {key!r}: {fragment}" if fragment.startswith("did you mean") and key not in known else ""
