"""Published checkpoints by their names: folders here, or `organisation/name` of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sensorium.convert.published import is_published
from sensorium.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ("*.json", "*.safetensors", "*.jinja")
"""What is fetched: never pickles, never code."""


def published_folder(name: str | os.PathLike[str], revision: str | None = None) -> Path | None:
    """The folder of a published checkpoint; None where the name is of something else.

    A hub id that is no folder here is fetched into the cache of the hub's own client, or found there.
    Raises UserError for an id that cannot be fetched.
    """
    path = Path(name)
    if path.exists():
        return path if path.is_dir() and is_published(path) else None
    if not _ID.fullmatch(str(name)) or str(name).endswith(".py") or str(name).startswith("runs/"):
        return None
    # the client is a tenth of a second to import, and folders here do without it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(WANTED), endpoint=endpoint))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no folder {name}, and the hub does not give a model of this name: {error}. Give a folder with "
            "config.json and safetensors, or check the name and the network"
        ) from error
