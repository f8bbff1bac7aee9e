"""Multiple choice in circles, and mixed with open questions, worked out by hand."""

import pytest

from sensorium.evaluate.item import PLACE, TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.college import says


def asked(key: str, circle: str | None, answer: int, count: int = 2) -> TaskItem:
    info = {} if circle is None else {"circle": circle}
    return TaskItem(id=key, options=tuple("ABCD"[:count]), answer=answer, info=info)


def test_a_question_asked_in_circles_counts_once():
    items = [
        asked("1/0", "1", 0),
        asked("1/1", "1", 1),
        asked("2/0", "2", 0),
        asked("2/1", "2", 1),
        asked("3", None, 1, 4),
    ]
    metric = metric_of("circular")
    rows = metric.statistics(items, [0, 1, 0, 0, 1])
    # question 1 is right both times, 2 once, 3 (alone) is right: 2 of 3 questions; 4 of 5 askings
    assert metric.scores(rows.sum(0)) == pytest.approx([2 / 3, 4 / 5])
    assert metric.single(rows) == pytest.approx([1, 1, 0, 0, 1])
    # guessing: 1/2 x 1/2, 1/2 x 1/2, 1/4
    assert metric.chance(items) == pytest.approx(1 / 4)
    assert metric.scores(metric.statistics(items, [None] * 5).sum(0)) == pytest.approx([0, 0])


def test_open_questions_beside_options():
    items = [
        asked("1", None, 1),
        TaskItem(id="2", answers=("12", "twelve")),
        TaskItem(id="3", answers=("treble clef",)),
    ]
    metric = metric_of("mmmu")
    parsed = [metric.parse(said, item) for said, item in zip(["(B)", "So it is 12.", " "], items)]
    assert parsed == [1, "So it is 12.", None]
    assert metric.scores(metric.statistics(items, parsed).sum(0)) == pytest.approx([2 / 3])
    assert metric.chance(items) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert [metric.prompt(item)[:11] for item in items] == ["Answer with", "Answer the ", "Answer the "]


def test_options_that_are_pictures_are_named_by_their_letters():
    item = TaskItem(id="1", options=(PLACE, PLACE, PLACE), answer=1)
    for said, number in (("The image B", 1), ("image", None), ("(C)", 2), ("The last image", None)):
        assert metric_of("choice").parse(said, item) == number


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("12", ["12"], True),
        ("There are 12 notes", ["12"], True),
        ("112", ["12"], False),
        ("1,200.004 dollars", ["1200"], True),
        ("1,200.1", ["1200"], False),
        ("3 + 4 = 7", ["3"], False),
        ("3 + 4 = 7", ["7"], True),
        ("First I add 3. The answer is 7", ["3"], False),
        ("The Treble  clef.", ["treble clef"], True),
        ("trebles", ["treble"], False),
        ("It is a bass clef", ["treble clef", "bass clef"], True),
        ("-5", ["5"], False),
    ],
)
def test_what_an_open_answer_says(said, answers, right):
    assert says(said, answers) is right
