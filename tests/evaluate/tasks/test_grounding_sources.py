"""Referring expressions read from JSON and pickles, and scores worked out by hand."""

import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_files import json_file, pictures, reasons, scores

from sensorium.errors import UserError
from sensorium.evaluate.tasks.grounding import RefCOCO
from sensorium.evaluate.tasks.pickles import plain_pickle

# x, y, width, height in a picture of 100 x 50
BOXES = [[10, 10, 40, 20], [0, 0, 50, 50], [50, 25, 50.4, 25.4], [20, 10, 20, 20], [60, 0, 20, 50]]
WORDS = ["left dog", "the big one", "low right", "tiny", "tall man"]


def instances(folder: Path) -> dict:
    pictures(folder / "train2014", "COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg", size=(100, 50))
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 100, "height": 50, "license": 1} for n in (1, 2)
    ]
    annotations = [
        {
            "id": 900 + n,
            "image_id": 1 + n // 3,
            "bbox": box,
            "category_id": 18,
            "area": 1.0,
            "iscrowd": 0,
            "segmentation": [],
        }
        for n, box in enumerate(BOXES)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}


def refs() -> list[dict]:
    return [
        {
            "ref_id": n, "ann_id": 900 + n, "image_id": 1 + n // 3, "split": "val" if n < 4 else "testA",
            "file_name": f"COCO_train2014_{1 + n // 3:012d}_{n}.jpg", "sent_ids": [n],
            "sentences": [{"tokens": words.split(), "raw": words, "sent_id": n, "sent": words}],
        }
        for n, words in enumerate(WORDS)
    ]  # fmt: skip


# What is said of the five boxes, in LLaVA's decimals, and the overlap by hand (fractions of width and height):
#   1  right: (0.1, 0.2, 0.5, 0.6); said the same                                                      IoU 1
#   2  right: (0, 0, 0.5, 1), area 0.5; said the left half of it (0, 0, 0.25, 1), area 0.25            IoU 0.5: right
#   3  right: (0.5, 0.5, 1, 1), the excess of 0.4 pixels cut; said (0, 0, 0.5, 0.5)                    IoU 0
#   4  right: (0.2, 0.2, 0.4, 0.6), area 0.08; said (0.3, 0.2, 0.5, 0.6): 0.04 / (0.08 + 0.08 - 0.04)  IoU 1/3
#   5  nothing that is a box                                                                           IoU 0
SAID = [
    "[0.10, 0.20, 0.50, 0.60]",
    "[0.00, 0.00, 0.25, 1.00]",
    "[0.00, 0.00, 0.50, 0.50]",
    "[0.30, 0.20, 0.50, 0.60]",
    "here",
]
EXPECTED = {"Acc@0.5": 2 / 5, "mean IoU": (1 + 0.5 + 0 + 1 / 3 + 0) / 5}


@pytest.mark.parametrize("apart", [False, True])
def test_refs_with_instances(apart, tmp_path: Path):
    value = instances(tmp_path)
    if apart:
        json_file(tmp_path / "refs(unc).json", refs())
    json_file(tmp_path / "instances.json", value if apart else {**value, "refs": refs()})
    source = RefCOCO(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.group, item.part) for item in items.items] == [
        ("0/0", "1", "val"), ("1/1", "1", "val"), ("2/2", "1", "val"), ("3/3", "2", "val"), ("4/4", "2", "testA"),
    ]  # fmt: skip
    first = items.items[0]
    assert (
        first.question == "Please provide the bounding box coordinate of the region this sentence describes: left dog"
    )
    assert first.boxes == ((0.1, 0.2, 0.5, 0.6),)
    assert items.items[2].boxes == ((0.5, 0.5, 1.0, 1.0),)
    assert scores(source, SAID) == pytest.approx(EXPECTED)
    assert [item.id for item in source.replace(split="testA").load().items] == ["4/4"]
    with pytest.raises(UserError, match="has no split 'test': did you mean 'testA'"):
        source.replace(split="test").load()


