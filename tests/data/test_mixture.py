"""The order of training: exact shares, whole passes, random access, and the same replacements after a resume."""

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.config import from_json, override
from sensorium.data import mixture as module
from sensorium.data.mixture import BadRows, Mixture, Part, SafeSource, permute, permute_many, resolve_shares
from sensorium.data.source import RowError, SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import MediaError, Sample, Segment


class Numbers(SourceConfig):
    """Rows 0 .. size - 1; those in `bad` cannot be read."""

    size: int
    cost: int | None = 1
    bad: tuple[int, ...] = ()

    def build(self):
        return NumberSource(self)


class NumberSource:
    def __init__(self, config: Numbers):
        self.config = config

    def __len__(self) -> int:
        return self.config.size

    def __getitem__(self, index: int) -> Sample:
        if index in self.config.bad:
            raise RowError(f"numbers.jsonl line {index + 1}: bad")
        return Sample((Segment("text", str(index)),), id=str(index), cost=self.config.cost)


def mixed(*sizes_and_weights: tuple[int, float], **options) -> module.MixtureSource:
    parts = tuple(
        Part(name=f"p{n}", source=Numbers(size=size), weight=weight)
        for n, (size, weight) in enumerate(sizes_and_weights)
    )
    return Mixture(parts=parts, **options).build()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=6),
    st.integers(0, 5),
    st.integers(1, 700),
)
def test_every_share_is_within_one_sample_after_any_number_of_samples(parts, epoch: int, samples: int):
    source = mixed(*parts, samples=samples)
    order = source.order(seed=3, epoch=epoch)
    total = sum(weight for _, weight in parts)
    steps = np.arange(1, samples + 1)
    for number, (_, weight) in enumerate(parts):
        counts = np.cumsum(order[:, 0] == number)
        assert np.all(np.abs(counts - steps * weight / total) < 1)
        assert source.shares[f"p{number}"] == Fraction(weight, total)
    assert source.counts(samples) == np.bincount(order[:, 0], minlength=len(parts)).tolist()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 2**40))
def test_no_row_repeats_before_all_rows_of_its_part_came(parts, seed: int):
    source = mixed(*parts, samples=97)
    streams: dict[int, list[int]] = {}
    for epoch in range(3):  # passes go on across epochs
        for part, index in source.order(seed, epoch).tolist():
            streams.setdefault(part, []).append(index)
    for part, rows in streams.items():
        size = parts[part][0]
        for start in range(0, len(rows), size):
            seen = rows[start : start + size]
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(range(size))
            if len(seen) == size:
                assert set(seen) == set(range(size))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 9))
def test_random_access_equals_the_order(parts, epoch: int):
    source = mixed(*parts, samples=60)
    order = source.order(5, epoch)
    assert [source.at(position, 5, epoch) for position in range(60)] == [tuple(row) for row in order.tolist()]
    with pytest.raises(IndexError):
        source.at(60, 5, epoch)


def test_the_order_is_a_function_of_seed_and_epoch():
    source, again = (mixed((500, 3), (300, 1)) for _ in range(2))
    assert source.samples == 800
    assert np.array_equal(source.order(1, 0), again.order(1, 0))
    for seed, epoch in ((1, 1), (2, 0)):
        other = source.order(seed, epoch)
        assert np.mean(np.all(other == source.order(1, 0), axis=1)) < 0.05
    # another part, or another weight, does not reshuffle the rows of a part
    rows = [index for part, index in mixed((500, 1), samples=500).order(1, 0).tolist() if part == 0]
    rows_beside = [index for part, index in source.order(1, 0).tolist() if part == 0]
    assert rows_beside[:400] == rows[:400]


def test_known_values_do_not_change_between_versions():
    """A stored run resumes by these numbers: changing them breaks every checkpoint."""
    source = mixed((10, 2), (4, 1))
    assert source.order(7, 0).tolist() == KNOWN_ORDER


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_permutations_are_permutations_and_alike_for_ints_and_arrays(size: int):
    keys = module._keys(11, "x", 0)
    many = permute_many(np.arange(size), size, keys)
    assert sorted(many.tolist()) == list(range(size))
    assert many.tolist() == [permute(place, size, keys) for place in range(size)]


@pytest.mark.parametrize("size", [pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow), 12])
def test_permutations_are_uniform(size: int):
    """Where the first row lands, and what follows it: chi-square over 2,000 keys, 99.99 % bound."""
    trials = 2000
    tables = np.array([permute_many(np.arange(size), size, module._keys(0, "u", n)) for n in range(trials)])
    for values, cells in ((tables[:, 0], size), (tables[:, -1], size), ((tables[:, 1] - tables[:, 0]) % size, size)):
        counts = np.bincount(values, minlength=cells)
        counts = counts[1:] if counts[0] == 0 else counts
        expected = trials / len(counts)
        bound = len(counts) + 4 * np.sqrt(2 * len(counts)) + 8
        assert ((counts - expected) ** 2 / expected).sum() < bound


def test_a_large_part_needs_no_memory_for_its_order():
    source = mixed((10**12, 1), (3, 1), samples=10**9)
    places = {source.at(position, 1, 4) for position in range(123_456_789, 123_456_889)}
    large = [index for part, index in places if part == 0]
    assert len(large) == len(set(large)) == 50
    assert min(large) < 10**12 / 4 < 3 * 10**12 / 4 < max(large) < 10**12


