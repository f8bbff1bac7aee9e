"""Multiple choice read from files as published, and scores worked out by hand."""

import base64
import csv
from pathlib import Path

import pytest
from task_files import json_file, json_lines, pictures, reasons, scores
from written_rows import png_bytes

from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE
from sensorium.evaluate.tasks.choices import MMBench, ScienceQA, SEEDBench
from sensorium.evaluate.tasks.mmmu import MMMU


def problem(n: int, answer: int, image: str | None = "image.png", **more) -> dict:
    return {
        "question": f"Which one is {n}?", "choices": ["ice", "wood", "glass"], "answer": answer, "hint": "",
        "image": image, "task": "closed choice", "grade": "grade3", "subject": "natural science", "topic": "physics",
        "category": "Materials", "skill": "Compare", "lecture": "Matter has states.", "solution": "", "split": "test",
        **more,
    }  # fmt: skip


def science(folder: Path) -> dict:
    problems = {
        "11": problem(11, 0),
        "12": problem(12, 1, hint="Ice is cold."),
        "13": problem(13, 2, image=None, subject="social science"),
        "14": problem(14, 0),
        "15": problem(15, 1, image=None),
        "16": problem(16, 1, split="train"),
    }
    json_file(folder / "problems.json", problems)
    json_file(folder / "pid_splits.json", {"train": ["16"], "test": ["11", "12", "13", "14", "15"], "minival": []})
    pictures(folder / "images" / "test", "11/image.png", "12/image.png", "14/image.png")
    return problems


def test_science_qa(tmp_path: Path):
    science(tmp_path)
    source = ScienceQA(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.answer, len(item.media), item.part) for item in items.items] == [
        ("11", 0, 1, "natural science"), ("12", 1, 1, "natural science"), ("13", 2, 0, "social science"),
        ("14", 0, 1, "natural science"), ("15", 1, 0, "natural science"),
    ]  # fmt: skip
    assert items.items[1].question == "Context: Ice is cold.\nWhich one is 12?"
    assert items.items[1].options == ("ice", "wood", "glass")
    # A is right, "B." is right, "wood" is B where C is right, "(A)" is right, "I do not know" names none: 3 / 5
    assert scores(source, ["A", "B.", "wood", "(A)", "I do not know"]) == {"accuracy": 0.6}
    assert [item.id for item in source.replace(only="image").load().items] == ["11", "12", "14"]
    full = source.replace(lecture=True, hint=False).load().items[1]
    assert full.question == "Lecture: Matter has states.\nWhich one is 12?"


def test_what_of_science_qa_cannot_be_asked_is_counted(tmp_path: Path):
    problems = science(tmp_path)
    problems["12"]["choices"][1] = ""
    problems["13"]["answer"] = 3
    problems["14"]["choices"] = ["one"]
    del problems["15"]
    json_file(tmp_path / "problems.json", problems)
    items = ScienceQA(path=str(tmp_path)).load()
    assert [item.id for item in items.items] == ["11"]
    assert reasons(items) == [
        "problems.json question 12: option 2 must be text that is not empty, found ''",
        "problems.json question 13: answer must be a number from 0 to 2, found 3",
        "problems.json question 14: a multiple choice has 2 options at least, found 1",
        "problems.json question 15: split 'test' has it, the problems do not",
    ]
    with pytest.raises(UserError, match="has no split 'testing': did you mean 'test'"):
        ScienceQA(path=str(tmp_path), split="testing").load()
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(UserError, match=r"has no pid_splits\.json: ScienceQA needs the ids of its splits"):
        ScienceQA(path=str(tmp_path)).load()


COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def bench(n: int, options: tuple, answer: str, hint: str = "", image: str | None = None) -> list[str]:
    picture = base64.b64encode(png_bytes()).decode() if image is None else image
    filled = [*options, *[""] * (4 - len(options))]
    return [
        str(n),
        f"Question {n}?",
        hint,
        *filled,
        answer,
        "object_localization",
        picture,
        "made",
        "finegrained",
        "",
        "dev",
    ]


def table(path: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([columns, *rows])
    return path


ROWS = [
    bench(241, ("cat", "dog", "cow", "pig"), "A"),
    bench(252, ("yes", "no"), "B", hint='The "sign"\nsays no.'),
    bench(253, ("one", "two", "three"), "C"),
    bench(254, ("red", "blue", "green", "grey"), "D", image="241"),
    bench(255, ("up", "down", "left", "right"), "A"),
]


def test_mm_bench(tmp_path: Path):
    source = MMBench(path=str(table(tmp_path / "mmbench_dev_20230712.tsv", ROWS)))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.answer, len(item.options), item.part) for item in items.items] == [
        (str(n), answer, count, "object_localization")
        for n, answer, count in ((241, 0, 4), (252, 1, 2), (253, 2, 3), (254, 3, 4), (255, 0, 4))
    ]
    assert items.items[1].question == 'The "sign"\nsays no.\nQuestion 252?'
    assert items.items[0].media[0].data.load().getpixel((0, 0)) == (255, 0, 0)
    assert items.items[3].media[0].data is items.items[0].media[0].data
    assert source.replace(part="l2-category").load().items[0].part == "finegrained"
    # right; right; "two" is B, C is right; right by its text; "B": wrong. 3 / 5
    assert scores(source, ["A", "The answer is B", "two", "grey", "B"]) == {"accuracy": 0.6}


