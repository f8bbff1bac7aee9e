"""No file, however broken, is more than one error or rows that are counted: every value of every format is replaced in
turn by what does not belong there."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from task_files import json_file, json_lines, pictures

from sensorium.errors import UserError
from sensorium.evaluate.item import Items
from sensorium.evaluate.tasks.captions import CaptionTask
from sensorium.evaluate.tasks.choices import ScienceQA, SEEDBench
from sensorium.evaluate.tasks.folders import ImageFolder
from sensorium.evaluate.tasks.grounding import RefCOCO
from sensorium.evaluate.tasks.jsonl import Jsonl
from sensorium.evaluate.tasks.mmmu import MMMU
from sensorium.evaluate.tasks.vqa import GQA, OKVQA, ChartQA, DocVQA, TextVQA, VQAv2
from sensorium.evaluate.tasks.yes_no import NLVR2, POPE, VSR

JUNK: list[Any] = [
    None, True, -1, 10**30, 2.5, float("nan"), "", " ", "x", "\ud800", "a\0b", "../..", "<image>", "[1", "%d", [], [[]],
    [None], ["x", "x"], {}, {"x": 1},
]  # fmt: skip

PHOTO = {"id": 1, "file_name": "a.png", "width": 6, "height": 4}
BOX = {"id": 5, "image_id": 1, "bbox": [1, 1, 2, 2]}
REF = {"ref_id": 1, "ann_id": 5, "image_id": 1, "split": "val", "sentences": [{"sent_id": 1, "sent": "dog"}]}
VQA_QUESTIONS = {"data_subtype": "val2014", "questions": [{"image_id": 1, "question": "What?", "question_id": 1}]}
VQA_ANSWERS = {
    "question_types": {"one": "Sports"},
    "annotations": [
        {"question_id": 1, "image_id": 1, "answers": [{"answer": "a"}], "answer_type": "other", "question_type": "one"}
    ],
}
PROBLEM = {"question": "?", "choices": ["a", "b"], "answer": 0, "hint": "h", "image": "a.png", "subject": "s"}
COLLEGE = {"id": "dev_Art_1", "question": "<image 1>?", "options": "['a', 'b']", "answer": "A", "image_1": "a.png"}

# a name, the source, and its files: a list of rows is written as JSON Lines where the name says .jsonl
FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vqav2": (VQAv2, {"questions.json": VQA_QUESTIONS, "annotations.json": VQA_ANSWERS}),
    "okvqa": (OKVQA, {"questions.json": VQA_QUESTIONS, "annotations.json": VQA_ANSWERS}),
    "gqa": (GQA, {"q.json": {"7": {
        "imageId": "a", "question": "?", "answer": "no", "types": {"structural": "query"}}}}),
    "textvqa": (TextVQA, {"q.json": {"data": [
        {"question": "?", "question_id": 1, "image_id": "a", "answers": ["x", "y"]}]}}),
    "docvqa": (DocVQA, {"q.json": {"data": [
        {"questionId": 1, "question": "?", "question_types": ["form"], "image": "a.png", "docId": 3,
         "answers": ["x"]}]}}),
    "chartqa": (ChartQA, {"q_human.json": [{"imgname": "a.png", "query": "?", "label": "3"}]}),
    "scienceqa": (ScienceQA, {"problems.json": {"3": PROBLEM}, "pid_splits.json": {"test": ["3"], "train": []}}),
    "seedbench": (SEEDBench, {"q.json": {"question_type": {"Scene": 1}, "questions": [
        {"question": "?", "choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d", "answer": "B",
         "data_id": "a.png", "data_type": "image", "question_id": "1", "question_type_id": 1}]}}),
    "mmmu": (MMMU, {"q.json": [COLLEGE, {**COLLEGE, "id": "dev_Art_2", "options": "[]", "answer": "['x', 'y']"}]}),
    "coco": (CaptionTask, {"q.json": {"images": [PHOTO], "annotations": [{"image_id": 1, "caption": "a dog"}]}}),
    "karpathy": (CaptionTask, {"q.json": {"images": [
        {"filename": "a.png", "filepath": "f", "imgid": 1, "split": "test", "sentences": [{"raw": "a dog"}]}]}}),
    "blip": (CaptionTask, {"q.json": [{"image": "a.png", "caption": ["a dog"]}]}),
    "refs": (RefCOCO, {"q.json": {"images": [PHOTO], "annotations": [BOX], "refs": [REF]}}),
    "mdetr": (RefCOCO, {"q.json": {"images": [{**PHOTO, "caption": "dog", "original_id": 3, "dataset_name": "refcoco"}],
                                   "annotations": [BOX]}}),
    "pope": (POPE, {"q_random.jsonl": [{"question_id": 1, "image": "a.png", "text": "?", "label": "no"}]}),
    "nlvr2": (NLVR2, {"q.jsonl": [{"identifier": "dev-1-0-0", "sentence": "A.", "label": "True", "directory": 3}]}),
    "vsr": (VSR, {"q.jsonl": [{"image": "a.png", "caption": "A.", "label": 1, "relation": "on"}]}),
    "names": (ImageFolder, {"names.json": {"red": ["red", "scarlet"], "blue": "blue"}}),
    "own rows": (Jsonl, {"q.jsonl": [
        {"image": "a.png", "question": "?", "choices": ["a", "b"], "answer": "B", "id": 4, "group": "g", "part": "p"},
        {"images": ["a.png"], "question": "?", "boxes": [[0, 0, 1, 1]]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
                      {"role": "assistant", "content": "x"}]}]}),
}  # fmt: skip


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        if name.endswith(".jsonl") and isinstance(value, list):
            json_lines(folder / name, value)
        else:
            json_file(folder / name, value)


def source_in(folder: Path, name: str) -> Any:
    made, files = FORMATS[name]
    first = next(iter(files))
    if made is ImageFolder:
        return ImageFolder(path=str(folder / "classes"), names=str(folder / first))
    if made is ScienceQA:
        return ScienceQA(path=str(folder))
    return made(path=str(folder / first))


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value within a value, its own too."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def without(value: Any, path: tuple) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("COCO_val2014_000000000001.jpg", "a.png", "a.jpg", "dev-1-0-img0.png", "dev-1-0-img1.png", "3/a.png")
    pictures(tmp_path, *names, "classes/red/1.png", "classes/blue/1.png")
    return tmp_path


def asked(folder: Path, name: str) -> Items | str:
    """What a source holds, or its error."""
    try:
        return source_in(folder, name).load()
    except UserError as error:
        return str(error)


def check(found: Items | str, folder: Path) -> None:
    """Everything that is said says where; what can be asked has an answer, and can be written as UTF-8."""
    if isinstance(found, str):
        assert str(folder) in found
        return
    assert found.items
    assert all(bad.where and bad.reason for bad in found.bad)
    for item in found.items:
        plain = [item.id, item.question, item.options, item.answers, item.boxes, item.group, item.part, dict(item.info)]
        json.dumps(plain, ensure_ascii=False).encode("utf-8")
        assert item.answers or item.boxes or item.answer is not None


@pytest.mark.parametrize("most", [100, pytest.param(10**6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_any_value_may_be_anything(name: str, most: int, folder: Path):
    """most: breakages of each file that are tried, drawn at random; all of them in the slow test."""
    files = FORMATS[name][1]
    write(folder, files)
    sound = asked(folder, name)
    assert isinstance(sound, Items)
    assert sound.bad == []
    noticed = 0
    for file, value in files.items():
        broken = [changed(value, path, junk) for path in places(value) for junk in JUNK]
        broken += [without(value, path) for path in places(value) if path]
        for one in random.Random(file).sample(broken, min(most, len(broken))):
            write(folder, {**files, file: one})
            found = asked(folder, name)
            check(found, folder)
            noticed += isinstance(found, str) or len(found.bad) > 0
    assert noticed > 20


@pytest.mark.parametrize("name", FORMATS)
def test_any_byte_may_be_missing(name: str, folder: Path):
    files = FORMATS[name][1]
    write(folder, files)
    first = folder / next(iter(files))
    content = first.read_bytes()
    for end in range(0, len(content), max(1, len(content) // 20)):
        for damaged in (content[:end], content[:end] + b"\xff" + content[end + 1 :], content[end:]):
            first.write_bytes(damaged)
            check(asked(folder, name), folder)
