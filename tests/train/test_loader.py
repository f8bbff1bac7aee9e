"""Batches depend on (seed, position) alone; bad rows are skipped, counted once, the same after a resume."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import Pictures, tiny_model, tiny_stage

from sensorium.data.mixture import Mixture, Part
from sensorium.errors import UserError
from sensorium.render import Renderer, Template
from sensorium.sequence import Item
from sensorium.tokenizer import Tokenizer
from sensorium.train.loader import Batches, ahead

BAD = Pictures(count=20, unreadable=(2, 3), broken=(9,), endless=(13,))


@pytest.fixture(scope="module")
def renderer():
    config = tiny_model()

    def load(kind, media):
        return Item(config.encoders[kind].transform(media.load()), media.shape(), media.key())

    return Renderer(Tokenizer.bytes(), Template(), config.plan, load)


def drawn(batches, count):
    return [batches.build() for _ in range(count)]


def same(left, right):
    names = ("ids", "modality", "position", "doc", "branch", "weight")
    assert all(torch.equal(getattr(left.sequence, name), getattr(right.sequence, name)) for name in names)
    keys = [[item.key for item in batch.sequence.items["image"]] for batch in (left, right)]
    assert keys[0] == keys[1]
    assert (left.position, left.samples, left.bad) == (right.position, right.samples, right.bad)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 5), start=st.integers(0, 8), items=st.sampled_from([1, 2, 5, None]))
def test_starting_at_the_position_of_any_batch_gives_the_batches_that_followed(renderer, seed, start, items):
    stage = tiny_stage(data=BAD, items=items, tokens=300)
    first = drawn(Batches(stage, renderer, seed), start + 6)
    before = first[start - 1] if start else None
    position, bad = (before.position, before.bad) if before else (0, [])
    for left, right in zip(first[start:], drawn(Batches(stage, renderer, seed, position, bad), 6), strict=True):
        same(left, right)


def test_another_seed_is_another_order(renderer):
    one, two = (drawn(Batches(tiny_stage(), renderer, seed), 4) for seed in (0, 1))
    assert any(not torch.equal(left.sequence.ids, right.sequence.ids) for left, right in zip(one, two))


def test_budgets_hold_and_every_sample_comes_once_an_epoch(renderer):
    stage = tiny_stage(data=Pictures(count=24), items=4, tokens=260)
    batches, keys = Batches(stage, renderer, 0), []
    while len(keys) < 24:
        batch = batches.build()
        assert len(batch.sequence) <= 260
        assert batch.samples == batch.sequence.documents == len(batch.sequence.items["image"]) <= 4
        keys += [item.key for item in batch.sequence.items["image"]]
    assert len(set(keys[:24])) == 24


def test_bad_rows_are_replaced_and_each_time_counted_once(renderer):
    """20 rows in an epoch, four bad: when the batches have taken five epochs every bad row was met five times, and
    more where it was the first candidate to replace another."""
    batches = Batches(tiny_stage(data=BAD, items=1), renderer, 0)
    last = drawn(batches, 100)[-1]
    assert last.position == 100
    assert {row["row"] for row in last.bad} == {2, 3, 9, 13}
    assert all(row["times"] >= 5 for row in last.bad)
    alone = Batches(tiny_stage(data=Pictures(count=20, broken=(9,)), items=1), renderer, 0)
    (only,) = drawn(alone, 100)[-1].bad
    assert (only["row"], only["times"]) == (9, 5)
    assert "noise-9.png is damaged" in only["reason"]


def test_what_is_read_but_not_yet_taken_is_not_counted(renderer):
    """The sample that did not fit a batch belongs to the next one, with the rows that were skipped to find it."""
    stage = tiny_stage(data=Pictures(count=20, broken=tuple(range(0, 20, 2))), items=1)
    through = drawn(Batches(stage, renderer, 3), 12)
    bad, position = [], 0
    for batch in through:  # a new loader for every batch: a run that is killed after every step
        again = Batches(stage, renderer, 3, position, bad).build()
        same(again, batch)
        bad, position = again.bad, again.position


def test_a_sample_that_no_budget_can_hold_is_a_bad_row(renderer):
    with pytest.raises(UserError, match="cannot be used"):
        Batches(tiny_stage(tokens=20), renderer, 0).build()


def test_epochs_are_counted_by_whichever_budget_fills_first(renderer):
    """24 samples, at most three pictures in a micro-batch, two micro-batches a step: four steps an epoch."""
    stage = tiny_stage(data=Pictures(count=24), steps=None, epochs=1.0, items=3, tokens=4096, accumulate=2)
    assert Batches(stage, renderer, 0).steps() == 4
    assert Batches(stage.replace(epochs=2.5), renderer, 0).steps() == 10
    by_tokens = stage.replace(items=None, tokens=512)
    batches, samples, count = Batches(by_tokens, renderer, 0), 0, 0
    while samples < 24:
        samples, count = samples + batches.build().samples, count + 1
    assert Batches(by_tokens, renderer, 0).steps() == pytest.approx(count / 2, abs=1)


def test_a_mixture_keeps_its_shares(renderer):
    parts = (
        Part(name="a", source=Pictures(count=10), weight=3),
        Part(name="b", source=Pictures(count=11), weight=1),
    )
    batches = Batches(tiny_stage(data=Mixture(parts=parts), items=1), renderer, 0)
    assert batches.mixture.shares == {"a": 3 / 4, "b": 1 / 4}
    assert len(drawn(batches, 30)) == 30


def test_the_thread_stops_with_its_consumer_and_hands_over_errors():
    built = []

    def build():
        built.append(len(built))
        if len(built) > 3:
            raise UserError("the disk is gone")
        return built[-1]

    stream = ahead(build, 2)
    assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
    with pytest.raises(UserError, match="disk"):
        next(stream)
    endless = ahead(lambda: built.append(0) or 0, 2)
    next(endless)
    endless.close()
    count = len(built)
    time.sleep(0.05)
    assert len(built) == count
