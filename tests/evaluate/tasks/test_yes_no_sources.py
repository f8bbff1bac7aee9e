"""MME, POPE, NLVR2 and VSR read from files as published, and scores worked out by hand."""

from pathlib import Path

import pytest
from task_files import json_lines, pictures, reasons, scores

from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE
from sensorium.evaluate.tasks.yes_no import MME, NLVR2, POPE, VSR


def mme(folder: Path) -> None:
    """existence: three pictures with their texts beside them; posters: two, in folders of their own."""
    for n, answers in enumerate([("Yes", "No"), ("Yes", "No"), ("No", "Yes")], 1):
        pictures(folder / "existence", f"00000000{n}.jpg")
        write(folder / "existence" / f"00000000{n}.txt", answers)
    for n in (1, 2):
        pictures(folder / "posters" / "images", f"tt{n}.png")
        write(folder / "posters" / "questions_answers_YN" / f"tt{n}.txt", ("Yes", "No"))
    (folder / "eval_tool").mkdir()


def write(path: Path, answers: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"Is there a {number}? Please answer yes or no.\t{answer}\n" for number, answer in enumerate(answers)]
    path.write_text("".join(lines), encoding="utf-8")


def test_mme(tmp_path: Path):
    mme(tmp_path)
    source = MME(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.group, item.part, item.answers) for item in items.items][4:8] == [
        ("existence/000000003/1", "existence/000000003", "existence", ("No",)),
        ("existence/000000003/2", "existence/000000003", "existence", ("Yes",)),
        ("posters/tt1/1", "posters/tt1", "posters", ("Yes",)),
        ("posters/tt1/2", "posters/tt1", "posters", ("No",)),
    ]
    assert items.items[0].question == "Is there a 0? Please answer yes or no."
    assert items.items[6].media[0].data.path == tmp_path / "posters" / "images" / "tt1.png"
    # existence: right, right | right, wrong | right, right: accuracy 5/6, both right 2/3: 100 (5/6 + 2/3) = 150
    # posters: wrong, right | neither yes nor no, right: accuracy 2/4, both right 0/2: 100 (1/2 + 0) = 50
    # perception 200, no task of cognition; over all 7/10 of questions and 2/5 of pictures
    said = ["Yes", "no.", "Yes", "Yes", "No", "yes it is", "No", "No", "perhaps", "No"]
    found = scores(source, said)
    cognition = found.pop("MME cognition")
    assert cognition != cognition  # not a number: none was asked
    expected = {"MME total": 200, "MME perception": 200, "accuracy": 0.7, "accuracy+": 0.4}
    assert found == pytest.approx(expected)
    assert {item.part for item in source.replace(tasks=("posters",)).load().items} == {"posters"}


def test_what_of_mme_cannot_be_asked_is_counted(tmp_path: Path):
    mme(tmp_path)
    write(tmp_path / "existence" / "000000001.txt", ("Yes", "No", "No"))
    write(tmp_path / "existence" / "000000002.txt", ("Yes", "Maybe"))
    (tmp_path / "existence" / "000000003.jpg").unlink()
    write(tmp_path / "existence" / "000000009.txt", ("Yes",))
    pictures(tmp_path / "existence", "000000009.png", "alone.png")
    path = tmp_path / "posters" / "questions_answers_YN" / "tt1.txt"
    path.write_bytes(path.read_bytes().replace(b"Is", b"\xc9s"))
    pictures(tmp_path / "paintings", "1.jpg")
    write(tmp_path / "paintings" / "1.txt", ("Yes", "No"))
    items = MME(path=str(tmp_path)).load()
    assert [item.id for item in items.items] == ["posters/tt2/1", "posters/tt2/2"]
    found = [f"{Path(bad.where).name}: {bad.reason}" for bad in items.bad]
    assert found[:5] == [
        "000000001.txt: a picture of MME has two questions, this has 3",
        "000000002.txt: line 2: expected question<tab>Yes or No, found "
        "'Is there a 1? Please answer yes or no.\\tMaybe'",
        "000000003.txt: there is no picture 000000003.jpg or 000000003.png or 000000003.jpeg or 000000003.JPG in "
        f"{tmp_path}/existence",
        "000000009.txt: a picture of MME has two questions, this has 1",
        "alone.png: a picture without alone.txt",
    ]
    assert found[5].startswith("paintings: no task of MME is called 'paintings'")
    assert found[6] == "tt1.txt: line 1: byte 0xc9 is not UTF-8; save the file as UTF-8"
    with pytest.raises(UserError, match=r"has no task colour; it has eval_tool, existence, paintings, posters"):
        MME(path=str(tmp_path), tasks=("colour",)).load()
    with pytest.raises(UserError, match="is no folder; expected folders existence/"):
        MME(path=str(path)).load()
    with pytest.raises(UserError, match="no question can be asked of"):
        MME(path=str(tmp_path / "eval_tool")).load()


