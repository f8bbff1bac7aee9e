"""A person's own data: every layout is written here as a person would write it, and every mistake is named."""

import csv
import json
import pickle
from pathlib import Path

import pytest
from written_rows import brief, chat_row, jsonl, picture, png_bytes

from sensorium.config import from_json
from sensorium.data.formats import (
    ChatJsonl,
    CocoCaptions,
    Columns,
    LlavaJson,
    Parquet,
    PictureFolder,
    Vqa,
    check,
    files,
    open_data,
)
from sensorium.data.formats.files import JsonRows, scan
from sensorium.data.mixture import Mixture, Part
from sensorium.data.source import RowError, SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import MediaError


def coco(folder: Path) -> Path:
    picture(folder / "val2014" / "COCO_val2014_000000000007.jpg")
    picture(folder / "val2014" / "naïve.jpg", "blue")
    images = [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 4}, {"id": 9, "file_name": "naïve.jpg"}]
    annotations = [
        {"id": 1, "image_id": 9, "caption": "a blue café"},
        {"id": 2, "image_id": 7, "caption": "a red box"},
        {"id": 3, "image_id": 7, "caption": "red"},
        {"id": 4, "image_id": 8, "caption": "lost"},
    ]
    whole = {"info": {"year": 2014}, "annotations": annotations, "licenses": [], "images": images}
    path = folder / "captions.json"
    path.write_text(json.dumps(whole, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def test_coco_captions(tmp_path: Path):
    config = open_data(coco(tmp_path))
    assert config == CocoCaptions(path=str(tmp_path / "captions.json"), picture_root=str(tmp_path / "val2014"))
    source = config.build()
    assert len(source) == 4
    assert brief(source[0]) == [("image", None, (0, 0, 254)), ("text", None, "a blue café")]
    assert source[0].segments[1].train is True
    assert [brief(source[index])[1][2] for index in (1, 2)] == ["a red box", "red"]
    line = (tmp_path / "captions.json").read_text(encoding="utf-8").split('"lost"')[0].count("\n") - 2
    with pytest.raises(
        RowError, match=rf"captions\.json line {line} \(element 4\): image_id 8 is not among .* 2 images"
    ):
        source[3]
    asked = config.replace(prompt="Describe.").build()[1]
    assert [segment.role for segment in asked.segments] == ["user", "user", "assistant"]
    assert asked.segments[1].data == "Describe."


def test_vqa(tmp_path: Path):
    picture(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    questions = [
        {"image_id": 7, "question": "what colour?", "question_id": 70},
        {"image_id": 7, "question": "how many?", "question_id": 71},
    ]
    answers = [{"answer": text, "answer_id": n} for n, text in enumerate(["red", "red", "crimson"])]
    annotations = [{"question_id": 70, "image_id": 7, "multiple_choice_answer": "red", "answers": answers}]
    asked = {"info": {}, "data_subtype": "val2014", "questions": questions}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(asked))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
    config = open_data(tmp_path)
    assert isinstance(config, Vqa)
    assert config.annotations == str(tmp_path / "v2_mscoco_val2014_annotations.json")
    assert config.picture_name == "COCO_val2014_%012d.jpg"
    assert config.picture_root == str(tmp_path / "val2014")
    source = config.replace(instruction=" One word.").build()
    assert brief(source[0]) == [
        ("image", "user", (254, 0, 0)),
        ("text", "user", "what colour? One word."),
        ("text", "assistant", "red"),
    ]
    assert source[0].info == {"question_id": 70, "answers": ["red", "red", "crimson"]}
    with pytest.raises(RowError, match=r"element 2\): question_id 71 is not in .*annotations\.json"):
        source[1]
    assert len(config.replace(annotations=None).build()[1].segments) == 2
    with pytest.raises(ValueError, match="one %d"):
        config.replace(picture_name="a.jpg")


def test_a_folder_with_metadata_jsonl(tmp_path: Path):
    picture(tmp_path / "train" / "a.png")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "train/a.png", "text": "a red box", "extra": 1}])
    config = open_data(tmp_path)
    assert config == PictureFolder(path=str(tmp_path), table="metadata.jsonl")
    assert brief(config.build()[0]) == [("image", None, (255, 0, 0)), ("text", None, "a red box")]


def test_a_folder_with_metadata_csv_and_other_columns(tmp_path: Path):
    picture(tmp_path / "a.png")
    with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as stream:
        table = csv.writer(stream)
        table.writerows([["file_name", "caption", "artist"], ["a.png", "two\nlines, quoted", "x"], ["a.png", " ", "y"]])
        table.writerow(["a.png", "short row"])
    config = open_data(tmp_path)
    assert config == PictureFolder(
        path=str(tmp_path), table="metadata.csv", columns=Columns(picture="file_name", text="caption")
    )
    source = config.build()
    assert brief(source[0])[1] == ("text", None, "two\nlines, quoted")
    with pytest.raises(RowError, match=r"metadata\.csv line 4: the caption must be text"):
        source[1]
    with pytest.raises(RowError, match=r"metadata\.csv line 5: 2 cells, the header has 3"):
        source[2]
    chosen = open_data(tmp_path / "metadata.csv", columns={"text": "artist"}).build()
    assert brief(chosen[0])[1] == ("text", None, "x")
    with pytest.raises(UserError, match="no column 'artits': did you mean 'artist'"):
        open_data(tmp_path / "metadata.csv", columns={"text": "artits"})


