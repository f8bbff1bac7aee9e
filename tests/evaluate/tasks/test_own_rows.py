"""A user's own rows, and what fits them."""

from pathlib import Path

import pytest
from task_files import json_file, json_lines, pictures, reasons, scores

from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE
from sensorium.evaluate.tasks.jsonl import Jsonl


def own(folder: Path, rows: list, **settings) -> Jsonl:
    pictures(folder, "a.png", "b.png", "c.png", size=(100, 50))
    return Jsonl(path=str(json_lines(folder / "my.jsonl", rows)), **settings)


def test_answers(tmp_path: Path):
    source = own(tmp_path, [
        {"image": "a.png", "question": "What is it?", "answer": "a dog", "id": "first", "part": "animals", "level": 3},
        {"image": "a.png", "question": "How many?", "answer": 3},
        {"images": ["b.png", "c.png"], "question": f"Is {PLACE} like {PLACE}?", "answers": ["yes", "they are"]},
        {"question": "Capital of France?", "answer": "Paris", "group": "towns"},
        {"image": "c.png", "question": "How long?", "answers": [2.5, "two and a half"]},
    ])  # fmt: skip
    items = source.load()
    assert items.bad == []
    assert [item.id for item in items.items] == ["first", "2", "3", "4", "5"]
    assert [item.answers for item in items.items] == [
        ("a dog",), ("3",), ("yes", "they are"), ("Paris",), ("2.5", "two and a half"),
    ]  # fmt: skip
    groups = [item.group for item in items.items]
    assert groups[0] == groups[1] == str(tmp_path / "a.png")
    assert groups[3] == "towns"
    assert (items.items[0].part, items.items[0].info) == ("animals", {"level": 3})
    assert [len(item.media) for item in items.items] == [1, 1, 2, 0, 1]
    assert source.metric_for(items.items) == "exact"
    # "A dog." right, "3" right, "They are" right, "paris, France" other words, "2.5" right: 4 / 5
    assert scores(source, ["A dog.", "3", "They are", "paris, France", "2.5"]) == {"exact match": 0.8}


def test_choices(tmp_path: Path):
    asked = {"image": "a.png", "question": "Which?", "choices": ["red", "green", "blue"]}
    rows = [{**asked, "answer": answer} for answer in ("green", "C", 0, "B", "red")]
    source = own(tmp_path, [*rows, {**asked, "choices": ["C", "B", "A"], "answer": "A"}])
    items = source.load()
    assert [item.answer for item in items.items] == [1, 2, 0, 1, 0, 2]  # an option's text comes before its letter
    assert source.metric_for(items.items) == "choice"
    # right, right, right, wrong, none, right ("C" is the whole text of the first: A, wrong): 3 / 6
    assert scores(source, ["B", "blue", "(A)", "A", "?", "C"]) == {"accuracy": 0.5}


def test_boxes(tmp_path: Path):
    asked = {"image": "a.png", "question": "Where is the dog?"}
    boxes = [
        [[0.1, 0.2, 0.5, 0.6]],
        [[0, 0, 1, 1]],
        [[0, 0, 0.5, 1], [0.5, 0, 1, 1]],
        [[0, 0, 0.2, 0.2]],
        [[0, 0, 1, 0.5]],
    ]
    rows = [{**asked, "boxes": one} for one in boxes]
    source = own(tmp_path, rows)
    items = source.load()
    assert items.items[2].boxes == ((0, 0, 0.5, 1), (0.5, 0, 1, 1))
    assert source.metric_for(items.items) == "grounding"
    # 1; half of it: 0.5, right; both of two: 1; (0, 0, 0.2, 0.1) is half: 0.5, right; none: 0.
    # 4 / 5, (1 + 0.5 + 1 + 0.5 + 0) / 5
    said = ["[0.10, 0.20, 0.50, 0.60]", "[0.00, 0.00, 1.00, 0.50]", "[0.50, 0.00, 1.00, 1.00] [0.00, 0.00, 0.50, 1.00]",
            "[0.00, 0.00, 0.20, 0.10]", "everywhere"]  # fmt: skip
    assert scores(source, said) == pytest.approx({"Acc@0.5": 0.8, "mean IoU": 0.6})
    pixels = own(tmp_path, [{**asked, "boxes": [[10, 10, 50, 30]]}], boxes="pixels").load()
    assert pixels.items[0].boxes == ((0.1, 0.2, 0.5, 0.6),)


