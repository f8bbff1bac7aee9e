"""Rows of a question and its answer: the file that asks also trains; every mistake is named with its line."""

import pytest
from written_rows import brief, jsonl, picture

from sensorium.data.formats import QuestionJsonl, check, open_data
from sensorium.data.formats.questions import answer_of
from sensorium.data.formats.rows import BadRow
from sensorium.data.source import RowError
from sensorium.errors import UserError
from sensorium.evaluate.tasks.jsonl import Jsonl

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "red.png")
    picture(tmp_path / "blue.png", "blue")
    return tmp_path


def test_pictures_stand_before_the_question_or_where_it_says(folder):
    rows = [
        {"id": "a", "image": "red.png", "question": "Which colour?", "answer": "red"},
        {"images": ["red.png", "blue.png"], "question": "From <image> to <image>: what changed?", "answer": "colour"},
        {"images": ["red.png", "blue.png"], "question": "How many?", "answer": 2},
        {"question": "What is two and two?", "answer": "four"},
    ]
    path = jsonl(folder / "own.jsonl", rows)
    config = open_data(path)
    assert config == QuestionJsonl(path=str(path))
    source = config.build()
    assert brief(source[0]) == [
        ("image", "user", RED), ("text", "user", "Which colour?"), ("text", "assistant", "red"),
    ]  # fmt: skip
    assert source[0].id == "a"
    assert [one[0] for one in brief(source[1])] == ["text", "image", "text", "image", "text", "text"]
    assert brief(source[2])[:2] == [("image", "user", RED), ("image", "user", BLUE)]
    assert brief(source[2])[-1] == ("text", "assistant", "2")
    assert [one[0] for one in brief(source[3])] == ["text", "text"]
    assert check(source).bad == 0


def test_what_evaluation_reads_trains_and_is_asked_the_same(folder):
    rows = [
        {"image": "red.png", "question": "Which?", "choices": ["blue", "red"], "answer": answer, "part": "colours"}
        for answer in ("red", "B", 1)
    ]
    rows.append({"image": "red.png", "question": "Which?", "answers": ["red", "crimson", "crimson"]})
    path = jsonl(folder / "own.jsonl", rows)
    source = open_data(path).build()
    assert [brief(source[number])[-1][2] for number in range(4)] == ["red"] * 3 + ["crimson"]
    asked = Jsonl(path=str(path)).load().items
    assert [item.question for item in asked] == ["Which?"] * 4
    assert [item.options[item.answer] for item in asked[:3]] == ["red"] * 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "?"}, "neither answer nor answers"),
        ({"question": "?", "answers": []}, "a list that is not empty"),
        ({"question": "?", "answer": True}, "text or a number, found True"),
        ({"question": "?", "answer": " "}, "must be text"),
        ({"question": "?", "answer": "c", "choices": ["a"]}, "2 options at least"),
        ({"question": "?", "answer": 2, "choices": ["x", "y"]}, "answer is number 2, choices are numbered from 0 to 1"),
        ({"question": "?", "answer": "b", "choices": ["x", "y"]}, "none of the choices, nor the letter of one"),
        ({"question": "?", "answer": "zebra", "choices": ["x", "y"]}, "none of the choices"),
    ],
)
def test_answers_that_cannot_be_read(row, words):
    with pytest.raises(BadRow, match=words):
        answer_of(row)


def test_mistakes_are_named_with_their_line(folder):
    good = {"image": "red.png", "question": "Which?", "answer": "red"}
    rows = [
        good,
        {**good, "question": 7},
        {**good, "images": ["blue.png"]},
        {"qestion": "Which?", "answer": "red"},
        {**good, "question": "<image> and <image>?"},
    ]
    source = open_data(jsonl(folder / "own.jsonl", rows)).build()
    told = ["question must be text", "both image and images", "qestion", "picture 2 is asked for, the row lists 1"]
    for number, words in enumerate(told, 1):
        with pytest.raises(RowError, match=f"line {number + 1}.*{words}"):
            source[number]
    assert check(source).bad == 4


def test_rows_of_no_format_are_told_of_this_one(folder):
    with pytest.raises(UserError, match="question and answer"):
        open_data(jsonl(folder / "own.jsonl", [{"picture_of": "red.png", "reply": "red"}]))
