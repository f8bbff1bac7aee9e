"""The one core of every fetch: look in the cache, lock, try the routes in order, verify, publish atomically.

<cache>/pretrained/<name>-<sha256[:8]>/   files of a pretrained part, with .verified.json
<cache>/packages/<key>/                   files of a data package, with .complete.json
<cache>/partial/<key>/<route>/            downloads under way; never seen under a final name
<cache>/locks/<key>.lock                  one process at a time fetches a key
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from sensorium.errors import UserError
from sensorium.hub.pretrained import PinnedFile

log = logging.getLogger("sensorium.hub")

Progress = Callable[[str, int, int | None], None]
"""Called with (what is happening, bytes so far, bytes expected or None)."""

POLL_S = 0.2
_TRUE = ("1", "true", "yes", "on")


class RouteError(Exception):
    """One route did not deliver; the next one is tried. The message says why."""


class WrongContent(RouteError):
    """A route delivered something else than what is pinned: worth telling even when the next route delivers."""


@dataclass(frozen=True)
class Route:
    """One way to get the files. `fill(work, out)` puts them into `out` under their final names.

    work       scratch folder on the cache's filesystem, kept for the next try when `resumable`
    resumable  whether a later try can continue from what an interrupted one left in `work`
    """

    name: str
    label: str
    fill: Callable[[Path, Path], None]
    resumable: bool = False


class Goal(Protocol):
    """What a fetch is after: a target folder, whether it is already there, and how downloaded files get there."""

    @property
    def key(self) -> str: ...

    @property
    def target(self) -> Path: ...

    def problem(self) -> str | None:
        """None when the target is complete and verified; else what is wrong with it."""
        ...

    def publish(self, out: Path) -> None:
        """Verify what a route put into `out` and move it to the target. Raises RouteError on wrong content."""
        ...


def cache_root() -> Path:
    """`SENSORIUM_CACHE`, else `sensorium` in the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`)."""
    chosen = os.environ.get("SENSORIUM_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium"


def flag(variable: str) -> bool:
    """Whether an environment variable is set to a true value."""
    return os.environ.get(variable, "").strip().lower() in _TRUE


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 10e6 else f"{size / 1e6:.0f} MB"


def obtain(
    goal: Goal,
    routes: Sequence[Route],
    *,
    title: str,
    size: int | None = None,
    advice: str,
    progress: Progress | None = None,
    blocked: str | None = None,
) -> Path:
    """The goal's folder, fetched by the first route that delivers the right content.

    size     expected bytes, for the progress bar and the check of free space
    advice   what a person can do when no route delivers
    blocked  why no route may be tried (offline); the cache alone is looked at
    Raises UserError that lists every route with the reason it failed.
    """
    problem = goal.problem()
    if problem is None:
        return goal.target
    reasons = [] if not goal.target.exists() else [f"the cache: {problem}"]
    if blocked is not None:
        reasons += [f"{route.label}: not tried, {blocked}" for route in routes]
        raise UserError(_failure(title, reasons, advice))
    report = progress or _silent
    try:
        with locked(goal.key, title, report):
            if goal.problem() is None:  # another process fetched it while this one waited
                return goal.target
            _require_space(title, size)
            for route in routes:
                try:
                    _follow(route, goal, title, size, report)
                except RouteError as error:
                    reasons.append(f"{route.label}: {error}")
                    level = logging.WARNING if isinstance(error, WrongContent) else logging.INFO
                    log.log(level, "%s: %s: %s", title, route.label, error)
                else:
                    return goal.target
    except OSError as error:
        raise UserError(
            f"{title}: the cache folder {cache_root()} cannot be used: {error}. "
            "Free some space there, fix its permissions, or set SENSORIUM_CACHE to another folder."
        ) from error
    raise UserError(_failure(title, reasons, advice))


def _follow(route: Route, goal: Goal, title: str, size: int | None, report: Progress) -> None:
    partial = cache_root() / "partial" / goal.key
    work, out = partial / route.name, partial / f"{route.name}.out"
    shutil.rmtree(out, ignore_errors=True)
    if not route.resumable:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True)
    try:
        with _watched(work, f"{title} from {route.label}", size, report):
            route.fill(work, out)
        goal.publish(out)
    except RouteError:
        shutil.rmtree(out, ignore_errors=True)
        if not (route.resumable and bytes_under(work)):
            shutil.rmtree(work, ignore_errors=True)
        if not any(partial.iterdir()):
            partial.rmdir()
        raise
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(key: str, title: str, report: Progress) -> Iterator[None]:
    """Hold the key's lock; the operating system frees it when the holder dies."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"{title}: waiting for another process that is fetching it", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _watched(folder: Path, what: str, size: int | None, report: Progress) -> Iterator[None]:
    """Report the bytes under `folder` while the block runs: package clients show no progress that can be parsed."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            done = bytes_under(folder)
            report(what, done if size is None else min(done, size), size)  # a client may keep a second copy

    report(what, 0, size)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def bytes_under(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # the client removed it between listing and asking
                continue
    return total


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def _require_space(title: str, size: int | None) -> None:
    # An archive and the file taken from it exist side by side for a moment.
    root = cache_root()
    free = shutil.disk_usage(root).free
    if size is not None and free < 2 * size:
        raise UserError(
            f"{title} needs {megabytes(2 * size)} free while it is fetched, {root} has {megabytes(free)}. "
            "Free some space or set SENSORIUM_CACHE to a folder on another disk."
        )


def _failure(title: str, reasons: Sequence[str], advice: str) -> str:
    listed = "\n".join(f"  {number}. {reason}" for number, reason in enumerate(reasons, 1))
    return f"{title} is not in the local cache and could not be fetched:\n{listed}\n{advice}"


@dataclass(frozen=True)
class PinnedFiles:
    """Goal: files whose sha256 is known. Verified once; later by size and modification time, so start-up is instant."""

    key: str
    files: tuple[PinnedFile, ...]

    @property
    def target(self) -> Path:
        return cache_root() / "pretrained" / self.key

    def problem(self) -> str | None:
        stamps = self._stamps()
        fresh = dict(stamps)
        for file in self.files:
            path = self.target / file.name
            if not path.is_file():
                return f"{path} is missing"
            stat = path.stat()
            mark = [file.sha256, stat.st_size, stat.st_mtime_ns]
            if stamps.get(file.name) == mark:
                continue
            if stat.st_size != file.size:
                return f"{path} has {stat.st_size} bytes, expected {file.size}"
            found = sha256_of(path)
            if found != file.sha256:
                return f"{path} has sha256 {found}, expected {file.sha256}"
            fresh[file.name] = mark
        if fresh != stamps:
            self._stamp(fresh)
        return None

    def publish(self, out: Path) -> None:
        for file in self.files:
            path = out / file.name
            if not path.is_file():
                raise RouteError(f"it delivered no {file.name}")
            found = sha256_of(path)
            if found != file.sha256:
                path.unlink()
                raise WrongContent(
                    f"its {file.name} has sha256 {found}, expected {file.sha256}: the file was changed, cut short or "
                    "tampered with, and has been deleted"
                )
        self.target.mkdir(parents=True, exist_ok=True)
        marks = {}
        for file in self.files:
            os.replace(out / file.name, self.target / file.name)
            stat = (self.target / file.name).stat()
            marks[file.name] = [file.sha256, stat.st_size, stat.st_mtime_ns]
        self._stamp(marks)

    def _stamps(self) -> dict[str, list]:
        try:
            read = json.loads((self.target / ".verified.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}

    def _stamp(self, marks: dict[str, list]) -> None:
        # In a cache that this user may only read the files are hashed again each time, which is slower, not wrong.
        temporary = self.target / f".verified.{os.getpid()}.{threading.get_ident()}"
        try:
            temporary.write_text(json.dumps(marks), "utf-8")
            os.replace(temporary, self.target / ".verified.json")
        except PermissionError as error:
            log.info("cannot remember that %s was verified: %s", self.target, error)


@dataclass(frozen=True)
class PackageFiles:
    """Goal: a selection of a package's files, whose content the package client verified."""

    key: str

    @property
    def target(self) -> Path:
        return cache_root() / "packages" / self.key

    def problem(self) -> str | None:
        if (self.target / ".complete.json").is_file():
            return None
        return f"{self.target} is missing or incomplete"

    def publish(self, out: Path) -> None:
        manifest = {
            path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()
        }
        if not manifest:
            raise RouteError("it holds no file that was asked for")
        (out / ".complete.json").write_text(json.dumps(manifest, ensure_ascii=False), "utf-8")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.target, ignore_errors=True)
        os.replace(out, self.target)
