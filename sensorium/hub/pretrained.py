"""What a pretrained part is made of: its files with their sha256, and the two routes to them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from sensorium.config import Config

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PackageKind = Literal["pypi", "npm", "debian"]

# The name ends up in the arguments of a package client: it must never read as an option or a path.
_PACKAGE_NAME = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)?")
_PACKAGE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~!-]*")


class PinnedFile(Config):
    """One file: its name in the cache, its content, and where each route keeps it."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    """Bytes."""
    package: str
    """Path inside the package."""
    hub: str | None = None
    """Path inside the hub repository, where the part names one."""


class HubRepo(Config):
    """A repository of the Hugging Face hub at one revision (a commit id, so the content cannot move)."""

    repo: str
    revision: str


class Package(Config):
    """A package of an index that the user's own client reaches: pip, npm or apt, with its mirrors and proxies."""

    kind: PackageKind
    name: str
    version: str | None = None
    """None takes what the index offers (Debian mirrors keep one version of a package per release)."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _PACKAGE_NAME.fullmatch(value):
            raise ValueError("not a package name")
        return value

    @field_validator("version")
    @classmethod
    def _version(cls, value: str | None) -> str | None:
        if value is not None and not _PACKAGE_VERSION.fullmatch(value):
            raise ValueError("not a package version")
        return value

    def __str__(self) -> str:
        separator = {"pypi": "==", "npm": "@", "debian": "="}[self.kind]
        return self.name if self.version is None else f"{self.name}{separator}{self.version}"


class Pretrained(Config):
    """A published checkpoint. `files[0]` holds the weights, the others lie beside it in the cache.

    Both routes must deliver the same bytes, since one sha256 pins both. A repository that holds the same model in
    another format is another Pretrained. `hub` is None where no repository is known to hold the pinned file.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    title: str
    licence: str
    """SPDX id."""
    format: Literal["gguf", "state_dict", "safetensors", "ctranslate2"]
    files: Annotated[tuple[PinnedFile, ...], Field(min_length=1)]
    package: Package
    hub: HubRepo | None = None

    @model_validator(mode="after")
    def _hub_holds_all(self) -> Self:
        unplaced = [file.name for file in self.files if file.hub is None]
        if self.hub is not None and unplaced:
            raise ValueError(f"it names a hub repository, but not where {unplaced} lie in it")
        return self

    @property
    def sha256(self) -> str:
        """sha256 of the weights."""
        return self.files[0].sha256

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def key(self) -> str:
        """Folder name in the cache: two releases that pin different weights never share a folder."""
        return f"{self.name}-{self.sha256[:8]}"
