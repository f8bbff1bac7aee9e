"""Captions in every layout they are published in, and a score worked out by hand."""

import math
from pathlib import Path

import pytest
from task_files import json_file, pictures, scores

from sensorium.errors import UserError
from sensorium.evaluate.tasks.captions import CaptionTask

NAMES = [f"COCO_val2014_{n:012d}.jpg" for n in range(1, 6)]
CAPTIONS = ["a red dog", "a green cat", "the blue cow", "one old pig", "two wet birds"]


def coco(folder: Path) -> dict:
    images = [
        {"license": 5, "url": "", "file_name": name, "height": 4, "width": 6, "date_captured": "", "id": n}
        for n, name in enumerate(NAMES, 1)
    ]
    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": f"{words}{' ' * k}"}
        for k in (0, 1)
        for n, words in enumerate(CAPTIONS, 1)
    ]
    pictures(folder / "val2014", *NAMES)
    return {"info": {}, "images": images, "licenses": [], "annotations": annotations}


def test_coco(tmp_path: Path):
    json_file(tmp_path / "captions_val2014.json", coco(tmp_path))
    source = CaptionTask(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.group) for item in items.items] == [(str(n), str(n)) for n in range(1, 6)]
    assert items.items[0].answers == ("a red dog", "a red dog ")
    assert items.items[0].question == "Provide a one-sentence caption for the provided image."


def test_cider_by_hand(tmp_path: Path):
    """Two references are the same caption, of three words that no other picture's captions hold but "a"."""
    json_file(tmp_path / "captions_val2014.json", coco(tmp_path))
    # CIDEr-D, for n-grams of n = 1 .. 4: the cosine of tf-idf vectors, times exp(-(difference in length)^2 / 72),
    # times 10, mean over n and references. idf of a word is log(5 / pictures that have it).
    #   1, 3, 4, 5 said "nothing here": no n-gram in common: 0.
    #   2 said as its reference, "a green cat": cosine 1 for n = 1, 2, 3; there is no 4-gram: 0. 10 x 3/4 = 7.5.
    # 7.5 / 5 = 1.5
    said = ["nothing here", "a green cat", "nothing here", "nothing here", "nothing here"]
    assert scores(CaptionTask(path=str(tmp_path)), said)["CIDEr-D"] == pytest.approx(1.5)
    #   2 said "green cat": n = 1: without "a", whose idf is log(5/2), the others' log 5:
    #   cosine = 2 L^2 / (sqrt(2 L^2) sqrt(2 L^2 + A^2)) with L = log 5, A = log 2.5;
    #   n = 2: one of two bigrams, each of idf log 5: cosine 1/sqrt(2); n = 3, 4: 0.
    #   The reference is one longer: times exp(-1/72).
    log5, log25 = math.log(5), math.log(2.5)
    one = 2 * log5**2 / (math.sqrt(2 * log5**2) * math.sqrt(2 * log5**2 + log25**2))
    expected = 10 * (one + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72) / 5
    said[1] = "green cat"
    assert scores(CaptionTask(path=str(tmp_path)), said)["CIDEr-D"] == pytest.approx(expected)


def test_what_of_coco_cannot_be_asked_is_counted(tmp_path: Path):
    value = coco(tmp_path)
    value["images"][1]["id"] = 1  # the id of the first
    value["images"][2]["file_name"] = NAMES[0]  # the picture of the first
    value["images"][3]["file_name"] = "gone.jpg"
    value["images"].append({"id": 6, "file_name": NAMES[1]})  # a picture that nobody described
    value["annotations"] += [{"image_id": 99, "caption": "a lost one"}, {"image_id": 1, "caption": ""}]
    value["annotations"].append({"image_id": 1, "caption": None})
    path = json_file(tmp_path / "captions.json", value)
    items = CaptionTask(path=str(path)).load()
    assert [item.id for item in items.items] == ["1", "5"]
    assert [one.reason for one in items.bad[:6]] == [
        "caption must be text that is not empty, found ''",
        "caption must be text that is not empty, found nothing",
        "the image id 1 is given twice",
        f"the picture {tmp_path}/val2014/{NAMES[0]} is named twice",
        f"there is no picture gone.jpg in {tmp_path}/val2014",
        f"the picture {NAMES[1]} has no caption",
    ]
    assert sorted(one.reason for one in items.bad[6:]) == [
        "1 captions of no image of the file",  # of 99
        "2 captions of no image of the file",  # of 2, whose image has the id 1
    ]


