"""Scenes: what is drawn is what the scene says."""

import hashlib
import itertools

import numpy as np
import pytest

from sensorium.data import scenes
from sensorium.data.builtin_names import held_out_names
from sensorium.data.emoji import concept, split_of
from sensorium.data.scenes import LAYOUTS, PIXELS, Scene, SceneObject, ScenePicture, make_scene, scene_pool
from sensorium.errors import UserError
from sensorium.sequence import Media

SOME = [make_scene("train", 3, index) for index in range(150)]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return tuple(edge / PIXELS for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def test_boxes_are_those_of_the_drawn_pixels():
    for scene in SOME:
        for item, mask in zip(scene.objects, scene.masks()):
            assert box_of(mask) == item.box


def test_pixels_outside_every_object_and_word_are_background_and_inside_they_change():
    for scene in SOME[:60]:
        image = np.asarray(scene.render()).astype(int)
        colour = [int(scene.background[start : start + 2], 16) for start in (1, 3, 5)]
        changed = (image != colour).any(-1)
        covered = np.logical_or.reduce(scene.masks(), axis=0, initial=False)
        for word in scene.texts:
            x0, y0, x1, y1 = (round(edge * PIXELS) for edge in word.box)
            assert box_of(changed[y0:y1, x0:x1]) == (0, 0, (x1 - x0) / PIXELS, (y1 - y0) / PIXELS)
            covered[y0:y1, x0:x1] = True
        assert not (changed & ~covered).any()
        for mask in scene.masks():
            assert changed[mask].mean() > 0.3  # white drawings on white show by their shading and outline


def test_objects_never_overlap_except_in_a_stack():
    for scene in SOME:
        boxes = [item.box for item in scene.objects] + [word.box for word in scene.texts]
        for one, other in itertools.combinations(boxes, 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    hidden = 0
    for index in range(30):
        scene = make_scene("train", 0, index, "stack")
        back, front = scene.masks()
        assert not (back & front).any()
        assert box_of(front) == scene.objects[1].box
        alone = Scene("stack", scene.background, scene.objects[:1]).masks()[0]
        hidden += alone.sum() > back.sum()
    assert hidden >= 25


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_their_promise(layout):
    for index in range(60):
        scene = make_scene("val_scene", 1, index, layout)
        keys = [item.concept for item in scene.objects]
        boxes = [item.box for item in scene.objects]
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
        if layout == "quadrants":
            assert 1 <= len(set(keys)) == len(keys) <= 4
            assert all((x1 <= 0.5 or x0 >= 0.5) and (y1 <= 0.5 or y0 >= 0.5) for x0, y0, x1, y1 in boxes)
        elif layout == "pair":
            assert len(set(keys)) == 2
            first, second = boxes
            assert any(min(first[a + 2], second[a + 2]) <= 0.5 <= max(first[a], second[a]) for a in (0, 1))
        elif layout == "count":
            assert 1 <= keys.count(keys[0]) <= 5
            assert all(keys.count(key) == 1 for key in keys if key != keys[0])
        elif layout == "size":
            small, large = sorted(item.area for item in scene.objects)
            assert large >= 3 * small
        else:
            assert len(scene.texts) == 1


def test_counts_are_balanced():
    counts = [0] * 6
    for index in range(1000):
        scene = make_scene("train", 0, index, "count")
        counts[[item.concept for item in scene.objects].count(scene.objects[0].concept)] += 1
    assert counts[0] == 0
    assert all(150 <= number <= 250 for number in counts[1:])  # 200 expected, sd 12.6


def test_splits_use_their_artists_and_trained_concepts_and_share_no_scene():
    drawn = {split: [make_scene(split, 0, index) for index in range(300)] for split in scenes.SPLITS}
    artists = {split: {item.artist for scene in some for item in scene.objects} for split, some in drawn.items()}
    assert artists == {"train": {"fluent", "google"}, "dev_scene": {"fluent", "google"}, "val_scene": {"twitter"}}
    for some in drawn.values():
        assert all(split_of(item.concept) == "train" for scene in some for item in scene.objects)
    texts = [scene.to_json() for some in drawn.values() for scene in some]
    assert len(set(texts)) == len(texts)


def test_words_and_names_are_not_those_of_held_out_concepts():
    assert "page" not in scenes.scene_words()  # the list has it, and so has a held-out concept in French
    for holdout_dev in (False, True):
        forbidden = held_out_names(holdout_dev)
        assert not forbidden & {word.casefold() for word in scenes.scene_words(holdout_dev)}
        assert not forbidden & {member.captions["en"].casefold() for member, _ in scene_pool("train", holdout_dev)}
    assert len(scene_pool("train", True)) < len(scene_pool("train"))


def test_a_picture_is_media_and_its_key_follows_the_content():
    scene = make_scene("train", 0, 0)
    picture = ScenePicture(scene)
    assert isinstance(picture, Media)
    image = picture.load()
    assert image.mode == "RGB"
    assert (image.height, image.width) == picture.shape() == (224, 224)
    assert picture.key() == ScenePicture(make_scene("train", 0, 0)).key()
    assert len({ScenePicture(one).key() for one in SOME}) == len(SOME)
    digests = [hashlib.sha256(ScenePicture(make_scene("train", 0, 0)).load().tobytes()).digest() for _ in range(2)]
    assert digests[0] == digests[1]


def test_a_hand_made_scene_is_drawn_where_it_says():
    square = concept("2B1B")  # black large square: its drawing fills its box
    scene = Scene("quadrants", "#ffffff", (SceneObject(square.key, "twitter", (0.25, 0.5, 0.5, 0.75)),))
    image = np.asarray(scene.render())
    assert image[140, 84].max() < 80
    assert (image[:112] == 255).all()
    assert (image[112:168, 56:112].min(-1) < 128).mean() > 0.9
    assert scene.masks()[0].sum() == pytest.approx(56 * 56, rel=0.05)


def test_unknown_names_are_clear_errors():
    with pytest.raises(UserError, match="quadrants"):
        make_scene("train", 0, 0, "quadrant")
    with pytest.raises(UserError, match="val_scene"):
        make_scene("val_scenes", 0, 0)