LABELS = {"random": ["yes", "no", "yes"], "popular": ["no", "yes"], "adversarial": ["no"]}


def pope(folder: Path) -> None:
    for setting, labels in LABELS.items():
        rows = [
            {"question_id": n, "image": f"COCO_val2014_{n // 2:012d}.jpg", "text": f"Is there a {n}?", "label": label}
            for n, label in enumerate(labels, 1)
        ]
        json_lines(folder / f"coco_pope_{setting}.json", rows)
    pictures(folder / "val2014", "COCO_val2014_000000000000.jpg", "COCO_val2014_000000000001.jpg")


def test_pope(tmp_path: Path):
    pope(tmp_path)
    source = POPE(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.part, item.answers[0]) for item in items.items] == [
        ("adversarial/1", "adversarial", "no"), ("popular/1", "popular", "no"), ("popular/2", "popular", "yes"),
        ("random/1", "random", "yes"), ("random/2", "random", "no"), ("random/3", "random", "yes"),
    ]  # fmt: skip
    assert items.items[4].group == "COCO_val2014_000000000001.jpg"
    # right: no no yes yes no yes; said: yes no yes yes no (neither).
    # true positives 2, false positives 1, true negatives 2, positives 3 of 6:
    # accuracy 4/6, precision 2/3, recall 2/3, F1 2 x 2 / (3 + 3) = 2/3, said yes 3/6
    said = ["Yes", "No", "Yes, there is.", "yes", "There is no such thing", "I can't tell"]
    expected = {"accuracy": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3, "yes rate": 0.5}
    assert scores(source, said) == pytest.approx(expected)
    one = POPE(path=str(tmp_path / "coco_pope_popular.json")).load()
    assert [item.part for item in one.items] == ["popular", "popular"]


def test_what_of_pope_cannot_be_asked_is_counted(tmp_path: Path):
    pope(tmp_path)
    name = "COCO_val2014_000000000000.jpg"
    good = {"question_id": 1, "image": name, "text": "Is there a dog?", "label": "yes"}
    rows = [
        good, {**good, "question_id": 2, "label": "maybe"}, {**good, "question_id": 3, "image": "gone.jpg"}, good,
        {**good, "question_id": True}, {**good, "question_id": 4, "text": "\ud800"}, {"question": "x"}, "text",
    ]  # fmt: skip
    path = json_lines(tmp_path / "coco_pope_random.json", rows)
    with open(path, "ab") as stream:
        stream.write(b'{"question_id": 9, "text": "\xe9"}\n{"question_id": 10')
    items = POPE(path=str(path)).load()
    assert [item.id for item in items.items] == ["random/1"]
    assert reasons(items) == [
        "coco_pope_random.json line 2: label must be yes or no, found 'maybe'",
        f"coco_pope_random.json line 3: there is no picture {tmp_path}/val2014/gone.jpg, or it is empty",
        f"coco_pope_random.json line 4: the id 'random/1' is given twice, first at {path} line 1",
        "coco_pope_random.json line 5: question_id must be a number or text, found True",
        "coco_pope_random.json line 6: text has half a character (\\ud800) at 0",
        "coco_pope_random.json line 7: no key 'image': known: question",
        'coco_pope_random.json line 8: expected an object {...}, the row is "text"',
        "coco_pope_random.json line 9: byte 29 of the row (0xe9) is not UTF-8; save the file as UTF-8",
        "coco_pope_random.json line 10: malformed JSON: Expecting ',' delimiter (column 19 of the row)",
    ]
    with pytest.raises(UserError, match=r"has no file for POPE; expected coco_pope_random\.json"):
        POPE(path=str(tmp_path / "val2014")).load()


def pair(n: int, label: str, sentence: str) -> dict:
    return {
        "validation": {"worker": label}, "sentence": sentence, "left_url": "https://example.org/l.jpg",
        "right_url": "https://example.org/r.jpg", "writer": "9", "label": label,
        "identifier": f"dev-{850 + n // 2}-0-{n % 2}", "synset": "acorn", "query": "acorns1",
    }  # fmt: skip


