"""What was asked and said, item by item, in files that a kill at any moment leaves usable."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from sensorium.errors import UserError
from sensorium.infer.likelihoods import Likelihoods

Answer = str | Likelihoods
BAD = "bad item: "
"""What the error of a row that holds no question begins with: it was never asked, and is in no score."""


@dataclass(kw_only=True)
class Record:
    """One item of a task, as it was asked and answered, in plain JSON.

    prompt    the conversation as words, media as <image>
    pictures  where they are
    options   of a multiple choice
    said      the answer as it came; of likelihoods {"sums", "counts"} over the options; None: there is none
    parsed    what the metric read in it; None: it could not be read
    score     by the metric's headline; None until all is said, and for an item that was never asked
    expected  for people
    error     why there is no answer
    blind_*   the same with the media of another item; None where no control was asked
    key       sha256 of who was asked, the prompt with the keys of its media, and the settings
    """

    id: str
    part: str = ""
    group: str = ""
    prompt: str = ""
    pictures: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    said: Any = None
    parsed: Any = None
    score: float | None = None
    expected: str = ""
    blind_said: Any = None
    blind_parsed: Any = None
    blind_score: float | None = None
    error: str = ""
    blind_error: str = ""
    key: str = ""
    blind_key: str = ""

    def line(self) -> bytes:
        # a model may say half of a surrogate pair: as an escape it is still JSON
        return json.dumps(asdict(self), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def plain(answer: Answer) -> Any:
    """An answer in plain JSON; `answer_of` reads it back, floats to the last bit."""
    return answer if isinstance(answer, str) else {"sums": list(answer.sums), "counts": list(answer.counts)}


def answer_of(value: Any) -> Answer:
    """Raises ValueError for what is no answer."""
    match value:
        case str():
            return value
        case {"sums": [*sums], "counts": [*counts]} if len(sums) == len(counts):
            return Likelihoods(tuple(map(float, sums)), tuple(map(float, counts)))
    raise ValueError(f"this is no answer: {str(value)[:80]}")


class RecordFile:
    """`folder/<task>.jsonl`: while a task runs each line is a record as far as it is known, of an id the last line
    counts; at the end it is replaced by one line for each item, in their order.

    What an earlier process wrote is known: `said` has its answers by their keys.
    """

    def __init__(self, folder: Path, task: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{file_name(task)}.jsonl"
        self._lock = FileLock(folder / f".{self.path.name}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is writing {self.path}: wait for it, or give another folder (--out)"
            ) from None
        self.said: dict[str, Answer] = {}
        self._file: IO[bytes] | None = None
        for record in read_records(self.path):
            for key, value in ((record.key, record.said), (record.blind_key, record.blind_said)):
                if key and value is not None:
                    self.said[key] = answer_of(value)

    def add(self, record: Record) -> None:
        """Append what is known of an item, to the system before this returns."""
        if self._file is None:
            self._file = open(self.path, "ab")  # noqa: SIM115 (kept open until all is said)
            if self._file.tell() and not _ends_whole(self.path):
                self._file.write(b"\n")  # what was killed in the middle of a line is that line alone
        self._file.write(record.line())
        self._file.flush()

    def finish(self, records: Iterable[Record]) -> None:
        """All of it, at once or not at all."""
        write_records(self.path, records)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()


def write_records(path: Path, records: Iterable[Record]) -> None:
    """A file with a line for each record, whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.writelines(record.line() for record in records)
    os.replace(beside, path)


def read_records(path: Path) -> list[Record]:
    """The records of a file in order, of an id the last; half-written lines are left out. Of no file: none."""
    found: dict[str, Record] = {}
    known = {one.name for one in fields(Record)}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
            record = Record(**{name: value[name] for name in known & set(value)})
            for one in (record.said, record.blind_said):
                if one is not None:
                    answer_of(one)
        except (ValueError, TypeError):
            continue
        found[record.id] = record
    return list(found.values())


def file_name(task: str) -> str:
    """A task's name as that of a file, on any system."""
    return re.sub(r"[^\w.+-]", "_", task).lstrip(".") or "task"


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


class AnswerCache:
    """Answers by the keys of their questions, over runs and folders: one file, for any number of processes, which a
    kill leaves whole (SQLite's own guarantee). Also remembers the sha256 of large files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, sha256 TEXT)"
            )

    @contextmanager
    def _told(self):
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the cache of answers {self.path} cannot be used: {error}. Delete it, or leave it out (--no-cache)"
            ) from error

    def get(self, key: str) -> Answer | None:
        with self._told():
            row = self._base.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else answer_of(json.loads(row[0]))
        except ValueError:
            return None

    def put(self, key: str, answer: Answer) -> None:
        with self._told():
            self._base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(plain(answer))))

    def sha256(self, path: Path) -> str:
        """Of a file's content; read again only when its size or time of change is another."""
        status = path.stat()
        place = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        with self._told():
            row = self._base.execute(
                "SELECT sha256 FROM files WHERE path = ? AND size = ? AND modified = ?", place
            ).fetchone()
            if row is not None:
                return row[0]
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            self._base.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (*place, found))
        return found

    def close(self) -> None:
        self._base.close()


def fingerprint_of_files(paths: Iterable[Path], root: Path, cache: AnswerCache, *about: str) -> str:
    """sha256 over files below `root`, by their names and contents, and what else answers depend on."""
    digest = hashlib.sha256("\0".join(about).encode())
    for path in sorted(paths):
        digest.update(f"\0{path.relative_to(root).as_posix()}\0{cache.sha256(path)}".encode())
    return digest.hexdigest()
