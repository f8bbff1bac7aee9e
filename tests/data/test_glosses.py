"""Definitions of words: WordNet's format, splits by definition, documents with pictures among the text."""

import pytest

from sensorium.config import from_json
from sensorium.data.emoji import HELD_OUT, fraction_of
from sensorium.data.glosses import FILES, PACKAGE, Gloss, Glosses, PicturedGlosses, glosses, install
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
NOUNS = """\
00001740 05 n 03 octopus 0 devilfish 1 sea_animal 2 001 @ 00001741 n 0000 | bottom-living cephalopod with eight arms
00001741 05 n 01 dog 0 001 @ 00001740 n 0000 | a domesticated animal; "the dog barked all night"
00001742 05 n 01 cat 0 001 @ 00001740 n 0000 | feline mammal having thick soft fur  
00001743 05 n 01 dog 0 001 @ 00001740 n 0000 | a dull unattractive person
"""
ADJECTIVES = "00001744 00 s 02 wet(p) 0 damp(a) 0 000 | covered with water | or soaked\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    files = folder / "usr/share/wordnet"
    files.mkdir(parents=True)
    for kind, text in {"noun": NOUNS, "verb": "", "adj": ADJECTIVES, "adv": ""}.items():
        (files / f"data.{kind}").write_text(LICENCE + text, "utf-8")
    return str(folder)


def test_definitions_as_wordnet_writes_them(root):
    found = glosses(root)
    assert [one.words for one in found] == [
        ("octopus", "devilfish", "sea animal"), ("dog",), ("cat",), ("dog",), ("wet", "damp"),
    ]  # fmt: skip
    assert found[1] == Gloss("noun/00001741", ("dog",), 'a domesticated animal; "the dog barked all night"')
    assert found[2].sentence == "cat: feline mammal having thick soft fur"
    assert found[4].text == "covered with water | or soaked"


def test_the_splits_share_no_definition(root):
    both = {split: Glosses(split=split, root=root).build() for split in ("train", "val")}
    ids = {split: {row.id for row in source.rows} for split, source in both.items()}
    assert not ids["train"] & ids["val"]
    assert len(ids["train"] | ids["val"]) == 5
    assert all(fraction_of(one) >= HELD_OUT for one in ids["val"])
    [segment] = both["train"][0].segments
    assert segment.kind == "text"
    assert ": " in segment.data


def test_pictures_stand_behind_the_definition_of_what_they_show(root):
    config = PicturedGlosses(count=20, pictures=2, root=root)
    source = from_json(config.to_json(), SourceConfig).build()
    known = {gloss.sentence: gloss.words[0] for gloss in glosses(root)}
    assert len(source) == 20
    for number in range(20):
        sample = source[number]
        assert [one.kind for one in sample.segments] == ["text", "image", "text", "image"]
        for text, picture in zip(sample.segments[::2], sample.segments[1::2]):
            word = known[text.data.strip()]
            assert picture.data.concept in {"octopus": ["1F419"], "dog": ["1F415"], "cat": ["1F408"]}[word]
            assert "dull" not in text.data  # the commonest meaning
    assert source[3] == config.build()[3]
    with pytest.raises(IndexError):
        source[20]


def test_it_is_fetched_once_and_found_under_its_name(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    glosses.cache_clear()
    with pytest.raises(UserError, match="run `sensorium fetch wordnet`"):
        Glosses().build()
    asked = []

    def fetch_package(kind, name, **options):
        asked.append((kind, name, options["files"]))
        return root

    place = install(fetch_package)
    assert asked == [("debian", PACKAGE, FILES)]
    assert place == tmp_path / "data/wordnet"
    assert glosses() == glosses(root)
    assert install(fetch_package) == place  # again, nothing is in the way
    glosses.cache_clear()
    with pytest.raises(UserError, match="expected the Debian package"):
        glosses(str(tmp_path / "elsewhere"))
