"""Evaluation items with closed sets of options, built so that an answer without the picture is exactly at chance.

Items come in groups that share their question and options and differ in the picture; within a group every option is
the right answer once. Whatever a model that sees the text alone prefers, it is right once per group.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from sensorium.data.builtin_names import draw, names
from sensorium.data.builtin_phrases import CAPTION, CATEGORY, COUNTS, SCENE, category_name
from sensorium.data.emoji import Artist, Concept, EmojiPicture, concept, pictures
from sensorium.data.scenes import QUADRANTS, Scene, ScenePicture, count_scene, quadrant_scene, scene_pool
from sensorium.errors import UserError, nearest
from sensorium.sequence import Media, Sample, Segment


def choice_items(
    split: str,
    n: int,
    seed: int = 0,
    *,
    language: str = "en",
    question: str | None = None,
    holdout_dev: bool = False,
    flags: bool = False,
) -> list[Sample]:
    """4-way multiple choice about emoji of a split, by the likelihood of each option's text.

    The prompt is the picture and `question` (None: "What is this?" in the language; "": the picture alone).
    `info["options"]` are 4 names, `info["answer"]` the index of the right one. The distractors are of the same
    subcategory, those left over of the same category; where concepts are held out (val_concept, dev_concept), of the
    same category. Chance is exactly 1/4 when n is a multiple of 4. Raises UserError when no four concepts go together.
    """
    rng = draw("choice", split, seed, language)
    captions = names(split, language, holdout_dev, flags).captions
    artists: dict[str, list[str]] = defaultdict(list)
    for member, artist in pictures(split, holdout_dev, flags):
        artists[member.key].append(artist)
    text = CAPTION[language][0] if question is None else question
    items: list[Sample] = []
    for group in _groups(list(captions), split in ("val_concept", "dev_concept"), rng):
        options = [captions[key] for key in group]
        for answer in rng.sample(range(4), 4):
            artist = rng.choice(artists[group[answer]])
            picture = EmojiPicture(group[answer], artist)
            info = {"family": "choice", "key": group[answer], "artist": artist, "keys": list(group)}
            info |= {"language": language, "category": concept(group[answer]).category}
            items.append(_item(picture, text, options, answer, f"choice/{split}/{seed}/{len(items)}", info))
            if len(items) >= n:
                return items
    raise UserError(f"split {split!r} has no four concepts of one category: choice items cannot be made of it")


def _groups(keys: list[str], by_category: bool, rng: random.Random) -> Iterator[tuple[str, ...]]:
    """Fours of neighbouring concepts in random order, going through all concepts again and again."""
    while True:
        fours: list[tuple[str, ...]] = []
        rest: dict[str, list[str]] = defaultdict(list)
        near: dict[str, list[str]] = defaultdict(list)
        for key in rng.sample(keys, len(keys)):
            member = concept(key)
            (rest[member.category] if by_category else near[member.subcategory]).append(key)
        for members in near.values():
            whole = len(members) // 4 * 4
            fours += _chunks(members[:whole])
            for key in members[whole:]:
                rest[concept(key).category].append(key)
        for members in rest.values():
            fours += _chunks(members[: len(members) // 4 * 4])
        if not fours:
            return
        rng.shuffle(fours)
        yield from fours


def category_items(split: str, n: int, seed: int = 0, *, holdout_dev: bool = False) -> list[Sample]:
    """Which category is it? Eight categories of emoji (flags, of which there are few, are none of them).

    A group has a picture of every category, in random order, so chance is exactly 1/8 when n is a multiple of 8.
    `info` as in choice_items. Raises UserError for an unknown split.
    """
    rng = draw("category", split, seed)
    drawn: dict[str, list[tuple[Concept, Artist]]] = defaultdict(list)
    for member, artist in pictures(split, holdout_dev):
        drawn[member.category].append((member, artist))
    kinds = sorted(kind for kind in drawn if kind != "Flags")
    options = [category_name(kind) for kind in kinds]
    items: list[Sample] = []
    while len(items) < n:
        for answer in rng.sample(range(len(kinds)), len(kinds)):
            member, artist = rng.choice(drawn[kinds[answer]])
            info = {"family": "category", "key": member.key, "artist": artist}
            id = f"category/{split}/{seed}/{len(items)}"
            items.append(_item(EmojiPicture(member.key, artist), CATEGORY[0], options, answer, id, info))
    return items[:n]


def _chunks(keys: list[str]) -> list[tuple[str, ...]]:
    return [tuple(keys[start : start + 4]) for start in range(0, len(keys), 4)]


def scene_items(family: str, split: str, n: int, seed: int = 0, *, holdout_dev: bool = False) -> list[Sample]:
    """Closed questions about fresh scenes of a split (val_scene, dev_scene or train).

    count     how many there are: one ... five, chance 1/5
    position  where it is: top left ... bottom right, chance 1/4
    `info["options"]` and `info["answer"]` as in choice_items; chance is exact when n is a multiple of the number of
    options. Raises UserError for an unknown family or split.
    """
    options = {"count": COUNTS, "position": QUADRANTS}
    if family not in options:
        raise UserError(f"scene items have no family {family!r}: {nearest(family, options)}")
    rng = draw("scene items", family, split, seed)
    pool = scene_pool(split, holdout_dev)
    captions = names("train", "en", holdout_dev).captions
    wordings = SCENE["count" if family == "count" else "where"]
    items: list[Sample] = []
    while len(items) < n:
        target = rng.choice(pool)
        question = rng.choice(wordings).format(name=captions[target[0].key])
        for answer in rng.sample(range(len(options[family])), len(options[family])):
            scene: Scene
            if family == "count":
                scene = count_scene(rng, pool, target, answer + 1)
            else:
                scene = quadrant_scene(rng, pool, None, target, QUADRANTS[answer])
            info = {"family": family, "key": target[0].key, "artist": target[1]}
            id = f"{family}/{split}/{seed}/{len(items)}"
            items.append(_item(ScenePicture(scene), question, list(options[family]), answer, id, info))
    return items[:n]


def _item(
    picture: Media, question: str, options: list[str], answer: int, id: str, info: Mapping[str, object]
) -> Sample:
    segments = [Segment("image", picture, "user")]
    if question:
        segments.append(Segment("text", question, "user"))
    known = {**info, "question": question, "options": options, "answer": answer}
    return Sample(tuple(segments), id=id, source="items", info=known)


def with_shots(items: list[Sample], shots: int, seed: int = 0, holdout_dev: bool = False) -> list[Sample]:
    """The items, each behind `shots` answered questions about trained pictures, of concepts that are no option of it.

    The wording is the item's own; the shots are a function of the item's id, `shots` and the seed.
    """
    if not shots:
        return items
    captions = names("train", "en", holdout_dev).captions
    drawn = [(member, artist) for member, artist in pictures("train", holdout_dev) if member.key in captions]
    found = []
    for item in items:
        rng = draw("shots", item.id, shots, seed)
        pool = rng.sample(drawn, shots + len(item.info["options"]))
        chosen = [pair for pair in pool if pair[0].key not in item.info["keys"]][:shots]
        turns: list[Segment] = []
        for member, artist in chosen:
            turns.append(Segment("image", EmojiPicture(member.key, artist), "user"))
            turns.append(Segment("text", item.info["question"], "user"))
            turns.append(Segment("text", captions[member.key], "assistant"))
        found.append(replace(item, segments=(*turns, *item.segments), id=f"{item.id}/{shots}"))
    return found
