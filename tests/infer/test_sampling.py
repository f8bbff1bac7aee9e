"""Which options there are, and where a text ends."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.infer.sampling import Sampling, Text
from sensorium.tokenizer import Tokenizer


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0},
    {"repetition_penalty": 0}, {"repetition_penalty": 1e-45}, {"repetition_penalty": 101},
    {"stop": ""}, {"stop": ("a", "")}, {"beams": 4},
])  # fmt: skip
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_one_stop_text_need_not_be_a_list():
    assert Sampling(stop="\n\n").stop == ("\n\n",)


def test_the_answers_of_requests_side_by_side_have_seeds_of_their_own():
    asked = [Sampling(n=4, seed=seed) for seed in range(50)]
    seeds = [one.answer(number).seed for one in asked for number in range(4)]
    assert len(set(seeds)) == 200
    assert [one.answer(0).seed for one in asked] == list(range(50))
    assert asked[7].answer(3) == Sampling(seed=7, n=9).answer(3)
    assert asked[7].answer(3).n == 1
    assert Sampling(seed=2**62).answer(1).seed < 2**63


# ---- text

TOKENIZER = Tokenizer.bytes()


def said(content: bytes, stop=()) -> tuple[list[str], Text]:
    text = Text(TOKENIZER, stop)
    pieces = []
    for byte in content:
        pieces.append(text.push(byte))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text


def test_half_a_character_waits_for_its_other_half():
    pieces, text = said("é猫".encode())
    assert pieces == ["", "é", "", "", "猫", ""]
    assert text.text == "é猫"
    assert said("猫".encode()[:2])[1].text == "\ufffd"


def test_what_may_begin_a_stop_text_waits():
    pieces, text = said(b"one\nUsed", ["\nUser:"])
    assert pieces == ["o", "n", "e", "", "", "", "", "\nUsed", ""]
    assert not text.stopped
    pieces, text = said(b"one\nUser: more", ["\nUser:"])
    assert text.stopped
    assert text.text == "one" == "".join(pieces)
    assert text.push(ord("x")) == text.finish() == ""
    assert said(b"one\nUse", ["\nUser:"])[1].text == "one\nUse"  # the end came first


@settings(deadline=None, max_examples=200)
@given(
    content=st.text(alphabet="ab猫", max_size=20),
    stop=st.lists(st.text(alphabet="ab猫", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_where_the_first_stop_text_is_complete(content, stop):
    pieces, text = said(content.encode(), stop)
    expected, stopped = content, False
    for end in range(1, len(content) + 1):
        starts = [content[:end].find(one) for one in stop if one in content[:end]]
        if starts:
            expected, stopped = content[: min(starts)], True
            break
    assert text.text == expected == "".join(pieces)
    assert text.stopped == stopped
