"""The built-in emoji set: what is in it, its splits, its pictures, its licences."""

import hashlib
import multiprocessing
import os
import zipfile

import numpy as np
import pytest

from sensorium.data import emoji
from sensorium.data.emoji import EmojiPicture, concept, concepts, fraction_of, key_of, pictures, split_of
from sensorium.errors import UserError
from sensorium.sequence import Media


def test_counts_are_those_of_the_set_description():
    plain, every = concepts(), concepts(flags=True)
    assert len(plain) == 1563
    assert len(every) == 1563 + 245
    assert len({member.subcategory for member in plain}) == 96
    assert len({member.key for member in every}) == len(every)
    assert sum(split_of(member.key) == "val_concept" for member in plain) == 246
    sizes = {split: len(pictures(split)) for split in emoji.SPLITS}
    assert sizes == {"train": 2634, "val_artist": 1317, "val_concept": 738, "dev_artist": 301, "dev_concept": 154}


def test_every_concept_is_named_in_every_language_without_doubles():
    for language in emoji.LANGUAGES:
        names = [member.captions[language].casefold() for member in concepts(flags=True)]
        assert all(names)
        assert len(set(names)) == len(names)


def test_keys_leave_out_the_variation_selector_and_skin_tones_are_absent():
    assert key_of("\U0001f590\ufe0f") == "1F590"
    assert key_of("\U0001f468\u200d\U0001f33e") == "1F468-200D-1F33E"
    for member in concepts(flags=True):
        assert member.key == key_of(member.characters)
        assert not any(0x1F3FB <= int(point, 16) <= 0x1F3FF for point in member.key.split("-"))


def test_split_is_the_published_hash_rule():
    assert fraction_of("1F600") == int(hashlib.sha256(b"1F600").hexdigest(), 16) / 2**256
    for member in concepts():
        first = int(hashlib.sha256(member.key.encode()).hexdigest()[:8], 16) / 2**32  # enough digits to decide
        assert (split_of(member.key) == "val_concept") == (first >= 0.85)


def test_splits_hold_what_they_say_and_dev_comes_out_of_train():
    train, tuned = set(pictures("train")), set(pictures("train", holdout_dev=True))
    dev_concept, dev_artist = set(pictures("dev_concept")), set(pictures("dev_artist"))
    assert train == set(pictures("train", holdout_dev=False))
    assert tuned == train - dev_concept - dev_artist
    assert dev_concept | dev_artist <= train
    assert not dev_concept & dev_artist
    assert {artist for _, artist in train} == {"fluent", "google"}
    assert {artist for _, artist in pictures("val_artist")} == {"twitter"}
    assert {member for member, _ in pictures("val_artist")} == {member for member, _ in train}
    assert not {member for member, _ in pictures("val_concept")} & {member for member, _ in train}
    with pytest.raises(UserError, match="val_artist"):
        pictures("val_artists")


def test_a_picture_is_composited_on_its_background():
    grinning = EmojiPicture("1F600", "fluent")
    assert isinstance(grinning, Media)
    image = grinning.load()
    assert image.mode == "RGB"
    assert (image.height, image.width) == grinning.shape() == (128, 128)
    red = EmojiPicture("1F600", "fluent", "#ff0000").load()
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert red.getpixel((0, 0)) == (255, 0, 0)
    centre = np.asarray(red)[40, 64]
    assert (centre == np.asarray(image)[40, 64]).all()  # opaque: the background does not show
    assert centre[0] > 200 > centre[2]  # a yellow face


def test_equal_keys_mean_equal_content():
    assert EmojiPicture("1F600", "google", "white").key() == EmojiPicture("1F600", "google", "#fff").key()
    owners: dict[str, list[tuple[str, str]]] = {}
    for member in concepts(flags=True):
        for artist in emoji.ARTISTS:
            owners.setdefault(EmojiPicture(member.key, artist).key(), []).append((member.key, artist))
    shared = [pair for pair in owners.values() if len(pair) > 1]
    assert shared == [[("1F63A", "fluent"), ("1F431", "fluent")]]  # the artist's set has one picture for both
    assert len({EmojiPicture("1F600", "google", colour).key() for colour in ("white", "black", "blue")}) == 3


def test_the_archive_index_finds_what_zipfile_reads():
    for artist in emoji.ARTISTS:
        with zipfile.ZipFile(emoji.ROOT / f"{artist}.zip") as archive:
            names = archive.namelist()
            assert len(names) == 1808
            for name in names[::97]:
                assert archive.read(name) == emoji.read_picture(name.removesuffix(".webp"), artist)


def test_boxes_hold_the_drawing():
    for member, artist in pictures("train")[::50] + pictures("val_artist")[::50]:
        alpha = np.asarray(emoji.decode(member.key, artist).getchannel("A")) >= 48
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        assert member.boxes[artist] == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def _digest_in_child(keys: list[str]) -> list[str]:
    return [hashlib.sha256(EmojiPicture(key, "google").load().tobytes()).hexdigest() for key in keys]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_read_the_same_pictures():
    keys = [member.key for member in concepts()[:200]]
    here = _digest_in_child(keys)  # opens the archive before the fork
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_digest_in_child, [keys] * 6) == [here] * 6


def test_unknown_names_are_clear_errors():
    with pytest.raises(UserError, match="no concept"):
        concept("1F6000")
    with pytest.raises(UserError, match="twitter"):
        emoji.read_picture("1F600", "twiter")


def test_licences_are_there_and_the_set_is_small():
    names = {path.name for path in (emoji.ROOT / "licenses").iterdir()}
    assert names == {
        "NOTICE.txt",
        "cldr-Unicode-3.0.txt",
        "emoji-data-MIT.txt",
        "fluent-MIT.txt",
        "noto-Apache-2.0.txt",
        "twemoji-CC-BY-4.0.txt",
    }
    notice = (emoji.ROOT / "licenses" / "NOTICE.txt").read_text("utf-8")
    assert all(f"{artist}.zip" in notice for artist in emoji.ARTISTS)
    assert sum(path.stat().st_size for path in emoji.ROOT.rglob("*") if path.is_file()) < 12e6