def test_mm_bench_asked_in_circles(tmp_path: Path):
    source = MMBench(path=str(table(tmp_path / "dev.tsv", ROWS)), circular=True)
    items = source.load().items
    assert len(items) == 4 + 2 + 3 + 4 + 4
    first = items[:4]
    assert [item.id for item in first] == ["241/0", "241/1", "241/2", "241/3"]
    assert [item.options for item in first][1:3] == [("dog", "cow", "pig", "cat"), ("cow", "pig", "cat", "dog")]
    assert [item.options[item.answer] for item in items] == ["cat"] * 4 + ["no"] * 2 + ["three"] * 3 + ["grey"] * 4 + [
        "up"
    ] * 4
    assert {item.group for item in first} == {"241"}
    # "cat" four times: right. Always "B": of yes/no right the first time, wrong the second (no is A then): wrong.
    # "three" three times: right. 254: three of four: wrong. 255: none: wrong. 2 / 5
    said = ["cat"] * 4 + ["B"] * 2 + ["three"] * 3 + ["grey", "grey", "grey", "red"] + ["down"] * 4
    assert scores(source, said) == pytest.approx({"circular accuracy": 0.4, "accuracy": (4 + 1 + 3 + 3 + 0) / 17})


def test_what_of_mm_bench_cannot_be_asked_is_counted(tmp_path: Path):
    rows = [
        *ROWS[:3],
        bench(300, ("a", "", "c"), "A"),
        bench(301, ("a", "b"), "C"),
        bench(302, ("a", "b"), "A", image="999"),
        bench(303, ("a", "b"), "A", image="no base64!" * 9),
        bench(304, ("a", "b"), "A", image=""),
        bench(241, ("a", "b"), "A"),
        ["305", "short"],
        bench(306, ("a",), "A"),
    ]
    path = table(tmp_path / "dev.tsv", rows)
    path.write_bytes(path.read_bytes().replace(b"Question 253?", b"Question \xff?"))
    items = MMBench(path=str(path)).load()
    assert [item.id for item in items.items] == ["241", "252"]
    assert [reason.split(": ", 1)[0] for reason in reasons(items)] == [f"dev.tsv line {n}" for n in range(5, 14)]
    assert [reason.split(": ", 1)[1] for reason in reasons(items)] == [
        "question: byte 0xff is not UTF-8; save the file as UTF-8",
        "option 2 must be text that is not empty, found ''",
        "answer must be a letter from A to B, found 'C'",
        "its picture is that of row 999, which does not stand before it",
        "the base64 of a data: URL is damaged: Only base64 data is allowed",
        "image must be text that is not empty, found ''",
        f"the id '241' is given twice, first at {path} line 2",
        "2 cells, the header has 14",
        "a multiple choice has 2 options at least, found 1",
    ]
    with pytest.raises(UserError, match="line 1: no column 'answer'"):
        MMBench(path=str(table(tmp_path / "test.tsv", [], [name for name in COLUMNS if name != "answer"]))).load()


def seed(n: int, answer: str, kind: int = 1, **more) -> dict:
    options = {f"choice_{letter}": f"{letter.upper()} of {n}" for letter in "abcd"}
    return {
        "answer": answer, **options, "data_id": f"1454426_{n // 2}", "data_type": "image", "question": f"What {n}?",
        "question_id": str(101669 + n), "question_type_id": kind, **more,
    }  # fmt: skip


KINDS = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}


