"""Which option an answer names, and when it names none."""

from __future__ import annotations

import pytest

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.choices import chosen

OPTIONS = ("cat", "dog", "black cat", "bird")
NAMED = {
    "B": 1, "b": 1, "B.": 1, "(B)": 1, "(b)": 1, "[B]": 1, "B)": 1, " B \n": 1, "B: dog": 1, "B. dog": 1,
    "(B) dog": 1, "B, because it barks": 1, "B - dog": 1, "**B**": 1, "**B. dog**": 1, "\\boxed{B}": 1, "$B$": 1,
    "Answer: B": 1, "answer: b": 1, "Answer: (B)": 1, "The answer is B": 1, "The answer is B.": 1,
    "The answer is (B) dog.": 1, "The correct answer is: B": 1, "The correct option is B because A is a cat": 1,
    "Option B": 1, "I choose option (B).": 1, "My choice is B": 1, "答案：B": 1, "答案是B。": 1, "选项B": 1,
    "dog": 1, "Dog.": 1, "a dog": 1, "It is a dog.": 1, "The picture shows a dog": 1, "The answer is dog": 1,
    "The answer is a dog": 1, "black cat": 2, "It's a black cat!": 2, "the black cat.": 2, "A cat": 0, "A bird": 3,
    "A": 0, "A.": 0, "A. cat": 0, "The answer is A": 0, "The answer is A because of its ears": 0,
    "I think it is (D)": 3, "Let me think. It has wings.\nAnswer: D": 3, "it must be D then": 3,
    "The animal has feathers, so it is D.": 3, "<answer>C</answer>": 2, "The answer is B, not A": 1,
}  # fmt: skip
UNCLEAR = (
    "", " ", "?", "E", "(E)", "Answer: Z", "A or B", "A and B", "A/B", "A, B", "(A) or (B)", "The answer is A or B",
    "both A and C", "cat and dog", "It could be a cat or a dog", "none of them", "I do not know", "I'm not sure",
    "It is not a dog", "not B", "The answer is not B", "A. cat B. dog C. black cat D. bird", "猫", "un chien", "Hund",
    "I think it is", "An animal", "12", "cats and dogs everywhere", "I can't tell whether it is a cat",
)  # fmt: skip


@pytest.mark.parametrize("said", NAMED)
def test_an_option_is_read(said):
    assert chosen(said, OPTIONS) == NAMED[said]


@pytest.mark.parametrize("said", UNCLEAR)
def test_an_unclear_answer_names_none(said):
    assert chosen(said, OPTIONS) is None


def test_options_that_deny_and_options_of_numbers():
    assert chosen("It is not raining", ("It is raining", "It is not raining")) == 1
    assert chosen("There are 3.", ("2", "3", "13")) == 1
    assert chosen("3", ("2", "3", "13")) == 1
    assert chosen("yes", ("yes", "no")) == 0
    assert chosen("dog", ("dog", "dog")) is None  # which of the two?
    assert chosen("B", ()) is None


def test_accuracy_and_chance():
    item = TaskItem(id="1", options=OPTIONS, answer=1)
    two = TaskItem(id="2", options=("yes", "no"), answer=None)
    metric = metric_of("choice")
    parsed = [metric.parse(said, item) for said in ("B", "A", "Hund")]
    rows = metric.statistics([item] * 3, parsed)
    assert metric.single(rows).tolist() == [1, 0, 0]
    assert metric.scores(rows.sum(0)).tolist() == [pytest.approx(1 / 3)]
    assert metric.chance([item, two]) == pytest.approx(0.375)
    assert metric.single(metric.statistics([two], [None])).tolist() == [0]  # a split without answers: nothing is right
    with pytest.raises(UserError, match="item 3 has no options"):
        metric.statistics([TaskItem(id="3")], [0])