def turn(role: str, content) -> dict:
    return {"role": role, "content": content}


def test_messages(tmp_path: Path):
    part = {"type": "image", "image": "a.png"}
    source = own(tmp_path, [
        {"messages": [turn("user", [part, {"type": "text", "text": "What is it?"}]), turn("assistant", "a dog")]},
        {"messages": [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Hello"),
                      turn("user", "<image>And this?")], "images": ["b.png"], "answer": "a cat"},
        {"messages": [turn("user", [{"type": "text", "text": "Of "}, part, {"type": "text", "text": " what?"}])],
         "choices": ["x", "y"], "answer": "B"},
    ])  # fmt: skip
    items = source.load()
    assert items.bad == []
    first, second, third = items.items
    assert (first.question, first.answers, first.before) == (f"{PLACE}What is it?", ("a dog",), ())
    assert (second.question, second.answers) == (f"{PLACE}And this?", ("a cat",))
    assert [(one.role, one.data) for one in second.before] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"),
    ]  # fmt: skip
    assert second.media[0].data.path == tmp_path / "b.png"
    assert (third.question, third.answer) == (f"Of {PLACE} what?", 1)
    with pytest.raises(UserError, match=r"rows are of several kinds \(answers, choice\): name the metric"):
        source.metric_for(items.items)


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        ([["yes"], ["No."], ["yes"]], "pope"),
        ([["a"] * 10, ["b"] * 10], "vqa"),
        ([["a dog runs over the wet grass", "the dog that runs is brown"]] * 2, "cider"),
        ([["a dog runs over the wet grass"]] * 2, "exact"),
        ([["a"] * 10, ["b"]], "exact"),
    ],
)
def test_the_metric_that_fits(answers, metric, tmp_path: Path):
    rows = [{"image": "a.png", "question": "?", "answers": one} for one in answers]
    source = own(tmp_path, rows)
    assert source.metric_for(source.load().items) == metric