def test_seed_bench(tmp_path: Path):
    rows = [seed(n, letter, 1 + n % 2) for n, letter in enumerate("ABCDA")]
    rows.append(seed(9, "A", 10, data_type="video", segment=[1.0, 2.0]))
    json_file(tmp_path / "SEED-Bench.json", {"question_type": KINDS, "questions": rows})
    pictures(tmp_path / "SEED-Bench-image", "1454426_0", "1454426_1", "1454426_2.jpg")
    source = SEEDBench(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.answer, item.part, item.group) for item in items.items] == [
        ("101669", 0, "Scene Understanding", "1454426_0"), ("101670", 1, "Instance Identity", "1454426_0"),
        ("101671", 2, "Scene Understanding", "1454426_1"), ("101672", 3, "Instance Identity", "1454426_1"),
        ("101673", 0, "Scene Understanding", "1454426_2"),
    ]  # fmt: skip
    # right, right, D for C, right, "E" is no option: 3 / 5
    assert scores(source, ["A", "B", "D", "D. D of 3", "E"]) == {"accuracy": 0.6}
    rows[1]["choice_c"], rows[2]["answer"], rows[3]["question_id"] = " ", "E", "101669"
    json_file(tmp_path / "SEED-Bench.json", {"question_type": KINDS, "questions": rows})
    assert [reason.split(": ", 1)[1].split(", first")[0] for reason in reasons(source.load())] == [
        "choice_c must be text that is not empty, found ' '",
        "answer must be a letter from A to D, found 'E'",
        "the id '101669' is given twice",
    ]


def mmmu(key: str, question: str, options: str, answer: str, images: int, kind: str = "multiple-choice") -> dict:
    cells = {
        f"image_{n}": {"bytes": png_bytes(), "path": f"{key}_{n}.png"} if n <= images else None for n in range(1, 8)
    }
    return {
        "id": f"validation_{key}", "question": question, "options": options, "explanation": "", **cells,
        "img_type": "['Tables']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind, "subfield": "x",
    }  # fmt: skip


COLLEGE = [
    mmmu("Art_Theory_1", "<image 1> Who painted it?", "['Goya', \"Manet's son\", 'Titian']", "B", 1),
    mmmu("Art_Theory_2", "Compare <image 1> and <image 2>.", "['same', 'other']", "A", 2),
    mmmu("Music_1", "Which goes on <image 1>?", "['<image 2>', '<image 3>']", "B", 3),
    mmmu("Music_2", "How many notes?", "[]", "['12', 'twelve']", 1, "open"),
    mmmu("Music_3", "Name <image 2>.", "[]", "the treble clef", 2, "open"),
]


def test_mmmu_of_parquet_files(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for subject in ("Art_Theory", "Music"):
        rows = [row for row in COLLEGE if subject in row["id"]]
        (tmp_path / subject).mkdir()
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / subject / "validation-00000-of-00001.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / subject / "dev-00000-of-00001.parquet")
    source = MMMU(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.part, len(item.media), item.answer) for item in items.items] == [
        ("validation_Art_Theory_1", "Art_Theory", 1, 1), ("validation_Art_Theory_2", "Art_Theory", 2, 0),
        ("validation_Music_1", "Music", 3, 1), ("validation_Music_2", "Music", 1, None),
        ("validation_Music_3", "Music", 2, None),
    ]  # fmt: skip
    assert items.items[0].options == ("Goya", "Manet's son", "Titian")
    assert items.items[1].question == f"Compare {PLACE} and {PLACE}."
    assert items.items[2].options == (PLACE, PLACE)
    assert items.items[3].answers == ("12", "twelve")
    assert items.items[4].question == f"Name {PLACE}."
    assert [segment.data.name.split()[-1] for segment in items.items[4].media] == ["image_2", "image_1"]
    # B right; "other" is B where A is right; "B" right; "There are 12 notes" holds the number, an open answer: right;
    # "a bass clef" is not the treble clef. 3 / 5
    said = ["B", "other", "B", "There are 12 notes", "a bass clef"]
    assert scores(source, said) == {"accuracy": 0.6}
    single = MMMU(path=str(tmp_path / "Music" / "dev-00000-of-00001.parquet"))
    assert len(single.load().items) == 3


def test_mmmu_of_json_and_what_cannot_be_asked(tmp_path: Path):
    rows = [
        {**row, **{f"image_{n}": f"{n}.png" if row[f"image_{n}"] else None for n in range(1, 8)}} for row in COLLEGE
    ]
    pictures(tmp_path, "1.png", "2.png", "3.png")
    assert len(MMMU(path=str(json_lines(tmp_path / "a.jsonl", rows))).load().items) == 5
    rows[0]["question"] = "<image 4> Who?"
    rows[1]["options"] = "['same', "
    rows[2]["image_3"] = "gone.png"
    rows[3]["answer"] = ""
    items = MMMU(path=str(json_file(tmp_path / "a.json", rows))).load()
    assert [item.id for item in items.items] == ["validation_Music_3"]
    assert [reason.split(": ", 1)[1] for reason in reasons(items)] == [
        "<image 4> is mentioned, and there is no image_4",
        "options is no list: \"['same',\"",
        f"there is no picture {tmp_path}/gone.png, or it is empty",
        "answer must be text that is not empty, found ''",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.parquet file"):
        MMMU(path=str(tmp_path / "empty")).load()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        MMMU(path=str(tmp_path / "bad.parquet")).load()
