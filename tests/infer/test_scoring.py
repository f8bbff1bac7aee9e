"""Likelihoods through the kernels: torch's numbers, the same bits whatever is scored before or beside."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.infer.engine import Engine
from sensorium.infer.kernels.program import Program
from sensorium.infer.scoring import ROOM, SLOTS, Scorer

LONG = "as long a beginning as is worth waiting for, and a little more: "
PROMPTS = [
    ("q", ()),
    (LONG, ()),
    (LONG + "one", ()),
    (LONG + "two", ()),
    ("see", (1,)),
    (LONG, (1, 2)),
    ("q" * 200, (2,)),
]
OPTIONS = [["a"], ["a", "bb", ""], [f"option {number}" for number in range(SLOTS + 9)], ["日本", "no"]]


def question(tiny, prompt, options):
    text, pictures = PROMPTS[prompt]
    return tiny.ask(text, *pictures), OPTIONS[options]


@pytest.fixture
def rows(tiny, monkeypatch):
    """The number of tokens of each pass through the kernels."""
    if Program.missing(tiny.model.stack) is not None:
        pytest.skip("nothing can be compiled here")
    seen = []
    read = Program.read

    def counted(self, x, *more):
        seen.append(len(x))
        return read(self, x, *more)

    monkeypatch.setattr(Program, "read", counted)
    return seen


@pytest.fixture(scope="module")
def alone(tiny):
    """Of every question its likelihoods from an engine that was asked nothing else."""
    known = {}

    def alone(asked):
        if asked not in known:
            [known[asked]] = Engine(tiny.model, tiny.renderer).log_likelihoods([question(tiny, *asked)])
        return known[asked]

    return alone


def test_kernels_say_what_torch_says(tiny, rows, monkeypatch):
    asked = [question(tiny, prompt, options) for prompt in range(len(PROMPTS)) for options in range(len(OPTIONS))]
    found = Engine(tiny.model, tiny.renderer).log_likelihoods(asked)
    passes = len(rows)
    assert passes > 0
    monkeypatch.setattr(Scorer, "_asked", lambda self, question: None)
    expected = Engine(tiny.model, tiny.renderer).log_likelihoods(asked)
    assert len(rows) == passes
    for one, other in zip(found, expected, strict=True):
        assert one.sums == pytest.approx(other.sums, abs=1e-4)
        assert one.counts == other.counts


ASKED = st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(0, len(OPTIONS) - 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ASKED, min_size=1, max_size=9), min_size=1, max_size=3))
def test_the_same_bits_whatever_is_scored_before_or_beside(tiny, alone, batches):
    engine = Engine(tiny.model, tiny.renderer)
    for batch in batches:
        found = engine.log_likelihoods([question(tiny, *asked) for asked in batch])
        assert found == [alone(asked) for asked in batch]


def test_what_prompts_begin_with_is_read_once(tiny, rows):
    engine = Engine(tiny.model, tiny.renderer)
    once = engine.log_likelihoods([question(tiny, 5, 1)])
    whole = rows[0]
    assert whole > len(LONG)
    rows.clear()
    assert engine.log_likelihoods([question(tiny, 5, 1)]) == once
    assert rows[0] == 1  # the last token, from which the options are predicted
    rows.clear()
    Engine(tiny.model, tiny.renderer).log_likelihoods([question(tiny, prompt, 1) for prompt in (1, 2, 3)])
    first, rest, _ = rows
    assert first > len(LONG)
    assert rest < len(LONG)


def test_a_pass_that_failed_leaves_nothing_wrong_behind(tiny, rows, alone, monkeypatch):
    engine = Engine(tiny.model, tiny.renderer)
    engine.log_likelihoods([question(tiny, 5, 1)])
    counted, left = Program.read, [1]

    def broken(self, *given):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return counted(self, *given)

    with monkeypatch.context() as changed:
        changed.setattr(Program, "read", broken)
        with pytest.raises(KeyboardInterrupt):
            engine.log_likelihoods([question(tiny, 6, 1), question(tiny, 5, 1)])
    assert engine.log_likelihoods([question(tiny, 5, 1)]) == [alone((5, 1))]


def test_long_prompts_take_fewer_slots(tiny, rows):
    engine = Engine(tiny.model, tiny.renderer)
    options = OPTIONS[2]
    [found] = engine.log_likelihoods([(tiny.ask("q" * (ROOM // 8)), options)])
    assert len(rows) > 1 + -(-len(options) // SLOTS)
    assert len(found.sums) == len(options)
    engine.rest()
    assert engine.log_likelihoods([(tiny.ask("q" * (ROOM // 8)), options)]) == [found]
