"""Sets of data that come as a package: fetched once by whoever has a package client, found here under their name."""

from __future__ import annotations

import os
from pathlib import Path

from sensorium.errors import UserError


def cache_folder(name: str) -> Path:
    """Where a fetched set lies: data/<name> in `SENSORIUM_CACHE`, else in the user's cache folder."""
    given = os.environ.get("SENSORIUM_CACHE")
    if given:
        return Path(given).expanduser() / "data" / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium" / "data" / name


def link(package: str | os.PathLike[str], name: str) -> Path:
    """Make a package's unpacked tree the set of this name: a link, which appears last and at once. Raises UserError."""
    target, tree = cache_folder(name), Path(package).resolve()
    if target.is_dir() and target.resolve() == tree:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(tree, target_is_directory=True)
    try:
        beside.replace(target)
    except OSError as error:
        beside.unlink()
        raise UserError(f"{target} is in the way: move it away and fetch again ({error})") from error
    return target
