"""Folders of classes and Raven's matrices, and scores worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from task_files import json_file, pictures, scores

from sensorium.errors import UserError
from sensorium.evaluate.item import PLACE
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.tasks.folders import ImageFolder
from sensorium.evaluate.tasks.raven import Panel, Raven
from sensorium.infer.likelihoods import Likelihoods
from sensorium.sequence import Media, MediaError

FOLDERS = {"n01440764": 2, "n02012849": 2, "n03126707": 1}
LINES = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn99999999 nothing here\n"


def classes(folder: Path) -> None:
    for name, count in FOLDERS.items():
        pictures(folder / name, *(f"ILSVRC2012_val_0000000{number}.JPEG" for number in range(count)))


def test_image_net_style_folders(tmp_path: Path):
    classes(tmp_path / "val")
    (tmp_path / "LOC_synset_mapping.txt").write_text(LINES)
    source = ImageFolder(path=str(tmp_path / "val"), names=str(tmp_path / "LOC_synset_mapping.txt"))
    items = source.load()
    assert items.bad == []
    options = ("tench", "crane (n02012849)", "crane (n03126707)")
    assert [(item.id.split("/")[0], item.answer, item.part) for item in items.items] == [
        ("n01440764", 0, options[0]), ("n02012849", 1, options[1]), ("n03126707", 2, options[2]),
        ("n01440764", 0, options[0]), ("n02012849", 1, options[1]),
    ]  # fmt: skip
    assert {item.options for item in items.items} == {options}
    assert items.items[0].answers == ("tench", "Tinca tinca")
    # by what is said: "Tench" and "tinca tinca." are names of the first, "crane" of both others, "bird" of none: 4 / 5
    assert scores(source, ["Tench", "crane", "crane", "tinca tinca.", "bird"], "exact") == {"exact match": 0.8}
    # by likelihood, the sums of log-probabilities of the three options: the largest is the first, second, first,
    # third, second; right are 0 1 2 0 1: 3 / 5
    metric = metric_of(source.metric_for(items.items))
    sums = [(-1.0, -2.0, -3.0), (-5.0, -2.0, -3.0), (-1.0, -2.0, -3.0), (-9.0, -8.0, -7.0), (-9.0, -1.0, -7.0)]
    parsed = [metric.parse(Likelihoods(one, (2, 2, 2)), item) for one, item in zip(sums, items.items)]
    assert metric.scores(metric.statistics(items.items, parsed).sum(0)) == pytest.approx([0.6])


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ({"n01440764": "fish", "n02012849": ["crane", "bird"], "n03126707": ["crane", "machine"]},
         ("fish", "crane, bird", "crane, machine")),
        ({"0": ["n01440764", "tench"], "1": ["n02012849", "a_crane"], "2": ["n03126707", "Crane"]},
         ("tench", "a crane", "Crane")),
    ],
)  # fmt: skip
def test_names_in_json(value, options, tmp_path: Path):
    classes(tmp_path / "val")
    names = json_file(tmp_path / "names.json", value)
    assert ImageFolder(path=str(tmp_path / "val"), names=str(names)).load().items[0].options == options
    assert ImageFolder(path=str(tmp_path / "val")).load().items[0].options == tuple(FOLDERS)


def test_what_of_folders_cannot_be_asked_is_counted(tmp_path: Path):
    classes(tmp_path / "val")
    (tmp_path / "val" / "n01440764" / "empty.png").write_bytes(b"")
    (tmp_path / "val" / "n01440764" / "notes.txt").write_text("no picture")
    (tmp_path / "val" / "n99999999").mkdir()
    pictures(tmp_path / "val" / "n77777777", "a.png")
    (tmp_path / "names.txt").write_text(LINES)
    items = ImageFolder(path=str(tmp_path / "val"), names=str(tmp_path / "names.txt")).load()
    assert len(items.items) == 5
    assert [(Path(bad.where).name, bad.reason) for bad in items.bad] == [
        ("n77777777", f"a class that {tmp_path}/names.txt does not name"),
        ("empty.png", f"there is no picture {tmp_path}/val/n01440764/empty.png, or it is empty"),
        ("n99999999", "a class without a picture"),
    ]
    for content, words in (("[1]", "expected one object of names by folder"), ('{"a": [1, 2]}', "a name of a must be"),
                           ('{"a": []}', "a has no name"), ('{"0": ["n1", 5]}', "does not name classes")):  # fmt: skip
        (tmp_path / "names.json").write_text(content)
        with pytest.raises(UserError, match=words):
            ImageFolder(path=str(tmp_path / "val"), names=str(tmp_path / "names.json")).load()
    with pytest.raises(UserError, match="has 0 classes, expected two at least"):
        ImageFolder(path=str(tmp_path / "val" / "n01440764")).load()
    with pytest.raises(UserError, match="is no folder"):
        ImageFolder(path=str(tmp_path / "none")).load()


def matrix(path: Path, right: int, **more) -> Path:
    """A problem as RAVEN has it: panel n is of grey n, and the structure is an array that only a pickle can hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.stack([np.full((160, 160), number, np.uint8) for number in range(16)])
    arrays = {"image": image, "target": np.int64(right), "predict": np.int64(0), "structure": np.array([{"a": 1}, 2])}
    np.savez_compressed(path, **{**arrays, **more})
    return path


