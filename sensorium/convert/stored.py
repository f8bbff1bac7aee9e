"""The tensors of a published checkpoint folder: one safetensors file or several shards, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sensorium.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""A file is at most this large when it is written, unless one tensor alone is larger."""


class Stored:
    """An opened folder. Use `with`: nothing is read before it is asked for, and nothing of it is executed.

    Raises UserError for weights that are missing, cut short, damaged, or stored as pickle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        """Names that are given -> those in the files, where they differ."""
        self.where: dict[str, str] = {}
        """Tensor name -> file name."""

    def __enter__(self) -> Stored:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        index = self.folder / INDEX
        if (self.folder / SINGLE).exists() and not index.exists():
            self._open_file(SINGLE)
            self.where = dict.fromkeys(self._files[SINGLE].keys(), SINGLE)
            return
        if not index.exists():
            raise self._no_weights()
        self.where = self._read_index(index)
        names = sorted(set(self.where.values()))
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise UserError(f"{index} names {len(names)} files, and {len(missing)} of them are not there: "
                            f"{', '.join(missing[:3])}. Fetch them again")  # fmt: skip
        for name in names:
            self._open_file(name)
            held = set(self._files[name].keys())
            lost = sorted(tensor for tensor, file in self.where.items() if file == name and tensor not in held)
            if lost:
                raise UserError(f"{index} says that {name} holds {lost[0]!r}, which it does not: the files are of "
                                "different versions. Fetch the folder again")  # fmt: skip

    def _open_file(self, name: str) -> None:
        try:
            self._files[name] = self._stack.enter_context(safe_open(self.folder / name, "pt"))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.folder / name} is not a whole safetensors file: {error}. Fetch it again") from error

    def _read_index(self, path: Path) -> dict[str, str]:
        try:
            where = json.loads(path.read_text("utf-8"))["weight_map"]
            ok = isinstance(where, dict) and all(isinstance(one, str) for one in where.values())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no index of safetensors files: {error}") from error
        if not ok:
            raise UserError(f"{path} is no index of safetensors files: its weight_map must name a file for each tensor")
        outside = [name for name in where.values() if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise UserError(f"{path} names {outside[0]!r}, which is no safetensors file of its own folder")
        return where

    def _no_weights(self) -> UserError:
        pickles = sorted(
            path.name for ending in ("bin", "pt", "pth", "ckpt") for path in self.folder.glob(f"*.{ending}")
        )
        if pickles:
            return UserError(f"{self.folder} has its weights as pickle ({pickles[0]}), which can run any code when it "
                             "is opened. It is not: take the release with safetensors")  # fmt: skip
        return UserError(f"{self.folder} has no weights: it needs {SINGLE}, or {INDEX} with its files")

    def rename(self, name: Callable[[str], str]) -> None:
        """From now on tensors are called what `name` makes of their names."""
        self._stored = {name(one): self._stored.get(one, one) for one in self.where}
        self.where = {name(one): file for one, file in self.where.items()}

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        try:
            return self._files[self.where[name]].get_tensor(self._stored.get(name, name))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / self.where[name]}: {name} cannot be read: {error}") from error


def write(folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as a published folder has them; the memory of one shard is held at a time."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal held, size
        save_file(held, folder / f".shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for name, tensor in tensors:
        own = tensor.detach().cpu().contiguous()
        if held and size + own.nbytes > shard_bytes:
            flush()
        held[name] = own.clone() if own.data_ptr() == tensor.data_ptr() else own  # no two names share memory
        size += own.nbytes
        total += own.nbytes
    flush()
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{at + 1:05d}-of-{len(shards):05d}.safetensors" for at in range(len(shards))
    ]  # fmt: skip
    for at, name in enumerate(names):
        (folder / f".shard-{at}.safetensors").replace(folder / name)
    if len(shards) > 1:
        where = {tensor: name for name, members in zip(names, shards) for tensor in members}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), "utf-8")