GOOD = {"image": "a.png", "question": "What?", "answer": "x"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "image": "gone.png"}, "there is no picture {folder}/gone.png, or it is empty"),
        ({**GOOD, "image": None, "images": ["a.png"]}, "both 'image' and 'images' are given: keep one"),
        ({"images": ["a.png", "a.png"], "question": "?", "answer": "x"}, "the picture 'a.png' is named twice"),
        ({**GOOD, "image": "http://example.org/a.png"}, "pictures are not fetched from the network"),
        ({**GOOD, "image": 5}, "a picture must be a path or a data: URL, found 5"),
        ({**GOOD, "image": "a\0.png"}, "there is no picture"),
        ({**GOOD, "question": ""}, "question must be text that is not empty, found ''"),
        ({"image": "a.png", "answer": "x"}, "no key 'question'"),
        ({"image": "a.png", "qestion": "What?", "answer": "x"}, "unknown key 'qestion': did you mean 'question'?"),
        ({"image": "a.png", "question": "What?"}, "a row has one of 'answer', 'answers', 'boxes', or 'choices'"),
        ({**GOOD, "answers": ["x"]}, "a row has one of 'answer', 'answers', 'boxes', or 'choices'"),
        ({**GOOD, "answer": True}, "answer must be text or a number, found True"),
        ({**GOOD, "answer": " "}, "answer must be text that is not empty, found ' '"),
        ({**GOOD, "answer": "\ud800"}, "answer has half a character (\\ud800) at 0"),
        ({**GOOD, "question": f"{PLACE} {PLACE}?"}, "its words have 2 places for pictures (<image>), it has 1"),
        ({**GOOD, "choices": ["a", ""]}, "option 2 must be text that is not empty, found ''"),
        ({**GOOD, "choices": ["a"]}, "a multiple choice has 2 options at least, found 1"),
        ({**GOOD, "choices": ["a", "b"]}, "the answer 'x' is none of the choices, nor the letter of one"),
        ({**GOOD, "choices": ["x", "x"]}, "the answer 'x' is several of the choices"),
        ({**GOOD, "choices": ["a", "b"], "answer": 2}, "answer is number 2, choices are numbered from 0 to 1"),
        ({**GOOD, "choices": "ab"}, "choices must be a list that is not empty, found 'ab'"),
        ({**GOOD, "boxes": [[0.5, 0, 0.2, 1]]}, "the box [0.5, 0, 0.2, 1] has no area"),
        ({**GOOD, "boxes": [[0, 0, 1.2, 1]]}, "the box [0, 0, 1.2, 1] leaves [0, 1]; boxes in pixels need the setting"),
        ({**GOOD, "boxes": [[0, 0, 1]]}, "a box has four numbers, found [0, 0, 1]"),
        ({**GOOD, "boxes": 3}, "boxes must be a list that is not empty, found 3"),
        ({"question": "?", "boxes": [[0, 0, 1, 1]]}, "boxes are of one picture, the row has 0"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [turn("user", "a")], "question": "b"}, "both 'messages' and 'question' are given: keep one"),
        ({"messages": [turn("user", "a"), turn("assistant", "b")], "answer": "c"}, "the messages end with an answer"),
        ({"messages": [turn("assistant", "b")]}, "the last message must be the user's question"),
        ({"messages": [turn("user", "<image>?")], "answer": "b"}, "the question holds <image> as plain text"),
        ({"messages": [turn("user", [{"type": "image", "image": "gone.png"}])], "answer": "x"}, "there is no picture"),
        ({"messages": [turn("user", 5)], "answer": "x"}, "message 1: content must be text or a list of parts, found 5"),
        ([1], "expected an object"),
    ],
)  # fmt: skip
def test_a_bad_row_is_counted_with_its_line_and_reason(row, reason, tmp_path: Path):
    items = own(tmp_path, [GOOD, row]).load()
    assert len(items.items) == 1
    (bad,) = items.bad
    assert bad.where == f"{tmp_path}/my.jsonl line 2"
    assert bad.reason.startswith(reason.replace("{folder}", str(tmp_path)))


def test_broken_lines_and_ids(tmp_path: Path):
    source = own(tmp_path, [GOOD, {**GOOD, "id": "2"}, {**GOOD, "id": 2}])
    with open(source.path, "ab") as stream:
        stream.write(b'{"image": \n\n{"question": "\xff"}\n')
    assert [reason.split(": ", 1)[1].split(" (")[0].split(", first")[0] for reason in reasons(source.load())] == [
        "the id '2' is given twice",
        "malformed JSON: Expecting value",
        "byte 15 of the row",
    ]


@pytest.mark.parametrize("content", ["", "hello", "[]", "{}", '{"data": [{"question": "a"}]}'])
def test_a_file_without_a_question_is_one_error(content, tmp_path: Path):
    (tmp_path / "my.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"no question can be asked of .*my\.jsonl as own rows.*; expected"):
        Jsonl(path=str(tmp_path / "my.jsonl")).load()


def test_an_array_is_read_as_lines_are(tmp_path: Path):
    pictures(tmp_path / "pictures", "a.png")
    path = json_file(tmp_path / "my.json", [GOOD, GOOD])
    items = Jsonl(path=str(path), pictures=str(tmp_path / "pictures")).load()
    assert [item.id for item in items.items] == ["1", "2"]
