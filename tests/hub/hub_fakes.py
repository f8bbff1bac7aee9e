"""A small pretrained part and routes to it that need no network."""

import hashlib
import time
from pathlib import Path

from sensorium.hub import Package, PinnedFile, Pretrained
from sensorium.hub.cache import Route, RouteError

WEIGHTS, WORDS = b"weights " * 1000, b'{"a": 1}'


def part(name: str = "toy", weights: bytes = WEIGHTS, **fields) -> Pretrained:
    def pin(file: str, content: bytes) -> PinnedFile:
        digest = hashlib.sha256(content).hexdigest()
        return PinnedFile(name=file, sha256=digest, size=len(content), package=f"toy/{file}", hub=file)

    return Pretrained(
        name=name,
        title="Toy",
        licence="MIT",
        format="state_dict",
        files=(pin("weights.bin", weights), pin("words.json", WORDS)),
        package=Package(kind="pypi", name="toy-model", version="1.0"),
        **fields,
    )


def delivers(name: str = "good", weights: bytes = WEIGHTS, log: Path | None = None, takes: float = 0.0) -> Route:
    """A route that writes the files slowly, first into its scratch folder; each use adds a line to `log`."""

    def fill(work: Path, out: Path) -> None:
        if log is not None:
            with log.open("a") as stream:
                stream.write(f"{name}\n")
        with (work / "archive").open("wb") as stream:
            for start in range(0, len(weights), 1000):
                stream.write(weights[start : start + 1000])
                stream.flush()
                time.sleep(takes / max(1, len(weights) // 1000))
        (out / "weights.bin").write_bytes((work / "archive").read_bytes())
        (out / "words.json").write_bytes(WORDS)

    return Route(name, f"the {name} route", fill)


def dead(name: str = "dead", reason: str = "it does not answer") -> Route:
    def fill(work: Path, out: Path) -> None:
        raise RouteError(reason)

    return Route(name, f"the {name} route", fill)


def resumes(log: Path, takes: float) -> Route:
    """A resumable route: it goes on where its scratch folder ends, and logs how much was there."""

    def fill(work: Path, out: Path) -> None:
        archive = work / "archive"
        there = archive.stat().st_size if archive.exists() else 0
        with log.open("a") as stream:
            stream.write(f"{there}\n")
        with archive.open("ab") as stream:
            for start in range(there, len(WEIGHTS), 1000):
                stream.write(WEIGHTS[start : start + 1000])
                stream.flush()
                time.sleep(takes / (len(WEIGHTS) // 1000))
        (out / "weights.bin").write_bytes(archive.read_bytes())
        (out / "words.json").write_bytes(WORDS)

    return Route("resumable", "the resumable route", fill, resumable=True)
