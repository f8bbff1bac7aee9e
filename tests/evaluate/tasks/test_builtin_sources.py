"""Tasks that need no files."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image
from task_files import scores

from sensorium.data.questions import choice_items, scene_items
from sensorium.data.stamps import in_split
from sensorium.errors import UserError
from sensorium.evaluate.item import TaskSource
from sensorium.evaluate.metrics import metric_of
from sensorium.evaluate.tasks.builtin import Emoji, Scenes, Stamps
from sensorium.infer.likelihoods import Likelihoods


def blind(source: TaskSource, prefer: int = 0) -> float:
    """What likelihoods score that always prefer the option of one place."""
    items = source.load().items
    metric = metric_of(source.metric_for(items))
    said = [
        Likelihoods(tuple(float(number == prefer) for number in range(len(item.options))), (1,) * len(item.options))
        for item in items
    ]
    parsed = [metric.parse(one, item) for one, item in zip(said, items)]
    return float(metric.scores(metric.statistics(items, parsed).sum(0))[0])


def test_emoji_are_those_of_the_choice_task():
    source = Emoji(n=8)
    items = source.load()
    assert items.bad == []
    expected = choice_items("val_concept", 8)
    assert [(item.id, item.options, item.answer) for item in items.items] == [
        (one.id, tuple(one.info["options"]), one.info["answer"]) for one in expected
    ]
    assert items.items[0].question == "What is this?"
    assert [count for _, count in Counter(item.group for item in items.items).items()] == [4, 4]
    # each option of a group is right once, so that whatever is preferred is right in one of four
    assert blind(source) == blind(source, 2) == 0.25
    # what the items say is right, in words: 8 / 8
    assert scores(source, [item.options[item.answer] for item in items.items], "choice") == {"accuracy": 1.0}
    assert Emoji(n=4, language="fr", split="val_artist").load().items[0].question.startswith("Qu")


@pytest.mark.parametrize(("family", "size"), [("count", 5), ("position", 4)])
def test_closed_scenes_are_those_of_the_choice_task(family, size):
    source = Scenes(family=family, n=2 * size)
    items = source.load().items
    assert [item.answer for item in items] == [one.info["answer"] for one in scene_items(family, "val_scene", 2 * size)]
    assert set(Counter(item.group for item in items).values()) == {size}
    assert blind(source) == pytest.approx(1 / size)
    assert items[0].media[0].data.shape() == (224, 224)


def test_open_scenes():
    source = Scenes(family="yes_no", n=24)
    items = source.load().items
    right = [item.answers[0] for item in items]
    assert set(right) == {"yes", "no"}
    found = scores(source, right)
    assert (found["accuracy"], found["F1"], found["yes rate"]) == (1.0, 1.0, right.count("yes") / 24)
    source = Scenes(family="box", n=4)
    items = source.load().items
    said = ["[" + ", ".join(f"{edge:.3f}" for edge in item.boxes[0]) + "]" for item in items]
    said[3] = "nowhere"
    # three right ones (three digits of 224 pixels: IoU above 0.9), one missing: 3 / 4
    assert scores(source, said)["Acc@0.5"] == 0.75


def stamps(root: Path, count: int = 40) -> None:
    for number in range(count):
        path = root / "animals" / ("birds" if number % 2 else "fish") / f"one{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
        # two fish share a caption: they must not be options of one question
        words = "A twin." if number in (0, 2) else f"Thing {number}."
        path.with_suffix(".txt").write_text(f"{words}\nfr.utf8=Chose {number}.\n")


def test_stamps(tmp_path: Path):
    stamps(tmp_path)
    source = Stamps(root=str(tmp_path), split="train")
    items = source.load()
    assert items.bad == []
    asked = [item.id.rpartition("/")[0] for item in items.items]
    assert len(asked) == len(set(asked)) >= 24
    assert all(in_split(key, "train") for key in asked)
    groups = defaultdict(set)
    for item in items.items:
        assert len(set(item.options)) == 4
        groups[item.group].add((item.options, item.answer))
    assert all(len({options for options, _ in one}) == 1 and len(one) == 4 for one in groups.values())
    assert blind(source, 3) == 0.25
    assert [(item.id, item.options) for item in source.load().items] == [(one.id, one.options) for one in items.items]
    assert len(source.replace(n=4).load().items) == 4
    assert source.replace(language="fr").load().items[0].options[0].startswith("Chose")
    (tmp_path / f"{asked[0]}.png").write_bytes(b"")
    assert [bad.reason for bad in source.load().bad] == [
        f"there is no picture {tmp_path}/{asked[0]}.png, or it is empty"
    ]
    with pytest.raises(UserError, match="no four stamps of split 'train' in 'xx' are of one category"):
        source.replace(language="xx").load()
    with pytest.raises(UserError, match="no such folder; expected the stamps set"):
        Stamps(root=str(tmp_path / "none")).load()