def test_nlvr2(tmp_path: Path):
    labels = ["True", "False", "True", "False", "True"]
    rows = [pair(n, label, f"There are {n} acorns.") for n, label in enumerate(labels)]
    json_lines(tmp_path / "dev.json", rows)
    pictures(tmp_path / "dev", *(f"dev-{850 + n}-0-img{side}.png" for n in range(3) for side in (0, 1)))
    source = NLVR2(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.group) for item in items.items][:3] == [
        ("dev-850-0-0", "dev-850-0"), ("dev-850-0-1", "dev-850-0"), ("dev-851-0-0", "dev-851-0"),
    ]  # fmt: skip
    first = items.items[0]
    assert first.question == (
        f"Left: {PLACE} Right: {PLACE} Is this statement about the two pictures true or false? There are 0 acorns."
    )
    assert [segment.data.path.name for segment in first.media] == ["dev-850-0-img0.png", "dev-850-0-img1.png"]
    # right, right, "false" for True, "Not true" is another word, right: 3 / 5
    assert scores(source, ["True", "false.", "false", "Not true", "TRUE"]) == {"exact match": 0.6}
    (tmp_path / "dev" / "dev-851-0-img1.png").unlink()
    rows[0]["label"], rows[1]["identifier"] = "yes", "none"
    json_lines(tmp_path / "dev.json", [*rows, rows[4]])
    assert [reason.split(": ", 1)[1].split(", first")[0] for reason in reasons(source.load())] == [
        "label must be True or False, found 'yes'",
        "an identifier is of the form dev-850-0-1, found 'none'",
        f"there is no picture dev-851-0-img1.png in {tmp_path}/dev",
        f"there is no picture dev-851-0-img1.png in {tmp_path}/dev",
        "the id 'dev-852-0-0' is given twice",
    ]


def test_nlvr2_of_train_lies_in_numbered_folders(tmp_path: Path):
    row = {**pair(0, "True", "A."), "identifier": "train-10171-0-0", "directory": 57}
    json_lines(tmp_path / "train.json", [row])
    pictures(tmp_path / "images" / "57", "train-10171-0-img0.png", "train-10171-0-img1.png")
    assert len(NLVR2(path=str(tmp_path / "train.json")).load().items) == 1


def spatial(n: int, label: int, **more) -> dict:
    return {
        "image": f"00000005040{n // 2}.jpg", "image_link": "http://example.org/a.jpg", "label": label,
        "caption": f"The bear is in front of person {n}.", "relation": "in front of" if n < 3 else "on",
        "annotator_id": 31, "vote_true_validator_id": [2, 6], "vote_false_validator_id": [], **more,
    }  # fmt: skip


def test_vsr(tmp_path: Path):
    rows = [spatial(n, label) for n, label in enumerate([1, 0, 0, 1, 1])]
    json_lines(tmp_path / "dev.jsonl", rows)
    pictures(tmp_path / "images", *(f"00000005040{n}.jpg" for n in range(3)))
    source = VSR(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.part, item.group, item.answers) for item in items.items][2:4] == [
        ("in front of", "000000050401.jpg", ("False",)), ("on", "000000050401.jpg", ("True",)),
    ]  # fmt: skip
    statement = "Based on the image, is this statement true or false? The bear is in front of person 0."
    assert items.items[0].question == statement
    # right, right, wrong, right, "Yes" is neither of both words: 3 / 5
    assert scores(source, ["True", "False", "True", "true", "Yes"]) == {"exact match": 0.6}
    json_lines(tmp_path / "dev.jsonl", [*rows, rows[0], spatial(1, True), spatial(7, 0), spatial(2, 0, caption="")])
    assert [reason.split(": ", 1)[1].split(", first")[0] for reason in reasons(source.load())] == [
        f"the id '{rows[0]['image']}/{rows[0]['caption']}' is given twice",
        "label must be 0 or 1, found True",
        f"there is no picture {tmp_path}/images/000000050403.jpg, or it is empty",
        "caption must be text that is not empty, found ''",
    ]


@pytest.mark.parametrize("source", [POPE, NLVR2, VSR])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"[[1]]", b'{"questions": []}'])
def test_a_file_of_another_format_is_one_error(source, content, tmp_path: Path):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=r"no question can be asked of .*file\.json as"):
        source(path=str(tmp_path / "file.json")).load()
