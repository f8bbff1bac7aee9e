"""Which token is chosen, and where a text ends."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.infer.sampling import Sampling, Text, choose
from sensorium.tokenizer import Tokenizer

NOTHING = torch.tensor([], dtype=torch.long)
# probabilities 0.5, 0.25, 0.15, 0.1 of ids 2, 0, 3, 1
LOGITS = torch.tensor([0.25, 0.1, 0.5, 0.15]).log()


def drawn(count=8000, seen=NOTHING, **options) -> list[float]:
    """How often each id is chosen."""
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(**{"temperature": 1.0, **options})
    ids = torch.tensor([choose(LOGITS, sampling, seen, generator) for _ in range(count)])
    return (torch.bincount(ids, minlength=4) / count).tolist()


def test_greedy_takes_the_likeliest():
    assert choose(LOGITS, Sampling(), NOTHING, None) == 2


def test_draws_follow_the_probabilities():
    assert drawn() == pytest.approx([0.25, 0.1, 0.5, 0.15], abs=0.03)
    # at temperature 0.5 probabilities are squared: 25, 6.25, 2.25, 1 of 34.5
    assert drawn(temperature=0.5) == pytest.approx([0.181, 0.029, 0.725, 0.065], abs=0.03)


def test_top_k_and_top_p_keep_the_likeliest():
    assert drawn(top_k=2) == pytest.approx([1 / 3, 0, 2 / 3, 0], abs=0.03)
    assert drawn(top_k=1)[2] == 1
    assert drawn(top_k=99) == pytest.approx([0.25, 0.1, 0.5, 0.15], abs=0.03)
    assert drawn(top_p=0.7) == pytest.approx([1 / 3, 0, 2 / 3, 0], abs=0.03)
    assert drawn(top_p=0.76) == pytest.approx([0.25 / 0.9, 0, 0.5 / 0.9, 0.15 / 0.9], abs=0.03)
    assert drawn(top_p=1e-9)[2] == 1


def test_the_penalty_lowers_what_was_seen_whatever_its_sign():
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    penalty = Sampling(repetition_penalty=2.0)
    assert choose(logits, penalty, torch.tensor([0]), None) == 1
    assert choose(logits, penalty, NOTHING, None) == 0
    assert choose(torch.tensor([-1.0, -1.1]), penalty, torch.tensor([0]), None) == 1
    assert logits[0] == 2.0  # the caller's logits are not touched


@pytest.mark.parametrize("wrong", [
    {"temperature": -1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0},
    {"repetition_penalty": 0}, {"stop": ""}, {"stop": ("a", "")}, {"beams": 4},
])  # fmt: skip
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


def test_one_stop_text_need_not_be_a_list():
    assert Sampling(stop="\n\n").stop == ("\n\n",)


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
