"""Yes, no and neither; POPE and MME by hand."""

from __future__ import annotations

import pytest

from sensorium.errors import UserError
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.metrics.yesno import MME_TASKS, yes_or_no

READ = {
    "Yes": True, "yes.": True, "YES, there is a dog.": True, "Yes\nno": True, "**Yes**": True, "Answer: Yes": True,
    "The answer is yes": True, "Yes, it's not a cat but a dog": True, "I would say yes.": True, "There is a dog.": True,
    "There are two dogs in the picture": True, "It is correct": True,
    "No": False, "no!": False, "No, there is a cat.": False, "“No.”": False, "The answer is no.": False,
    "There is no dog.": False, "The picture does not show a dog": False, "It isn't.": False, "There isn't any": False,
    "I would say no": False, "It is not a dog. Yes, I am sure.": False,
}  # fmt: skip
UNREADABLE = ("", "yes or no", "Yes/No", "Yes and no", "maybe", "I am not sure", "I cannot tell", "oui", "nein", "是",
              "A dog", "north", "yesterday", "Unable to answer", "It is unclear")  # fmt: skip


@pytest.mark.parametrize("said", READ)
def test_yes_and_no_are_read(said):
    assert yes_or_no(said) is READ[said]


@pytest.mark.parametrize("said", UNREADABLE)
def test_neither_is_unreadable(said):
    assert yes_or_no(said) is None


def question(answer, **more):
    return TaskItem(id=more.pop("id", "1"), answers=(answer,), **more)


def test_pope_by_hand():
    items = [question(one) for one in ("yes", "yes", "yes", "no", "no", "no", "no", "yes")]
    metric = metric_of("pope")
    rows = metric.statistics(items, [True, True, False, True, False, False, None, None])
    # 2 of 3 yeses are right (precision), of 4 positives 2 are found (recall), 4 of 8 are right, 3 of 8 are yes
    assert metric.scores(rows.sum(0)) == pytest.approx([0.5, 2 / 3, 0.5, 4 / 7, 3 / 8])
    assert metric.single(rows).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    never = metric.statistics(items, [False] * 8).sum(0)
    assert metric.scores(never) == pytest.approx([0.5, 0, 0, 0, 0])


def test_a_right_answer_that_is_neither_is_an_error():
    with pytest.raises(UserError, match="'blue'"):
        metric_of("pope").statistics([question("blue")], [True])


def test_mme_by_hand():
    # existence: picture a both right, b one; color: c none, d both. OCR: e unreadable.
    said = {("existence", "a"): (True, False), ("existence", "b"): (True, True), ("color", "c"): (False, True),
            ("color", "d"): (True, False), ("OCR", "e"): (True, None)}  # fmt: skip
    items, parsed = [], []
    for (task, picture), answers in said.items():
        for right, answer in zip(("Yes", "No"), answers):
            items.append(question(right, id=f"{task} {picture} {right}", part=task, group=picture))
            parsed.append(answer)
    metric = metric_of("mme")
    rows = metric.statistics(items, parsed)
    scores = metric.scores(rows.sum(0))
    existence, color, ocr = 75 + 50, 50 + 50, 50 + 0
    total = existence + color + ocr
    assert scores[[0, 1, 3, 4]] == pytest.approx([total, total, 6 / 10, 2 / 5])
    assert scores[2] != scores[2]  # no cognition was asked
    assert metric.single(rows).tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    assert metric.chance(items) == 3 * 75
    (table,) = metric.tables(items, rows)
    assert table.rows[0] == ("existence", "4", "75.0%", "50.0%", "125.0")
    with pytest.raises(UserError, match="did you mean 'color'"):
        metric.statistics([question("yes", part="colour")], [True])


def test_mme_has_2800_points():
    items = [question("yes", id=task, part=task, group=task) for task in MME_TASKS]
    metric = metric_of("mme")
    assert metric.scores(metric.statistics(items, [True] * 14).sum(0)) == pytest.approx([2800, 2000, 800, 1, 1])