def test_no_caps_has_domains_for_parts(tmp_path: Path):
    domains = ["in-domain", "near-domain", "out-domain", "near-domain", "in-domain"]
    keys = [f"0013ea208702090{n}" for n in range(5)]
    images = [
        {
            "id": n, "open_images_id": keys[n], "height": 4, "width": 6, "coco_url": "", "date_captured": "",
            "license": 0, "file_name": f"{keys[n]}.jpg", "domain": domains[n],
        }
        for n in range(5)
    ]  # fmt: skip
    del images[4]["file_name"]  # older files have the key of Open Images alone
    annotations = [{"image_id": n, "id": n, "caption": words} for n, words in enumerate(CAPTIONS)]
    info = {"licenses": [], "info": {"version": "0.1"}}
    json_file(tmp_path / "nocaps_val_4500_captions.json", {**info, "images": images, "annotations": annotations})
    pictures(tmp_path / "images", *(f"{key}.jpg" for key in keys))
    items = CaptionTask(path=str(tmp_path)).load()
    assert items.bad == []
    assert [item.part for item in items.items] == domains
    assert [item.answers for item in items.items] == [(words,) for words in CAPTIONS]


def test_karpathy_splits(tmp_path: Path):
    images = [
        {
            "filepath": "val2014", "sentids": [2 * n, 2 * n + 1], "filename": name, "imgid": n, "cocoid": n + 1,
            "split": "val" if n == 4 else "test",
            "sentences": [
                {"tokens": CAPTIONS[n].split(), "raw": CAPTIONS[n].capitalize() + ".", "imgid": n, "sentid": 2 * n + k}
                for k in (0, 1)
            ],
        }
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    path = json_file(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    pictures(tmp_path / "val2014", *NAMES)
    items = CaptionTask(path=str(path), pictures=str(tmp_path), split="test").load()
    assert items.bad == []
    assert [(item.id, item.part) for item in items.items] == [(str(n), "test") for n in range(4)]
    assert items.items[0].answers == ("A red dog.", "A red dog.")
    assert len(CaptionTask(path=str(path)).load().items) == 5
    images[0]["sentences"] = ["a red dog"]
    images[1]["filename"] = 3
    images[2]["sentences"][0]["raw"] = ""
    json_file(path, {"images": images, "dataset": "coco"})
    assert [one.reason for one in CaptionTask(path=str(path)).load().bad] == [
        "a sentence must be an object with raw, found 'a red dog'",
        "filename must be text that is not empty, found 3",
        "raw must be text that is not empty, found ''",
    ]


def test_the_list_that_blip_reads(tmp_path: Path):
    rows = [{"image": f"val2014/{name}", "caption": [words, words]} for name, words in zip(NAMES, CAPTIONS)]
    rows[4]["caption"] = "two wet birds"
    path = json_file(tmp_path / "coco_karpathy_test.json", rows)
    pictures(tmp_path / "val2014", *NAMES)
    items = CaptionTask(path=str(path), pictures=str(tmp_path)).load()
    assert items.bad == []
    assert items.items[4].answers == ("two wet birds",)
    assert items.items[0].id == f"val2014/{NAMES[0]}"
    json_file(path, [*rows, rows[0], {"image": "a.jpg"}, {"image": "a.jpg", "caption": []}, 5])
    assert [one.reason for one in CaptionTask(path=str(path), pictures=str(tmp_path)).load().bad] == [
        f"the picture {tmp_path}/val2014/{NAMES[0]} is named twice",
        "no key 'caption': known: image",
        "caption must be a list that is not empty, found []",
        "expected an object {...}, the row is 5",
    ]


def test_flickr_lines(tmp_path: Path):
    lines = [f"100009279{n}.jpg#{k}\t{words} ." for n, words in enumerate(CAPTIONS) for k in range(2)]
    path = tmp_path / "results_20130124.token"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    pictures(tmp_path / "flickr30k-images", *(f"100009279{n}.jpg" for n in range(5)))
    items = CaptionTask(path=str(tmp_path)).load()
    assert items.bad == []
    assert [item.id for item in items.items] == [f"100009279{n}.jpg" for n in range(5)]
    assert items.items[2].answers == ("the blue cow .", "the blue cow .")
    (tmp_path / "test.txt").write_text("1000092791\n1000092793.jpg\n")
    chosen = CaptionTask(path=str(path), only=str(tmp_path / "test.txt")).load()
    assert [item.id for item in chosen.items] == ["1000092791.jpg", "1000092793.jpg"]
    bad = [*lines, lines[0], "no tab here", "gone.jpg#0\ta ghost", "1000092790.jpg#7\t \xe9"]
    path.write_bytes("\n".join(bad).encode("latin-1"))
    assert [(one.where.rpartition(" ")[2], one.reason) for one in CaptionTask(path=str(path)).load().bad] == [
        ("11", "caption 0 of the picture 1000092790.jpg is given twice"),
        ("12", "expected picture.jpg#0<tab>caption, found 'no tab here'"),
        ("14", "the caption: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("13", f"there is no picture gone.jpg in {tmp_path}/flickr30k-images"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", r"no line is of the form picture.jpg#0<tab>caption"),
        ("[]", "no question can be asked of"),
        ('{"questions": []}', "expected an array 'annotations'"),
        ('{"images": 3, "annotations": []}', "no question can be asked of"),
        ("", "no line is of the form"),
    ],
)
def test_a_file_of_another_format_is_one_error(text, words, tmp_path: Path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=words):
        CaptionTask(path=str(tmp_path / "file")).load()
