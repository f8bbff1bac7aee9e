"""The tensors of a published checkpoint folder: one safetensors file or several shards, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sensorium.errors import UserError

STEM = "model"
"""What the names of weight files begin with, unless it is said."""
SHARD_BYTES = 5_000_000_000
"""A file is at most this large when it is written, unless one tensor alone is larger."""


class Stored:
    """An opened folder. Use `with`: nothing is read before it is asked for, and nothing of it is executed.

    stem   what the names of its files begin with
    parts  folders in it whose tensors are together the model's, their names behind the folder's; "": the folder itself
    Raises UserError for weights that are missing, cut short, damaged, or stored as pickle.
    """

    def __init__(self, folder: Path, stem: str = STEM, parts: Sequence[str] = ("",)) -> None:
        self.folder, self.stem, self.parts = folder, stem, parts
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        """Tensor name -> its name in the file."""
        self.where: dict[str, str] = {}
        """Tensor name -> file, from the folder."""

    def __enter__(self) -> Stored:
        try:
            for part in self.parts:
                self._open(part)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, part: str) -> None:
        place, single = self.folder / part, f"{self.stem}.safetensors"
        index = place / f"{single}.index.json"
        if (place / single).exists() and not index.exists():
            self._open_file(file := str(Path(part, single)))
            self._hold(part, dict.fromkeys(self._files[file].keys(), single))
            return
        if not index.exists():
            raise self._no_weights(place)
        where = self._read_index(index)
        names = sorted(set(where.values()))
        missing = [name for name in names if not (place / name).exists()]
        if missing:
            raise UserError(f"{index} names {len(names)} files, and {len(missing)} of them are not there: "
                            f"{', '.join(missing[:3])}. Fetch them again")  # fmt: skip
        for name in names:
            self._open_file(file := str(Path(part, name)))
            held = set(self._files[file].keys())
            lost = sorted(tensor for tensor, file in where.items() if file == name and tensor not in held)
            if lost:
                raise UserError(f"{index} says that {name} holds {lost[0]!r}, which it does not: the files are of "
                                "different versions. Fetch the folder again")  # fmt: skip
        self._hold(part, where)

    def _hold(self, part: str, where: dict[str, str]) -> None:
        """Take note of a part's tensors."""
        root = f"{part}." if part else ""
        self._stored |= {root + tensor: tensor for tensor in where}
        self.where |= {root + tensor: str(Path(part, file)) for tensor, file in where.items()}

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

    def _no_weights(self, place: Path) -> UserError:
        pickles = sorted(path.name for ending in ("bin", "pt", "pth", "ckpt") for path in place.glob(f"*.{ending}"))
        if pickles:
            return UserError(f"{place} has its weights as pickle ({pickles[0]}), which can run any code when it "
                             "is opened. It is not: take the release with safetensors")  # fmt: skip
        single = f"{self.stem}.safetensors"
        return UserError(f"{place} has no weights: it needs {single}, or {single}.index.json with its files")

    def rename(self, name: Callable[[str], str]) -> None:
        """From now on tensors are called what `name` makes of their names."""
        self._stored = {name(one): self._stored[one] for one in self.where}
        self.where = {name(one): file for one, file in self.where.items()}

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        try:
            return self._files[self.where[name]].get_tensor(self._stored[name])
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.folder / self.where[name]}: {name} cannot be read: {error}") from error


def write(
    folder: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES, stem: str = STEM
) -> None:
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
    names = [f"{stem}.safetensors"] if len(shards) == 1 else [
        f"{stem}-{at + 1:05d}-of-{len(shards):05d}.safetensors" for at in range(len(shards))
    ]  # fmt: skip
    for at, name in enumerate(names):
        (folder / f".shard-{at}.safetensors").replace(folder / name)
    if len(shards) > 1:
        where = {tensor: name for name, members in zip(names, shards) for tensor in members}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