def captioned(folder: Path) -> dict:
    value = instances(folder)
    images = [
        {
            "file_name": f"COCO_train2014_{1 + n // 3:012d}.jpg", "height": 50, "width": 100, "id": n,
            "original_id": 1 + n // 3, "caption": words, "dataset_name": "refcoco", "tokens_negative": [[0, 3]],
            "sentence_id": n,
        }
        for n, words in enumerate(WORDS)
    ]  # fmt: skip
    boxes = [
        {"area": 1.0, "iscrowd": 0, "image_id": n, "category_id": 18, "id": n, "bbox": box, "original_id": 900 + n}
        for n, box in enumerate(BOXES)
    ]
    return {**value, "images": images, "annotations": boxes}


def test_the_layout_of_mdetr(tmp_path: Path):
    json_file(tmp_path / "finetune_refcoco_val.json", captioned(tmp_path))
    source = RefCOCO(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.group, item.part) for item in items.items] == [
        (str(n), str(1 + n // 3), "refcoco") for n in range(5)
    ]
    assert items.items[3].info == {"expression": "tiny", "width": 100, "height": 50}
    assert scores(source, SAID) == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, 40], "a box has four numbers, found [10, 10, 40]"),
        ([10, 10, -4, 20], "the box [10, 10, -4, 20] has no area"),
        ([10, 10, 0, 20], "the box [10, 10, 0, 20] has no area"),
        ([90, 10, 20, 20], "the box [90, 10, 20, 20] leaves its picture of 100 x 50 pixels"),
        ([-9, 10, 20, 20], "the box [-9, 10, 20, 20] leaves its picture of 100 x 50 pixels"),
        ([10, 10, float("nan"), 20], "a box has four numbers, found [10, 10, nan, 20]"),
        (["10", 10, 5, 20], "a box has four numbers, found ['10', 10, 5, 20]"),
        ([100.5, 10, 0.4, 20], "the box [100.5, 10, 0.4, 20] has no area"),
        (None, "a box has four numbers, found nothing"),
    ],
)
def test_a_malformed_box_is_counted(box, reason, tmp_path: Path):
    for value in ({**instances(tmp_path), "refs": refs()}, captioned(tmp_path)):
        value["annotations"][1]["bbox"] = box
        items = RefCOCO(path=str(json_file(tmp_path / "file.json", value))).load()
        assert len(items.items) == 4
        assert [one.reason.startswith(reason) for one in items.bad] == [True]


def test_what_else_cannot_be_asked_is_counted(tmp_path: Path):
    value, asked = instances(tmp_path), refs()
    value["annotations"].append(value["annotations"][0])
    value["images"][1]["file_name"] = "gone.jpg"
    asked[1]["sentences"] = ["the big one"]
    asked[2]["ann_id"] = 5
    asked.append({**refs()[2], "sentences": [{"sent_id": 2, "sent": ""}]})
    asked.append({**refs()[1], "sentences": [refs()[1]["sentences"][0]]})
    path = json_file(tmp_path / "instances.json", {**value, "refs": asked})
    items = RefCOCO(path=str(path)).load()
    assert [item.id for item in items.items] == ["1/1"]
    assert [reason.split(": ", 1)[1] for reason in reasons(items)] == [
        "annotations: id 900 is given twice",
        "a sentence must be an object with sent and sent_id, found 'the big one'",
        f"ref 2 is of image 1 and annotation 5, which {path} does not both have",
        f"there is no picture {tmp_path}/train2014/gone.jpg, or it is empty",
        f"there is no picture {tmp_path}/train2014/gone.jpg, or it is empty",
        "sent must be text that is not empty, found ''",
    ]
    two = captioned(tmp_path)
    del two["annotations"][0]
    two["annotations"].append({"image_id": 55, "bbox": [0, 0, 1, 1]})
    two["images"][1]["height"] = 0
    items = RefCOCO(path=str(json_file(tmp_path / "m.json", two))).load()
    assert [reason.split(": ", 1)[1] for reason in reasons(items)] == [
        "image 0 has no annotation with its box",
        "the picture's height must be a positive number, found 0",
        "an annotation of no image of the file",
    ]


