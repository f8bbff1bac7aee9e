"""Weighted mixtures of sources, in an order that is a function of (seed, epoch) and can be entered anywhere.

Three pure functions make the order. Nothing is stored between calls, so resuming seeks instead of replaying:

1. which part has position n: one period of Tijdeman's chairman assignment (The chairman assignment problem, Discrete
   Mathematics 32, 1980), which keeps every part within one sample of its share after any number of samples;
2. how many samples of that part came before: a table over the period;
3. which row that is: a keyed permutation of the part's rows, another for every pass over them (a Feistel network with
   cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), so that no row comes twice before all
   have come once, epochs included.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from sensorium.config import Config
from sensorium.data.source import RowError, Source, SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import MediaError, Sample

LONGEST_PERIOD = 1 << 16
COST_ROWS = 256  # rows read to estimate the tokens of a part's samples
MASK = (1 << 64) - 1
ROUNDS = 8

T = TypeVar("T")


class Part(Config):
    """One source of a mixture.

    name    unique in the mixture; the order of a part's rows depends on it, so renaming reshuffles
    weight  relative share of samples or tokens
    """

    name: str = Field(min_length=1)
    source: SourceConfig
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Mixture(SourceConfig):
    """Weighted parts.

    by           what weights are shares of: "samples", or "tokens" (by the estimated cost of each part's samples)
    temperature  T: shares of samples are weight x size^(1/T). T = 1 takes every row equally often, a large T every
                 part; None: the weights alone
    samples      samples in an epoch; None: as many as all parts have rows

    Shares become fractions over at most 65,536, exactly the weights where these allow it (`MixtureSource.shares`).
    """

    parts: tuple[Part, ...] = Field(min_length=1)
    by: Literal["samples", "tokens"] = "samples"
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    samples: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [part.name for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two parts are called {twice[0]!r}: names must be unique")
        if self.temperature is not None and self.by == "tokens":
            raise ValueError("temperature is about numbers of samples: use it with by='samples'")
        return self

    @classmethod
    def of(cls, source: SourceConfig, name: str = "data") -> Mixture:
        """The source itself when it is a mixture, else a mixture of it alone."""
        return source if isinstance(source, Mixture) else cls(parts=(Part(name=name, source=source),))

    def build(self, cost: Callable[[Sample], float] | None = None) -> MixtureSource:
        """`cost` gives the tokens of a sample, for example by the model's own plan; default: `Sample.cost`."""
        return MixtureSource(self, cost)


class MixtureSource:
    """The built mixture: rows by (part, index), and the order over them. As a Source it is its parts end to end."""

    def __init__(self, config: Mixture, cost: Callable[[Sample], float] | None = None):
        self.config = config
        self.names = [part.name for part in config.parts]
        self.sources: list[Source] = [part.source.build() for part in config.parts]
        self.sizes = [len(source) for source in self.sources]
        for name, size in zip(self.names, self.sizes):
            if size == 0:
                raise UserError(f"the part {name!r} of the mixture has no rows")
        self._units = resolve_shares(self._wanted(cost), self.names)
        self._period = sum(self._units)
        self._turns, self._earlier = _schedule(tuple(self._units))
        self.samples: int = config.samples or sum(self.sizes)
        """Samples in an epoch."""
        self._per_epoch = self.counts(self.samples)

    @property
    def shares(self) -> dict[str, Fraction]:
        """The share of samples of each part, exactly as the order keeps it."""
        return {name: Fraction(units, self._period) for name, units in zip(self.names, self._units)}

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        for source, size in zip(self.sources, self.sizes):
            if index < size:
                return source[index]
            index -= size
        raise AssertionError("sizes add up to the length")

    def get(self, part: int, index: int) -> Sample:
        return self.sources[part][index]

    def counts(self, position: int) -> list[int]:
        """How many of the first `position` samples of an epoch each part has."""
        whole, rest = divmod(position, self._period)
        inside = np.bincount(self._turns[:rest], minlength=len(self._units))
        return [whole * units + int(more) for units, more in zip(self._units, inside)]

    def at(self, position: int, seed: int, epoch: int = 0) -> tuple[int, int]:
        """(part, index) of one position of an epoch, 0 <= position < samples, in constant time."""
        part, stream = self.stream(position, epoch)
        return part, self.stream_row(part, stream, seed)

    def order(self, seed: int, epoch: int = 0) -> np.ndarray:
        """(samples, 2) int64: part and index at every position of an epoch. The same values as `at`."""
        positions = np.arange(self.samples, dtype=np.int64)
        whole, rest = np.divmod(positions, self._period)
        found = np.empty((self.samples, 2), np.int64)
        found[:, 0] = self._turns[rest]
        for part, (units, size) in enumerate(zip(self._units, self.sizes)):
            mine = np.flatnonzero(found[:, 0] == part)
            streams = epoch * self._per_epoch[part] + whole[mine] * units + self._earlier[rest[mine]]
            passes, places = np.divmod(streams, size)
            for number in np.unique(passes):
                chosen = passes == number
                keys = _keys(seed, self.names[part], int(number))
                found[mine[chosen], 1] = permute_many(places[chosen], size, keys)
        return found

    def stream(self, position: int, epoch: int) -> tuple[int, int]:
        """(part, how many samples of that part came before, earlier epochs included)."""
        if not 0 <= position < self.samples:
            raise IndexError(f"position {position} of an epoch of {self.samples} samples")
        whole, rest = divmod(position, self._period)
        part = int(self._turns[rest])
        before = whole * self._units[part] + int(self._earlier[rest])
        return part, epoch * self._per_epoch[part] + before

    def stream_row(self, part: int, stream: int, seed: int) -> int:
        """The row that is the `stream`-th sample of a part."""
        number, place = divmod(stream, self.sizes[part])
        return permute(place, self.sizes[part], _keys(seed, self.names[part], number))

    def _wanted(self, cost: Callable[[Sample], float] | None) -> list[Fraction]:
        weights = [Fraction(repr(part.weight)) for part in self.config.parts]
        if self.config.temperature is not None:
            power = 1.0 / self.config.temperature
            scales = [Fraction(size) if power == 1 else Fraction(size**power) for size in self.sizes]
            return [weight * scale for weight, scale in zip(weights, scales)]
        if self.config.by == "tokens":
            costs = [mean_cost(source, name, cost) for source, name in zip(self.sources, self.names)]
            return [weight / Fraction(cost) for weight, cost in zip(weights, costs)]
        return weights


def mean_cost(source: Source, name: str, cost: Callable[[Sample], float] | None = None) -> float:
    """Mean tokens of the samples of a source, over at most COST_ROWS rows evenly spread; bad rows are left out."""
    found = []
    for index in np.unique(np.linspace(0, len(source) - 1, COST_ROWS).astype(np.int64)).tolist():
        try:
            sample = source[index]
            value = cost(sample) if cost is not None else sample.cost
        except (RowError, MediaError):
            continue
        if value is None:
            raise UserError(f"the part {name!r} gives no cost for its samples, so it cannot be mixed by tokens")
        found.append(value)
    if not found or sum(found) <= 0:
        raise UserError(f"the part {name!r} has no usable row among {COST_ROWS}, so its tokens are unknown")
    return sum(found) / len(found)


def resolve_shares(wanted: Sequence[Fraction], names: Sequence[str]) -> list[int]:
    """Whole numbers in the wanted proportion: exact where their sum stays within LONGEST_PERIOD, else the nearest.

    Raises UserError when a part would get nothing.
    """
    total = sum(wanted)
    shares = [value / total for value in wanted]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    units = [int(share * LONGEST_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (units[i] - shares[i] * LONGEST_PERIOD, i))
    for i in by_remainder[: LONGEST_PERIOD - sum(units)]:
        units[i] += 1
    for name, share, count in zip(names, shares, units):
        if count == 0:
            raise UserError(
                f"the part {name!r} has a share of {float(share):.2g}, less than 1/{LONGEST_PERIOD}: raise its weight"
            )
    divisor = math.gcd(*units)
    return [count // divisor for count in units]


@lru_cache(maxsize=8)
def _schedule(units: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(turns, earlier), each (period): the part of each position, and how often it came before in the period.

    Tijdeman's rule: among the parts that are at least 1 / (2k - 2) of a sample behind, take the one that must come
    soonest. It keeps |count - share x n| <= 1 - 1 / (2k - 2) < 1 for every n.
    """
    period, parts = sum(units), len(units)
    turns, earlier = np.zeros(period, np.int32), np.arange(period, dtype=np.int64)
    if parts == 1:
        return turns, earlier
    slack = 2 * parts - 2
    taken = [0] * parts
    for n in range(1, period + 1):
        best, best_wait = -1, 0
        for part, unit in enumerate(units):
            behind = (unit * n - taken[part] * period) * slack  # in samples x period x slack
            wait = period * (slack - 1) - behind  # until it is too late, x unit
            if behind >= period and (best < 0 or wait * units[best] < best_wait * unit):
                best, best_wait = part, wait
        turns[n - 1], earlier[n - 1] = best, taken[best]
        taken[best] += 1
    return turns, earlier


@lru_cache(maxsize=1024)
def _keys(seed: int, name: str, number: int) -> tuple[int, ...]:
    """Round keys of the permutation of a part's rows in one pass."""
    digest = b"".join(hashlib.sha256(f"{seed}/{number}/{half}/{name}".encode()).digest() for half in range(ROUNDS // 4))
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))


def _half_bits(size: int) -> int:
    return max(2, -(-(size - 1).bit_length() // 2))


def _feistel(value: Any, half: int, keys: tuple[int, ...]) -> Any:
    """A permutation of 0 .. 4^half - 1, of an int or of a uint64 array. The round function is SplitMix64's mixer."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for key in keys:
        mixed = (right ^ key) & MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        left, right = right, left ^ ((mixed ^ (mixed >> 31)) & low)
    return (left << half) | right


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """Where a permutation of 0 .. size - 1 sends `place`: walk the larger permutation until it is inside again."""
    half = _half_bits(size)
    value = _feistel(place, half, keys)
    while value >= size:
        value = _feistel(value, half, keys)
    return value


def permute_many(places: np.ndarray, size: int, keys: tuple[int, ...]) -> np.ndarray:
    """`permute` of every element of an integer array."""
    half = _half_bits(size)
    values = _feistel(places.astype(np.uint64), half, keys)
    outside = np.flatnonzero(values >= size)
    while len(outside):
        values[outside] = _feistel(values[outside], half, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


@dataclass
class SkippedRow:
    """A row that could not be used: where it is (file and line), why, and how often it was asked for."""

    part: str
    row: int
    where: str
    reason: str
    times: int = 0


@dataclass
class BadRows:
    """Every row that was replaced, for the run's report. `state` and `restore` carry it through a resume."""

    rows: dict[tuple[str, int], SkippedRow] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def skipped(self) -> int:
        """How many samples were replaced, repeats included."""
        return sum(row.times for row in self.rows.values())

    def record(self, part: str, row: int, where: str, reason: str) -> None:
        with self._lock:
            self.rows.setdefault((part, row), SkippedRow(part, row, where, reason)).times += 1

    def state(self) -> list[dict[str, Any]]:
        """Plain values, for JSON, sorted by part and row."""
        with self._lock:
            return [dict(vars(self.rows[key])) for key in sorted(self.rows)]

    @classmethod
    def restore(cls, state: Sequence[dict[str, Any]]) -> BadRows:
        rows = [SkippedRow(**row) for row in state]
        return cls({(row.part, row.row): row for row in rows})

    def summary(self, most: int = 10) -> str:
        """Lines of text for people; "" when nothing was skipped."""
        if not self.rows:
            return ""
        found = [self.rows[key] for key in sorted(self.rows)]
        lines = [f"{len(found):,} bad rows, skipped {self.skipped:,} times"]
        lines += [f"  {row.reason}" for row in found[:most]]
        return "\n".join([*lines, f"  ... and {len(found) - most:,} more"] if len(found) > most else lines)


class SafeSource:
    """Samples of a mixture by position, a bad row replaced by the next good one in the order of its part.

    Which row replaces it depends on (seed, epoch, position) and on which rows are bad, on nothing else: a resumed run
    skips the same rows the same way. The part keeps its share; the replacing row also comes at its own place.

    skip     the errors that make a row bad
    give_up  so many bad rows one after another end the run with a UserError: then the data is at fault, not a row
    known    rows found bad before, which are not read again: those that another process could not decode
    """

    def __init__(
        self,
        mixture: MixtureSource,
        seed: int,
        bad: BadRows | None = None,
        *,
        skip: tuple[type[Exception], ...] = (RowError, MediaError),
        give_up: int = 100,
        known: Sequence[SkippedRow] = (),
    ):
        self.mixture, self.seed, self.skip, self.give_up = mixture, seed, skip, give_up
        self.known = {(row.part, row.row): row for row in known}
        self.bad = bad if bad is not None else BadRows()

    def get(self, position: int, epoch: int, prepare: Callable[[Sample], T]) -> T:
        """`prepare(sample)` of the first good row from this position on; `prepare` is where pictures are decoded."""
        part, stream = self.mixture.stream(position, epoch)
        reasons = []
        for row in self._candidates(part, stream):
            if (before := self.known.get((self.mixture.names[part], row))) is not None:
                self.bad.record(before.part, row, before.where, before.reason)
                reasons.append(before.reason)
                continue
            try:
                return prepare(self.mixture.get(part, row))
            except self.skip as error:
                where = getattr(self.mixture.sources[part], "where", None)
                place = where(row) if where is not None else f"{self.mixture.names[part]} row {row + 1}"
                reason = str(error) if place in str(error) else f"{place}: {error}"
                self.bad.record(self.mixture.names[part], row, place, reason)
                reasons.append(reason)
        raise UserError(
            f"{len(reasons)} rows of {self.mixture.names[part]!r} one after another cannot be used: check the data. "
            f"The first: {reasons[0]}"
        )

    def _candidates(self, part: int, stream: int) -> Iterator[int]:
        """The row itself, then those after it in the same pass, from its end on from its beginning."""
        size = self.mixture.sizes[part]
        begin = stream - stream % size
        for step in range(min(size, self.give_up)):
            yield self.mixture.stream_row(part, begin + (stream - begin + step) % size, self.seed)
