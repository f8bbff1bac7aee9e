"""Features of frozen encoders, computed once and kept on disk.

The address of a feature is the content's key and a fingerprint of the encoder: its value (preprocessing included) and
its weights. A store is append-only: each process writes its own pair of files, data first and then the line that
points at it, so a kill leaves at worst bytes that nothing points at. A line is a batch that was computed together, with
a checksum for each of its features: those that a power cut or a bad disk changed are computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from sensorium.codecs.base import Codec
from sensorium.encoders.base import Encoder
from sensorium.nn.part import Features
from sensorium.sequence import Item, Media


def fingerprint(encoder: Encoder | Codec, dtype: torch.dtype) -> str:
    """sha256 over the encoder's value, its weights and the precision it computes in."""
    digest = hashlib.sha256(f"{encoder.config.to_json()}|{dtype}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Place(NamedTuple):
    """Where features lie: file, first byte, number of rows, checksum of the bytes."""

    path: Path
    start: int
    rows: int
    checksum: int


class FeatureStore:
    """key -> (N, D) features in bf16 or fp32, in one folder. Nothing is kept in memory but the index."""

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, _Place] = {}
        self._row = width * torch.empty((), dtype=dtype).element_size()
        for index in sorted(folder.glob("*.jsonl")):
            self._read(index)
        self._files: dict[Path, BinaryIO] = {}
        self._data: BinaryIO | None = None
        self._index: BinaryIO | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Tensor | None:
        """(N, D), or None when it was never computed, or its bytes are not what was written."""
        place = self._places.get(key)
        if place is None:
            return None
        if place.path not in self._files:
            self._files[place.path] = open(place.path, "rb")  # noqa: SIM115 (kept open for the run)
        raw = os.pread(self._files[place.path].fileno(), place.rows * self._row, place.start)
        if len(raw) != place.rows * self._row or zlib.crc32(raw) != place.checksum:
            self._places.pop(key, None)
            return None
        return torch.frombuffer(bytearray(raw), dtype=self.dtype).view(place.rows, self.width)

    def put(self, key: str, features: Tensor) -> None:
        """Append (N, D). Readable by this process at once, by others when they open the store."""
        self.put_all({key: features})

    def put_all(self, batch: dict[str, Tensor]) -> None:
        """Append features that were computed together, all or, when the process is killed, none.

        The last bit of a feature can depend on the batch it was computed in. Were half a batch kept, a resumed run
        would compute the other half in another batch than the run it repeats.
        """
        batch = {key: features for key, features in batch.items() if key not in self}
        if not batch:
            return
        if self._data is None or self._index is None:
            name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._data = open(self.folder / f"{name}.bin", "ab")  # noqa: SIM115 (kept open for the run)
            self._index = open(self.folder / f"{name}.jsonl", "ab")  # noqa: SIM115
        places: dict[str, _Place] = {}
        for key, features in batch.items():
            kept = features.detach().to("cpu", self.dtype).contiguous()
            raw = kept.flatten().view(torch.uint8).numpy().tobytes()
            places[key] = _Place(Path(self._data.name), self._data.tell(), kept.shape[0], zlib.crc32(raw))
            self._data.write(raw)
        self._data.flush()
        self._index.write(json.dumps([[key, *place[1:]] for key, place in places.items()]).encode() + b"\n")
        self._index.flush()
        self._places.update(places)

    def _read(self, index: Path) -> None:
        path = index.with_suffix(".bin")
        size = path.stat().st_size if path.exists() else 0
        for line in index.read_bytes().splitlines():
            try:
                batch = {
                    str(key): _Place(path, int(start), int(rows), int(checksum))
                    for key, start, rows, checksum in json.loads(line)
                }
            except (ValueError, TypeError, OverflowError):
                continue  # the half-written last line of a killed process
            ends = (place.start + place.rows * self._row for place in batch.values())
            if all(place.start >= 0 and place.rows > 0 for place in batch.values()) and max(ends, default=0) <= size:
                self._places.update(batch)


class FrozenEncoder:
    """Items of one kind, with features from the store or computed now, in batches, by the encoder's fast path.

    A codec's codes or latents are features too.
    """

    def __init__(self, encoder: Encoder | Codec, root: Path | None, dtype: torch.dtype) -> None:
        self.encoder = encoder
        mark, kept = fingerprint(encoder, dtype), encoder.feature_dtype(dtype)
        self.store = FeatureStore(root / mark[:24], encoder.config.width, kept) if root is not None else None
        self._run: Callable[[list[Item]], Features] | None = None
        self._dtype, self._kept = dtype, kept
        self.computed = 0

    def load(self, media: Media) -> Item:
        """An item with features if they are known, else with pixels."""
        if self.store is not None:
            features = self.store.get(media.key())
            if features is not None:
                return Item(None, media.shape(), media.key(), features)
        return Item(self.encoder.preprocess(media.load()), media.shape(), media.key())

    def _known(self, item: Item) -> Item:
        """The item with features that were stored since it was loaded."""
        features = self.store.get(item.key) if self.store is not None and item.features is None else None
        return item if features is None else replace(item, data=None, features=features)

    def complete(self, items: list[Item]) -> list[Item]:
        """The same items, all with features; what was computed is stored. Equal keys are computed once."""
        items = [self._known(item) for item in items]
        missing = {item.key: item for item in items if item.features is None}
        if missing:
            if self._run is None:
                self._run = self.encoder.prepare_inference(self._dtype)
            features = self._run(list(missing.values()))
            self.computed += len(missing)
            made = dict(zip(missing, features.values.split(features.lengths)))
            if self.store is not None:
                self.store.put_all(made)
            items = [
                item if item.features is not None else replace(item, data=None, features=made[item.key].to(self._kept))
                for item in items
            ]
        return items


def frozen_kinds(parts: nn.ModuleDict, trains: Callable[[str], bool], room: str = "encoders") -> Iterable[str]:
    """Kinds whose encoder, or whose part of another room, has no parameter that trains."""
    for kind, part in parts.items():
        if not any(trains(f"{room}.{kind}.{name}") for name, _ in part.named_parameters()):
            yield kind
