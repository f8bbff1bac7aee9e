"""The stamps set, in a tiny folder of the package's own layout."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from sensorium.config import from_json
from sensorium.data import stamps as module
from sensorium.data.formats import check
from sensorium.data.source import SourceConfig
from sensorium.data.stamps import Stamps, install, parse_captions, read_stamps
from sensorium.errors import UserError

PARROT = (
    "A parrot.\nfr.utf8=Un perroquet.\nzh_CN.utf8=鹦鹉\nsr@latin.utf8=Papagaj\nde.utf8=\nen_GB.utf8=A British parrot."
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked package: two photographs, a drawing, a caption without a picture, a picture without a caption."""
    folder = tmp_path / "package" / "usr" / "share" / "tuxpaint" / "stamps"
    write(folder / "animals" / "birds" / "parrot", PARROT)
    write(folder / "food" / "apple", "An apple.\nfr.utf8=Une pomme.\n")
    write(folder / "food" / "drawn", "A drawn apple.", suffix=".svg")
    write(folder / "food" / "lost", "A lost apple.", suffix=None)
    Image.new("RGBA", (4, 4)).save(folder / "food" / "apple_mirror.png")
    return tmp_path / "package"


def write(stem: Path, captions: str, suffix: str | None = ".png") -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".txt").write_text(captions, encoding="utf-8")
    if suffix == ".png":
        Image.new("RGBA", (4, 6), (0, 0, 0, 0)).save(stem.with_suffix(".png"))
    elif suffix:
        stem.with_suffix(suffix).write_text("<svg/>")


def test_reading_the_package(package: Path):
    found = read_stamps(package)
    assert [stamp.key for stamp in found.stamps] == ["animals/birds/parrot", "food/apple"]
    assert found.stamps[0].category == "animals/birds"
    assert found.stamps[0].captions == {
        "en": "A parrot.",
        "fr": "Un perroquet.",
        "zh_CN": "鹦鹉",
        "sr@latin": "Papagaj",
        "en_GB": "A British parrot.",
    }
    assert (found.drawings, found.lost) == (1, 1)
    assert found.languages["fr"] == 2
    assert found.languages["de"] == 0
    assert read_stamps(package / "usr" / "share" / "tuxpaint" / "stamps").stamps == found.stamps


def test_rows_are_pictures_by_languages(package: Path):
    config = Stamps(root=str(package), languages=("fr", "zh_CN"), split="all")
    source = config.build()
    assert [(sample.id, sample.segments[1].data) for sample in (source[n] for n in range(len(source)))] == [
        ("animals/birds/parrot/fr", "Un perroquet."),
        ("animals/birds/parrot/zh_CN", "鹦鹉"),
        ("food/apple/fr", "Une pomme."),
    ]
    picture = source[0].segments[0].data
    assert picture.shape() == (6, 4)
    assert picture.load().getpixel((0, 0)) == (255, 255, 255)
    assert source[1].info == {"key": "animals/birds/parrot", "category": "animals/birds", "language": "zh_CN"}
    asked = config.replace(prompt="Describe.").build()[0]
    assert [segment.role for segment in asked.segments] == ["user", "user", "assistant"]
    assert from_json(config.to_json(), SourceConfig) == config
    report = check(source)
    assert (report.checked, report.bad) == (3, 0)
    assert sorted(report.notes.values()) == [1, 1]


def test_splits_follow_the_rule_of_all_sets(tmp_path: Path):
    for number in range(60):
        write(tmp_path / "many" / f"s{number}", "A thing.")
    keys = {split: {s.info["key"] for s in rows(tmp_path, split)} for split in ("all", "train", "val_concept")}
    assert len(keys["all"]) == 60
    for key in keys["all"]:
        held = int(hashlib.sha256(key.encode()).hexdigest(), 16) / 2**256 >= 0.85
        assert (key in keys["val_concept"]) == held
        assert (key in keys["train"]) == (not held)
    dev = {s.info["key"] for s in rows(tmp_path, "dev_concept")}
    assert dev
    assert {s.info["key"] for s in rows(tmp_path, "train", holdout_dev=True)} == keys["train"] - dev


def rows(root: Path, split: str, **options):
    source = Stamps.model_validate({"root": str(root), "split": split, **options}).build()
    return [source[index] for index in range(len(source))]


def test_captions_that_are_not_in_the_layout(package: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="line 2: expected language"):
        parse_captions("A parrot.\nstray words")
    assert parse_captions("fr.utf8=Un perroquet.") == {"fr": "Un perroquet."}
    write(package / "usr" / "share" / "tuxpaint" / "stamps" / "bad", "x\nstray words")
    with pytest.raises(UserError, match=r"bad\.txt .*line 2"):
        read_stamps(package)


def test_what_is_missing_says_what_to_do(package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="sensorium fetch stamps"):
        Stamps().build()
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        Stamps(root=str(tmp_path / "nowhere")).build()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no stamps"):
        Stamps(root=str(tmp_path / "empty")).build()
    with pytest.raises(UserError, match="'zh_cn': did you mean 'zh_CN'"):
        Stamps(root=str(package), languages=("zh_cn",)).build()


def test_installing_links_the_fetched_package(package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path / "cache"))
    calls = []

    def fetch_package(kind: str, name: str, **options) -> Path:
        calls.append((kind, name))
        return package

    for _ in range(2):
        assert len(install(fetch_package).stamps) == 2
    assert calls[0] == ("debian", "tuxpaint-stamps-default")
    assert len(Stamps(split="all").build()) == 2
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == ["stamps"]

    def unreachable(kind: str, name: str, **options) -> Path:
        raise UserError("apt-get is not on this machine")

    with pytest.raises(UserError, match="apt-get"):
        install(unreachable)
    (tmp_path / "cache" / "data" / "stamps").unlink()
    (tmp_path / "cache" / "data" / "stamps" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="in the way"):
        install(fetch_package)


@pytest.mark.slow
@pytest.mark.network
def test_the_real_package(tmp_path: Path, monkeypatch):
    """Facts of version 2022.06.04-1."""
    from sensorium.hub import fetch_package

    monkeypatch.setenv("SENSORIUM_CACHE", str(tmp_path))
    found = install(fetch_package)
    assert len(found.stamps) + found.drawings == 950
    assert (len(found.stamps), found.drawings, found.lost) == (785, 165, 2)
    assert len(found.languages) == 78
    report = check(Stamps(split="all"))
    assert (report.checked, report.bad) == (785, 0)
    assert module.find_stamps().is_dir()
