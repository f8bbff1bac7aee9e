"""Sources by name."""

from pathlib import Path

import pytest

from sensorium.config import from_json
from sensorium.errors import UserError
from sensorium.evaluate.item import TaskSource
from sensorium.evaluate.metrics import METRICS
from sensorium.evaluate.tasks.catalog import ALSO, PLACES, SOURCES, source_class, source_of


def test_every_source_knows_its_benchmark():
    for made in SOURCES.values():
        assert made.title
        assert made.metric in METRICS
        assert made.__doc__
        assert made.load is not TaskSource.load
    assert len(set(SOURCES.values())) == len(SOURCES) == 22
    assert set(ALSO.values()) <= SOURCES.keys()
    fields = {name for made in SOURCES.values() for name in made.model_fields}
    assert set(PLACES) <= fields


def test_a_source_by_name(tmp_path: Path):
    source = source_of("POPE", str(tmp_path))
    assert type(source) is SOURCES["pope"]
    assert from_json(source.to_json(), TaskSource) == source
    assert source_class("OK-VQA") is SOURCES["okvqa"]
    assert source_class("seed_bench") is SOURCES["seedbench"]
    assert source_class("RefCOCO+") is SOURCES["refcoco"]
    assert source_of("mmbench", "a.tsv", circular=True).circular is True
    assert source_of("scenes", family="box").family == "box"
    assert source_of("stamps", str(tmp_path)).root == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "place", "settings", "words"),
    [
        ("pop", "a", {}, "no task is called 'pop': did you mean 'pope'"),
        ("pope", None, {}, r"the task pope needs its file or folder: coco_pope_random\.json"),
        ("emoji", "a", {}, "the task emoji is built in: it reads nothing, a was given"),
        ("gqa", "a", {"picture": "b"}, "the task gqa has no setting 'picture': did you mean 'pictures'"),
        ("scenes", None, {"family": "colour"}, "the task scenes: family: "),
        ("gqa", "", {}, "the task gqa: path: "),
    ],
)
def test_what_no_source_is(name, place, settings, words):
    with pytest.raises(UserError, match=words):
        source_of(name, place, **settings)