@pytest.mark.parametrize("protocol", [0, 2, 5])  # refer's are of Python 2: 0 and 2
def test_refs_are_published_as_a_pickle(protocol, tmp_path: Path):
    pickled = tmp_path / "refs(unc).p"
    pickled.write_bytes(pickle.dumps(refs(), protocol))
    json_file(tmp_path / "instances.json", instances(tmp_path))
    expected = [item.id for item in RefCOCO(path=str(tmp_path)).load().items]
    assert expected == ["0/0", "1/1", "2/2", "3/3", "4/4"]
    for path, more in ((pickled, {}), (tmp_path / "instances.json", {"refs": str(pickled)})):
        source = RefCOCO(path=str(path), **more)
        items = source.load()
        assert not items.bad
        assert [item.id for item in items.items] == expected
        assert scores(source, SAID) == pytest.approx(EXPECTED)
    if protocol >= 2:  # older ones begin with a mark or a letter
        pickled.rename(tmp_path / "hidden.json")
        items = RefCOCO(path=str(tmp_path / "instances.json"), refs=str(tmp_path / "hidden.json")).load().items
        assert len(items) == 5


def test_text_of_python_2_is_read(tmp_path: Path):
    # {"sent": "caf\xc3\xa9", "ref_id": 3L} as Python 2 writes it: bytes as SHORT_BINSTRING, a long
    data = b"\x80\x02}q\x00(U\x04sentq\x01U\x05caf\xc3\xa9q\x02U\x06ref_idq\x03\x8a\x01\x03u."
    (tmp_path / "refs.p").write_bytes(data)
    assert plain_pickle(str(tmp_path / "refs.p")) == {"sent": "caf\u00e9", "ref_id": 3}


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


def test_a_pickle_runs_nothing(tmp_path: Path):
    harmful = Harmful()
    harmful.mark = str(tmp_path / "harmed")
    json_file(tmp_path / "instances.json", instances(tmp_path))
    path = tmp_path / "refs(unc).p"
    bad = {
        pickle.dumps(
            [*refs(), harmful]
        ): "it says STACK_GLOBAL at byte [0-9]+, and only lists, dicts, text and numbers",
        b"cos\nsystem\n(S'touch harmed'\ntR.": "it says GLOBAL os system at byte 0",
        pickle.dumps({"picture": b"bytes"}): "it says SHORT_BINBYTES at byte",
        b"\x80\x02\x82\x01.": "it says EXT1 at byte 2",
        b"\x80\x02U\x01\xff.": "codec can't decode",
        b"\x80\x02K\x01Q.": "it says BINPERSID at byte 4",
        b"\x80\x02h\x01.": "cannot be read as a pickle: 1",
        b"\x80\x02]K\x01e.": "it ends a list that it never began",
        b"\x80\x02}(K\x01u.": "a key has no value",
        b"\x80\x02K\x01K\x02a.": "has no attribute 'extend'",
        b"\x80\x02K\x01K\x02.": "too many values",
        pickle.dumps(refs())[:-9]: "cannot be read as a pickle",
        b"": "exhausted before",
        pickle.dumps({"refs": refs()}): "expected a list of refs, found dict",
    }
    for data, reason in bad.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"refs\(unc\)\.p.*{reason}"):
            RefCOCO(path=str(tmp_path)).load()
    assert not (tmp_path / "harmed").exists()


def test_of_several_files_of_refs_one_is_asked_for(tmp_path: Path):
    json_file(tmp_path / "instances.json", instances(tmp_path))
    for name in ("refs(unc).p", "refs(google).p"):
        (tmp_path / name).write_bytes(pickle.dumps(refs()))
    with pytest.raises(UserError, match=r"several files of refs \(refs\(google\)\.p, refs\(unc\)\.p\): give one"):
        RefCOCO(path=str(tmp_path)).load()
    assert len(RefCOCO(path=str(tmp_path / "refs(google).p")).load().items) == 5


def test_a_file_of_another_format_is_one_error(tmp_path: Path):
    path = json_file(tmp_path / "file.json", {"questions": []})
    with pytest.raises(UserError, match=r"has no images and annotations; expected instances\.json with refs\(unc\)\.p"):
        RefCOCO(path=str(path)).load()
    path = json_file(tmp_path / "file.json", instances(tmp_path))
    with pytest.raises(UserError, match=r"has no refs, and there is no refs\*\.json or refs\*\.p beside it"):
        RefCOCO(path=str(path)).load()
    with pytest.raises(ValueError, match=r"expected \{expression\} in it"):
        RefCOCO(path=str(path), question="Where?")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
), st.integers(0, 5))  # fmt: skip
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_plain_values_come_back(tmp_path: Path, value, protocol):
    path = tmp_path / "value.p"
    path.write_bytes(pickle.dumps([value, value], protocol))  # said twice: the second is what was put aside
    assert plain_pickle(str(path)) == [value, value]
