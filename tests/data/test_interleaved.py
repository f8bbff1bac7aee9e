"""Pictures and names in both orders, and pictures in other aspect ratios."""

from __future__ import annotations

import pytest

from sensorium.data.builtin_names import held_out_names
from sensorium.data.emoji import EmojiPicture
from sensorium.data.interleaved import Interleaved
from sensorium.data.questions import Captions
from sensorium.data.reframe import Framed, Reframed


def kinds(sample):
    return [segment.kind for segment in sample.segments]


def test_every_picture_comes_once_in_each_order_and_the_last_part_is_learned():
    source = Interleaved(without=0.0).build()
    half = len(source) // 2
    drawn, named = source[5], source[half + 5]
    assert kinds(drawn) == ["text", "image"]
    assert kinds(named) == ["image", "text"]
    assert [segment.train for segment in drawn.segments] == [False, True]
    assert drawn.info["key"] == named.info["key"]
    assert drawn.segments[0].data == named.segments[1].data == drawn.info["answer"]
    keys = [(source[index].info["key"], source[index].info["artist"]) for index in range(half)]
    assert len(set(keys)) == half


def test_some_names_are_left_out_so_that_there_is_something_to_guide_against():
    source = Interleaved(orders=("draw",), without=0.25).build()
    empty = sum(source[index].segments[0].data == "" for index in range(1000))
    assert 200 < empty < 300
    rounds = Interleaved(orders=("draw",), without=0.25, rounds=2).build()
    assert len(rounds) == 2 * len(source)
    differ = [rounds[index].segments[0].data != rounds[index + len(source)].segments[0].data for index in range(200)]
    assert any(differ)


def test_requests_are_asked_by_the_user_and_drawn_by_the_assistant():
    source = Interleaved(plain=False, without=0.0).build()
    drawn, named = source[3], source[len(source) - 3]
    assert [(segment.kind, segment.role) for segment in drawn.segments] == [("text", "user"), ("image", "assistant")]
    assert drawn.info["answer"] in drawn.segments[0].data
    assert [(s.kind, s.role) for s in named.segments] == [("image", "user"), ("text", "user"), ("text", "assistant")]


def test_an_answer_may_say_a_name_before_its_picture():
    source = Interleaved(orders=("draw",), plain=False, without=0.0, said="Here is {name}.").build()
    wanted, said, image = source[3].segments
    assert [part.role for part in (wanted, said, image)] == ["user", "assistant", "assistant"]
    assert (said.data, image.kind) == (f"Here is {source[3].info['answer']}.", "image")


def test_interleaved_documents_hold_several_pairs_that_are_all_learned():
    source = Interleaved(pairs=3, without=0.0).build()
    assert kinds(source[0]) == ["text", "image"] * 3
    assert all(segment.train for segment in source[0].segments)


@pytest.mark.parametrize("holdout_dev", [False, True])
def test_no_held_out_name_is_ever_said(holdout_dev):
    source = Interleaved(holdout_dev=holdout_dev, pairs=2).build()
    forbidden = held_out_names(holdout_dev)
    said = {segment.data.casefold() for index in range(0, len(source), 7) for segment in source[index].segments
            if segment.kind == "text"}  # fmt: skip
    assert not said & forbidden


def test_samples_are_a_function_of_their_index():
    one, other = Interleaved(pairs=2).build(), Interleaved(pairs=2).build()
    assert all(one[index] == other[index] for index in range(0, len(one), 500))
    with pytest.raises(IndexError):
        one[len(one)]


def test_a_framed_picture_has_its_aspect_ratio_and_is_whole():
    picture = EmojiPicture("1F600", "google")  # 64 x 64
    for aspect, size in (((1, 2), (64, 128)), ((3, 2), (96, 64)), ((1, 1), (64, 64)), ((2, 3), (64, 96))):
        framed = Framed(picture, aspect, 0.5)
        assert framed.shape() == size
        image = framed.load()
        assert (image.height, image.width) == size
        left, top = round((image.width - 64) * 0.5), round((image.height - 64) * 0.5)
        assert image.crop((left, top, left + 64, top + 64)).tobytes() == picture.load().tobytes()
    keys = {Framed(picture, (1, 2), place).key() for place in (0.0, 0.5)} | {picture.key()}
    assert len(keys) == 3


def test_a_reframed_source_has_every_aspect_ratio_and_the_same_words():
    aspects = ((1, 1), (2, 3), (3, 2), (1, 2), (2, 1))
    plain, framed = Captions().build(), Reframed(source=Captions(), aspects=aspects).build()
    assert len(plain) == len(framed)
    shapes = set()
    for index in range(60):
        before, after = plain[index].segments, framed[index].segments
        assert before[1] == after[1]
        height, width = after[0].data.shape()
        shapes.add(round(height / width, 2))
    assert shapes == {1.0, 0.67, 1.5, 0.5, 2.0}
