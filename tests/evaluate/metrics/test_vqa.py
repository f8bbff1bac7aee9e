"""The official rules of VQA, worked by hand, and the average over those left out, by brute force."""

from __future__ import annotations

import random

import pytest

from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.vqa import CONTRACTIONS, Vqa, agreement, normal_answer

# Worked with the rules as published: a mark with a space on either side of it anywhere in the answer, or any mark of an
# answer with a comma between digits, is dropped; any other mark becomes a space; a full stop not before a digit is
# dropped; then lower case, number words, articles, contractions. Apostrophes and colons stay.
WORKED = {
    # case, white space
    "Yes": "yes", "  yes  ": "yes", "YES": "yes", "two\ndogs": "2 dogs", "a\tdog": "dog", "red   car": "red car",
    "": "", "   ": "", "\n": "",
    # articles and number words
    "the dog": "dog", "a dog": "dog", "an apple": "apple", "The": "", "a": "", "dog the cat": "dog cat",
    "theater": "theater", "another": "another", "zero": "0", "none": "0", "One": "1", "two": "2", "three": "3",
    "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "eleven",
    "twenty two": "twenty 2", "twenty-two": "twenty 2", "tenth": "tenth", "no one": "no 1",
    # full stops
    "dog.": "dog", "3.5": "3.5", "3.": "3", "St. Louis": "st louis", "U.S.A.": "usa", "$5.00": "$5.00", "...": "",
    ".5": ".5", "a.b": "ab", "10.5.": "10.5", "p.m.": "pm", "www.x.com": "wwwxcom",
    # commas
    "1,000": "1000", "100,978": "100978", "red, white": "red white", "red,white": "red white", "1, 2": "1 2",
    "1,000 red,white": "1000 redwhite", "10,20,30": "102030", "yes,": "yes",
    # other marks
    "t-shirt": "t shirt", "black - white": "black white", "black- white t-shirt": "black white tshirt",
    "and/or": "and or", "and / or": "and or", "what?": "what", "wow! ok": "wow ok", "(red)": "red", "red (dark)":
    "red dark", "\"stop\"": "stop", "say \"stop\" now": "say stop now", "a_b": "b", "x@y": "x y", "5+5": "5 5",
    "[1]": "1", "{a}": "", "a;b": "b", "<b>": "b", "c\\d": "c d", "`x`": "x", "2=2": "2 2", "why?!": "why",
    # what stays
    "2:50 pm": "2:50 pm", "girl's": "girl's", "50%": "50%", "R&B": "r&b", "#1": "#1", "$5": "$5", "*": "*",
    "men's room": "men's room", "café": "café", "５": "５", "狗": "狗", "猫。": "猫。",
    # contractions
    "dont": "don't", "don't": "don't", "Dont": "don't", "isnt": "isn't", "its": "its", "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've", "wont go": "won't go", "oclock": "o'clock", "6 oclock": "6 o'clock", "yall": "y'all",
    "thats": "that's", "im": "im", "ive": "ive", "hes": "he's", "shes": "shes", "twas": "'twas", "lets": "lets",
    "somebody'd": "somebodyd", "well": "well", "were": "were", "whos there": "who's there", "dont.": "don't",
    "the cant": "can't", "ow's'at": "'ow's'at",
}  # fmt: skip


@pytest.mark.parametrize("said", WORKED)
def test_an_answer_is_normalised_as_worked_by_hand(said):
    assert normal_answer(said) == WORKED[said]


def test_normal_answers_mostly_stay():
    for answer in WORKED.values():
        assert normal_answer(answer) == answer or "." in answer or answer in CONTRACTIONS


def test_agreement_is_the_mean_over_people_left_out():
    rng = random.Random(0)
    for _ in range(1000):
        given = [rng.choice("abcd"[: rng.randint(1, 4)]) for _ in range(rng.choice((10, 10, 10, 4, 5, 7)))]
        answer = rng.choice("abcde")
        worked = []
        for left in range(len(given)):
            others = [one for number, one in enumerate(given) if number != left]
            worked.append(min(1, others.count(answer) / 3))
        assert agreement(answer, given) == pytest.approx(sum(worked) / len(worked), abs=1e-12)


@pytest.mark.parametrize(("same", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_agreement_of_ten_has_the_published_values(same, score):
    assert agreement("red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(score, abs=1e-12)


def test_of_few_references_any_is_right():
    assert agreement("red", ["red"]) == agreement("red", ["blue", "red", "green"]) == 1
    assert agreement("red", ["blue"]) == agreement("red", []) == 0


def test_items_are_scored_after_both_sides_are_normalised():
    item = TaskItem(id="1", answers=("Yes.", "yes", "the yes", "no", "no", "no", "no", "no", "no", "no"))
    metric = Vqa()
    parsed = [metric.parse(said, item) for said in ("YES!", "Non", "", "ja")]
    assert parsed == ["yes", "non", None, "ja"]
    assert metric.each([item] * 4, parsed) == pytest.approx([0.9, 0, 0, 0])


@pytest.mark.parametrize(
    ("people", "said", "free", "official"),
    [
        (["yes"] * 10, "Yes.", 1.0, 0.0),  # all agree: the official program compares as it is
        (["yes"] * 10, "yes\n", 1.0, 1.0),  # but for line breaks
        (["2"] * 10, "two", 1.0, 0.0),
        (["yes"] * 9 + ["no"], "Yes.", 1.0, 1.0),  # one disagrees: both are normalised
        (["two"] * 3 + ["3"] * 7, "2", 0.9, 0.9),  # 7 of 10 leave three, 3 of 10 leave two: 0.7 + 0.3 * 2 / 3
        (["yes"] * 10, " ...", 0.0, 0.0),
    ],
)
def test_the_official_program_leaves_unanimous_answers_as_they_are(people, said, free, official):
    item = TaskItem(id="a", answers=tuple(people))
    for metric, wanted in ((Vqa(), free), (Vqa(official=True), official)):
        assert metric.each([item], [metric.parse(said, item)]) == pytest.approx([wanted])