def test_raven(tmp_path: Path):
    for n, target in ((0, 3), (10, 0), (9, 7)):
        matrix(tmp_path / "center_single" / f"RAVEN_{n}_test.npz", target)
    for n in (1, 2):
        matrix(tmp_path / "distribute_four" / f"RAVEN_{n}_test.npz", 1)
    matrix(tmp_path / "distribute_four" / "RAVEN_3_train.npz", 1)
    source = Raven(path=str(tmp_path))
    items = source.load()
    assert items.bad == []
    assert [(item.id, item.part, item.answer) for item in items.items] == [
        ("center_single/RAVEN_0_test", "center_single", 3), ("center_single/RAVEN_9_test", "center_single", 7),
        ("center_single/RAVEN_10_test", "center_single", 0), ("distribute_four/RAVEN_1_test", "distribute_four", 1),
        ("distribute_four/RAVEN_2_test", "distribute_four", 1),
    ]  # fmt: skip
    first = items.items[0]
    assert (len(first.media), first.question.count(PLACE), first.options) == (16, 8, (PLACE,) * 8)
    panel = first.media[11].data
    assert isinstance(panel, Media)
    assert panel.shape() == (160, 160)
    assert panel.load().getpixel((80, 80)) == (11, 11, 11)
    assert len({segment.data.key() for segment in first.media}) == 16
    # D right, "(H)" right, B for A, B right, "the last" names none: 3 / 5
    assert scores(source, ["D", "(H)", "B", "The answer is B.", "the last"]) == {"accuracy": 0.6}
    assert len(Raven(path=str(tmp_path / "distribute_four")).load().items) == 2


def test_what_of_raven_cannot_be_asked_is_counted(tmp_path: Path):
    folder = tmp_path / "center_single"
    matrix(folder / "RAVEN_0_test.npz", 3)
    matrix(folder / "RAVEN_1_test.npz", 8)
    matrix(folder / "RAVEN_2_test.npz", 1, image=np.zeros((16, 160), np.uint8))
    matrix(folder / "RAVEN_3_test.npz", 1, image=np.zeros((16, 160, 160)))
    matrix(folder / "RAVEN_4_test.npz", 1, target=np.array([1, 2]))
    (folder / "RAVEN_5_test.npz").write_bytes(b"PK no archive")
    np.savez(folder / "RAVEN_6_test.npz", image=np.zeros((16, 4, 4), np.uint8))
    matrix(folder / "RAVEN_7_test.npz", 1, target=np.array({"a": 1}))
    items = Raven(path=str(tmp_path)).load()
    assert [item.id for item in items.items] == ["center_single/RAVEN_0_test"]
    assert [bad.reason.split(": ")[0] for bad in items.bad] == [
        "target is 8, there are 8 candidates",
        "image must be (16, height, width) uint8, found (16, 160) uint8",
        "image must be (16, height, width) uint8, found (16, 160, 160) float64",
        "target must be a number, found [1, 2]",
        "is no matrix with image and target",
        "is no matrix with image and target",
        "is no matrix with image and target",
    ]
    with pytest.raises(UserError, match="no question can be asked of"):
        Raven(path=str(tmp_path), split="val").load()
    with pytest.raises(UserError, match="the question of a matrix has 8 places"):
        Raven(path=str(tmp_path), question="Which?").load()
    with pytest.raises(MediaError, match="panel 0 cannot be read"):
        Panel(str(folder / "RAVEN_5_test.npz"), 0, 160, 160).load()