def test_temperature():
    sizes = ((900, 1.0), (100, 1.0))
    assert mixed(*sizes, temperature=1).shares["p0"] == Fraction(9, 10)
    assert mixed(*sizes, temperature=2).shares["p0"] == Fraction(3, 4)  # square roots 30 and 10
    assert abs(mixed(*sizes, temperature=1e6).shares["p0"] - Fraction(1, 2)) < Fraction(1, 10_000)
    assert abs(float(mixed(*sizes, temperature=3).shares["p0"]) - 9 ** (1 / 3) / (9 ** (1 / 3) + 1)) < 2 / 65_536
    assert mixed((900, 1.0), (100, 9.0), temperature=1).shares["p0"] == Fraction(1, 2)


def test_shares_by_tokens():
    long, short = Numbers(size=50, cost=300), Numbers(size=50, cost=100)
    config = Mixture(parts=(Part(name="long", source=long), Part(name="short", source=short)), by="tokens")
    assert config.build().shares == {"long": Fraction(1, 4), "short": Fraction(3, 4)}
    planned = config.build(cost=lambda sample: 10)
    assert planned.shares["long"] == Fraction(1, 2)
    with pytest.raises(UserError, match="'p' gives no cost"):
        Mixture(parts=(Part(name="p", source=Numbers(size=2, cost=None)),), by="tokens").build()


def test_shares_that_do_not_fit_are_the_nearest():
    wanted = [Fraction("0.123456789"), Fraction("0.876543211")]
    units = resolve_shares(wanted, ["a", "b"])
    assert abs(Fraction(units[0], sum(units)) - wanted[0]) <= Fraction(1, 2 * 65_536)
    with pytest.raises(UserError, match="'a' has a share of 1e-07"):
        resolve_shares([Fraction("0.0000001"), Fraction("0.9999999")], ["a", "b"])
    assert mixed((5, 0.1), (5, 0.2), (5, 0.7)).shares == {
        "p0": Fraction(1, 10),
        "p1": Fraction(1, 5),
        "p2": Fraction(7, 10),
    }


def test_mistakes_in_a_mixture():
    part = Part(name="a", source=Numbers(size=2))
    with pytest.raises(ValueError, match="two parts are called 'a'"):
        Mixture(parts=(part, part))
    with pytest.raises(ValueError, match="temperature"):
        Mixture(parts=(part,), by="tokens", temperature=2)
    with pytest.raises(ValueError, match="greater than 0"):
        Part(name="a", source=Numbers(size=2), weight=0)
    with pytest.raises(UserError, match="'a' of the mixture has no rows"):
        Mixture(parts=(part.replace(source=Numbers(size=0)),)).build()


def test_a_mixture_is_a_typed_value_and_a_source():
    config = Mixture(parts=(Part(name="a", source=Numbers(size=2)), Part(name="b", source=Numbers(size=3), weight=2)))
    assert from_json(config.to_json(), SourceConfig) == config
    assert override(config, "parts.b.weight=5").parts[1].weight == 5
    source = config.build()
    assert [source[index].id for index in range(len(source))] == ["0", "1", "0", "1", "2"]
    assert Mixture.of(config) is config
    assert Mixture.of(Numbers(size=4)).build().samples == 4


# -- bad rows --------------------


def words(sample: Sample) -> str:
    if sample.id == "7":
        raise MediaError("seven.png: cannot be decoded")
    return sample.id


def safe(broken: tuple[int, ...], **options) -> SafeSource:
    return SafeSource(Mixture.of(Numbers(size=20, bad=broken)).build(), seed=2, **options)


def test_a_bad_row_is_replaced_by_the_next_good_one_in_order():
    source = safe((3, 4))
    order = [index for _, index in source.mixture.order(2, 0).tolist()]
    got = [int(source.get(position, 0, words)) for position in range(20)]
    for position in range(20):
        later = [row for row in order[position:] + order[:position] if row not in (3, 4, 7)]
        assert got[position] == later[0]
    assert source.bad.skipped >= 3
    assert {row.row: row.where for row in source.bad.rows.values()} == {
        3: "data row 4",
        4: "data row 5",
        7: "data row 8",
    }
    reasons = [row["reason"] for row in source.bad.state()]
    assert reasons[0] == "data row 4: numbers.jsonl line 4: bad"
    assert reasons[2] == "data row 8: seven.png: cannot be decoded"
    assert "3 bad rows" in source.bad.summary()
    assert "... and 2 more" in source.bad.summary(most=1)


def test_replacements_are_the_same_after_a_resume():
    whole = safe((0, 1, 2, 11))
    expected = [whole.get(position, epoch, words) for epoch in range(2) for position in range(20)]
    first = safe((0, 1, 2, 11))
    got = [first.get(position, 0, words) for position in range(13)]
    stored = json.loads(json.dumps(first.bad.state()))
    resumed = safe((0, 1, 2, 11), bad=BadRows.restore(stored))
    got += [resumed.get(position, 0, words) for position in range(13, 20)]
    got += [resumed.get(position, 1, words) for position in range(20)]
    assert got == expected
    assert resumed.bad.state() == whole.bad.state()
    counted = Counter(row["times"] for row in whole.bad.state())
    assert sum(times * n for times, n in counted.items()) == whole.bad.skipped


def test_a_part_without_good_rows_ends_the_run():
    with pytest.raises(UserError, match=r"20 rows of 'data' .* check the data.*numbers\.jsonl line"):
        safe(tuple(range(20))).get(0, 0, words)
    with pytest.raises(UserError, match="5 rows of 'data'"):
        safe(tuple(range(20)), give_up=5).get(0, 0, words)


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        safe(()).get(0, 0, lambda sample: 1 / 0)


# fmt: off
KNOWN_ORDER = [
    [0, 5], [1, 2], [0, 4], [0, 6], [1, 3], [0, 1], [0, 7], [1, 0], [0, 8], [0, 0], [1, 1], [0, 3], [0, 9], [1, 2],
]
# fmt: on