def test_a_folder_with_text_files(tmp_path: Path):
    for name in ("b/two.jpg", "one.png", "alone.png"):
        picture(tmp_path / name)
    (tmp_path / "one.txt").write_text("first\n", encoding="utf-8")
    (tmp_path / "b" / "two.txt").write_text("第二", encoding="utf-8")
    (tmp_path / "orphan.txt").write_text("x")
    config = open_data(tmp_path)
    assert config == PictureFolder(path=str(tmp_path))
    source = config.build()
    assert [source[index].segments[1].data for index in range(len(source))] == ["第二", "first"]
    assert source[0].id == "b/two.jpg"
    report = check(source)
    assert sorted(report.notes.values()) == [1, 1]
    (tmp_path / "one.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RowError, match=r"one\.txt: byte 4 .*UTF-8"):
        source[1]


# -- Parquet --------------------


def test_parquet_with_every_kind_of_picture_column(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    picture(tmp_path / "a.png", "blue")
    columns = {
        "bytes": arrow.array([png_bytes(), b"junk", None]),
        "struct": [{"bytes": png_bytes(), "path": "x.png"}, {"bytes": None, "path": "a.png"}, None],
        "path": ["a.png", "none.png", "a.png"],
        "caption": ["one", "two", "three"],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "d.parquet", row_group_size=2)
    with pytest.raises(UserError, match="bytes, struct, path, caption"):
        open_data(tmp_path / "d.parquet")

    def source(column: str):
        return open_data(tmp_path / "d.parquet", columns={"image": column, "text": "caption"}).build()

    red, blue = (255, 0, 0), (0, 0, 255)
    assert brief(source("bytes")[0]) == [("image", None, red), ("text", None, "one")]
    with pytest.raises(MediaError, match=r"d\.parquet row 2"):
        source("bytes")[1].segments[0].data.load()
    with pytest.raises(RowError, match=r"d\.parquet row 3: .*'bytes' has 0"):
        source("bytes")[2]
    assert [brief(source("struct")[index])[0][2] for index in range(2)] == [red, blue]
    assert [brief(source("path")[index])[0][2] for index in (0, 2)] == [blue, blue]
    with pytest.raises(MediaError, match=r"none\.png"):
        source("path")[1].segments[0].data.load()
    with pytest.raises(UserError, match=r"no column 'captoin'.*did you mean 'caption'"):
        open_data(tmp_path / "d.parquet", columns={"image": "path", "text": "captoin"}).build()


def test_parquet_folders_of_chat_and_questions(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, colour in (("train-0.parquet", "red"), ("train-1.parquet", "blue")):
        rows = [
            chat_row(f"<image> {colour} {n}", images=[{"bytes": png_bytes(colour), "path": None}]) for n in range(3)
        ]
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / name, row_group_size=1)
    config = open_data(tmp_path)
    assert isinstance(config, Parquet)
    assert config.columns == {"image": "images", "messages": "messages"}
    source = pickle.loads(pickle.dumps(config.build()))
    assert len(source) == 6
    assert [source[index].segments[1].data for index in (0, 5, 2, 3)] == [" red 0", " blue 2", " red 2", " blue 0"]
    assert source.where(5) == f"{tmp_path / 'train-1.parquet'} row 3"
    rows = [{"question": "colour?", "answer": "red", "image": png_bytes()}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "q")
    answered = open_data(tmp_path / "q").build()[0]
    assert [segment.role for segment in answered.segments] == ["user", "user", "assistant"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch):
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and so on")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'sensorium\[data\]'"):
        open_data(tmp_path / "d.parquet")


def test_parquet_columns_must_be_one_layout():
    with pytest.raises(ValueError, match="exactly one"):
        Parquet(path="x", columns={"image": "a"})
    with pytest.raises(ValueError, match="needs its picture"):
        Parquet(path="x", columns={"text": "a"})


# -- detection, files, check --------------------


def test_every_source_round_trips_through_json():
    sources = [
        ChatJsonl(path="a.jsonl", picture_root="p"),
        LlavaJson(path="a.json"),
        CocoCaptions(path="c.json", picture_root="p", prompt="x"),
        PictureFolder(path="f", table="metadata.csv", columns=Columns(picture="a", text="b")),
        Vqa(path="q.json", annotations="a.json", picture_root="p"),
        Parquet(path="p", columns={"image": "jpg", "text": "en"}),
    ]
    for source in sources:
        again = from_json(source.to_json(), SourceConfig)
        assert again == source
        assert type(again) is type(source)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", ["is empty"]),
        ("a.jsonl", "hello", ["begins with 'h'"]),
        ("a.json", "[]", ["no rows"]),
        ("a.jsonl", '{"messagse": []}', ["line 1", "'messagse'", "did you mean 'messages'"]),
        ("a.jsonl", '{"x": 1}\n{"y": 2}', ["line 1", "'x', 'y'", "expected rows"]),
        ("a.jsonl", '{"messages": [\n', ["malformed"]),
        ("a.json", '[{"messages": []},\n {"messages": [}]', ["a.json line 2", "malformed"]),
        ("a.json", '[{"messages": []}', ["malformed", "the file ends"]),
        ("a.json", '{"imags": [1], "annotations": [\n{}]}', ["'imags'", "did you mean 'images'"]),
        ("a.json", '{"images": [{"file_name": "x.jpg"}], "annotations": [{}]}', ["x.jpg", "picture_root"]),
        ("a.csv", "file,words\na,b\n", ["line 1", "file, words"]),
    ],
)
def test_what_cannot_be_recognised_says_why(name, content, words, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        open_data(tmp_path / name).build()
    for word in (name, *words):
        assert word in str(caught.value)


def test_folders_that_cannot_be_recognised(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        open_data(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="there are none"):
        open_data(tmp_path)
    jsonl(tmp_path / "a.jsonl", [chat_row()])
    assert isinstance(open_data(tmp_path), ChatJsonl)
    jsonl(tmp_path / "b.jsonl", [chat_row()])
    with pytest.raises(UserError, match=r"2 of them \(a\.jsonl, b\.jsonl\)"):
        open_data(tmp_path)


def test_a_damaged_first_row_does_not_hide_the_layout(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", ['{"messages": [}', chat_row(), chat_row()])
    report = check(open_data(path))
    assert (report.rows, report.bad) == (3, 1)
    assert "line 1: malformed" in report.problems[0][1]


@pytest.mark.parametrize("window", [1, 7, 64, 1 << 22])
def test_scanning_in_windows_of_any_size(tmp_path: Path, monkeypatch, window: int):
    monkeypatch.setattr(files, "WINDOW", window)
    rows = [{"id": n, "text": f'é "{n}" ]}}, \\ \n 你好' * n} for n in range(12)] + [12345, "x", None, -1.5e3, []]
    value = {"info": {"a": [1, 2]}, "images": rows, "empty": [], "annotations": [1234567]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    raw = path.read_bytes()
    found = [element for element in scan(str(path)) if element.field == "images"]
    assert [json.loads(raw[e.offset : e.offset + e.length]) for e in found] == rows
    assert [e.line for e in found] == [raw[: e.offset].count(b"\n") + 1 for e in found]
    assert found[3].value["text"] == rows[3]["text"]
    plain = {element.field: element.value for element in scan(str(path)) if not element.length}
    assert plain == {"info": {"a": [1, 2]}, "empty": None}
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows[:12]) + "\n", encoding="utf-8")
    indexed = JsonRows(str(lines))
    assert [indexed.row(n) for n in range(len(indexed))] == rows[:12]


def test_check_finds_every_kind_of_bad_row_from_headers_alone(tmp_path: Path, monkeypatch):
    picture(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"<svg/>")
    rows = [chat_row("<image>", images=[name]) for name in ("good.png", "none.png", "broken.png", "good.png")]
    rows += [chat_row(), {"messagse": []}, chat_row("<image><image>", images=["good.png", "good.png"])]
    path = jsonl(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *given: pytest.fail("pixels were decoded"))
    report = check(open_data(path))
    assert (report.rows, report.checked, report.bad, report.pictures) == (7, 7, 3, 4)
    assert report.samples == {1: 2, 0: 1, 2: 1}
    reasons = dict(report.problems)
    assert set(reasons) == {1, 2, 5}
    assert "a.jsonl line 2" in reasons[1]
    assert "none.png: no such file" in reasons[1]
    assert "SVG" in reasons[2]
    assert "did you mean 'messages'" in reasons[5]
    with pytest.raises(UserError, match="--skip-bad-rows"):
        report.refuse()
    report.refuse(skip_bad_rows=True)
    assert json.loads(json.dumps(report.to_dict()))["samples_by_pictures"] == {"0": 1, "1": 2, "2": 1}
    some = check(open_data(path), sample=3)
    assert (some.checked, some.bad) == (3, 0)  # rows 0, 3 and 6


def test_check_looks_into_the_parts_of_a_mixture(tmp_path: Path):
    good = ChatJsonl(path=str(jsonl(tmp_path / "a.jsonl", [chat_row(score=1), chat_row()])))
    bad = ChatJsonl(path=str(jsonl(tmp_path / "b.jsonl", [chat_row(), {"messagse": []}])))
    report = check(Mixture(parts=(Part(name="good", source=good), Part(name="bad", source=bad))))
    assert (report.rows, report.checked, report.bad, report.unused) == (4, 4, 1, {"score": 1})
    ((row, reason),) = report.problems
    assert row == 3
    assert reason.startswith("bad: ")
    assert "b.jsonl line 2" in reason


def test_nothing_good_is_refused_even_when_skipping(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", [chat_row("<image>", images=["none.png"])])
    with pytest.raises(UserError, match="no row can be used"):
        check(open_data(path)).refuse(skip_bad_rows=True)
    check(ChatJsonl(path=str(jsonl(tmp_path / "b.jsonl", [chat_row()])))).refuse()
