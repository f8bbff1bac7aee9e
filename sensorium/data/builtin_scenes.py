"""Questions about a scene, with exact answers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from sensorium.data.boxes import Box
from sensorium.data.builtin_names import Names
from sensorium.data.builtin_phrases import COUNTS, SCENE
from sensorium.data.builtin_samples import Question
from sensorium.data.emoji import concept
from sensorium.data.scenes import QUADRANTS, Scene, SceneObject

PLACES = (*QUADRANTS, "left", "right", "top", "bottom")
FAMILY_LAYOUTS: dict[str, tuple[str, ...]] = {
    "what": ("quadrants", "pair"),
    "count": ("count",),
    "where": ("quadrants",),
    "relation": ("pair", "size"),
    "yes_no": ("quadrants", "pair", "count", "size"),
    "bigger": ("size",),
    "box": ("quadrants", "pair", "size"),
    "refer": ("quadrants", "pair", "size"),
    "text": ("text",),
    "describe": ("quadrants", "pair"),
}
"""Layouts whose every scene bears a question of a family; scenes of others may."""

WriteBox = Callable[[Box], str]


def ask_scene(scene: Scene, family: str, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    """A question of a family about a scene; None when this scene does not bear one.

    known      what things are called, and which others may be named
    write_box  the convention boxes are written in
    """
    return _ASK[family](scene, known, write_box, rng)


def sides_of(box: Box) -> set[str]:
    """Which halves of the canvas a box lies in wholly: of left, right, top, bottom."""
    x0, y0, x1, y1 = box
    tests = {"left": x1 <= 0.5, "right": x0 >= 0.5, "top": y1 <= 0.5, "bottom": y0 >= 0.5}
    return {side for side, holds in tests.items() if holds}


def place_of(box: Box) -> str | None:
    """`top left`, or `left` when it is neither above nor below the middle; None when no side is clear."""
    sides = sides_of(box)
    return " ".join(side for side in ("top", "bottom", "left", "right") if side in sides) or None


def _only(scene: Scene) -> list[SceneObject]:
    """Objects that occur once, so that their name points at one of them."""
    times = Counter(item.concept for item in scene.objects)
    return [item for item in scene.objects if times[item.concept] == 1]


def _wording(family: str, rng: random.Random, **words: str) -> str:
    return rng.choice(SCENE[family]).format(**words)


def _what(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    candidates = []
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    for place in PLACES:
        words = set(place.split())
        inside = [item for item in scene.objects if words <= sides_of(item.box)]
        outside = [item for item in scene.objects if {opposite[word] for word in words} & sides_of(item.box)]
        if len(inside) == 1 and len(outside) == len(scene.objects) - 1:
            candidates.append((place, inside[0]))
    if not candidates:
        return None
    place, item = rng.choice(candidates)
    name = known.captions[item.concept]
    return Question("what", _wording("what", rng, place=place), name, detail={"place": place, "key": item.concept})


def _count(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    if scene.layout != "count":  # elsewhere nothing comes twice: "one" would always be right
        return None
    times = Counter(item.concept for item in scene.objects)
    # The repeated object comes first; the others, always alone, are asked about rarely so that "one" stays in balance.
    key = scene.objects[0].concept if rng.random() < 0.9 else rng.choice(scene.objects).concept
    if times[key] > len(COUNTS):
        return None
    name = known.captions[key]
    detail = {"name": name, "key": key, "number": times[key]}
    return Question("count", _wording("count", rng, name=name), COUNTS[times[key] - 1], COUNTS, detail=detail)


def _where(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    candidates = [item for item in _only(scene) if place_of(item.box) in QUADRANTS]
    if not candidates:
        return None
    item = rng.choice(candidates)
    name, place = known.captions[item.concept], place_of(item.box)
    detail = {"name": name, "key": item.concept}
    return Question("where", _wording("where", rng, name=name), str(place), QUADRANTS, detail=detail)


def _relation(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    candidates = []
    for one in _only(scene):
        for other in _only(scene):
            if one.box[2] <= other.box[0]:
                candidates += [("left", one, other), ("right", other, one)]
            if one.box[3] <= other.box[1]:
                candidates += [("up", one, other), ("down", other, one)]
    if not candidates:
        return None
    side, answer, other = rng.choice(candidates)
    name = known.captions[answer.concept]
    pair = [name, known.captions[other.concept]]
    rng.shuffle(pair)
    question = _wording("relation", rng, side=side, first=pair[0], second=pair[1])
    return Question("relation", question, name, tuple(pair), detail={"side": side, "key": answer.concept})


def _yes_no(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    shown = {item.concept for item in scene.objects}
    item = rng.choice(scene.objects)
    true = rng.random() < 0.5
    name = known.captions[item.concept]
    if not true:
        present = {known.captions[key] for key in shown}
        near = [other for other in known.distractors(concept(item.concept), 6, rng) if other not in present]
        if rng.random() < 0.5 or not near:
            near = [other for key, other in known.captions.items() if key not in shown]
        name = rng.choice(near)
    question = _wording("yes_no", rng, name=name)
    return Question("yes_no", question, "yes" if true else "no", ("yes", "no"), detail={"name": name})


def _bigger(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    ordered = sorted(_only(scene), key=lambda item: item.area)
    if len(ordered) != 2 or ordered[1].area < 2 * ordered[0].area:
        return None
    degree = rng.choice(("smaller", "bigger"))
    answer = known.captions[ordered[degree == "bigger"].concept]
    pair = [known.captions[item.concept] for item in ordered]
    rng.shuffle(pair)
    question = _wording("bigger", rng, degree=degree, first=pair[0], second=pair[1])
    return Question("bigger", question, answer, tuple(pair), detail={"degree": degree})


def _box(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    candidates = _only(scene)
    if not candidates:
        return None
    item = rng.choice(candidates)
    name = known.captions[item.concept]
    detail = {"name": name, "key": item.concept, "box": list(item.box)}
    return Question("box", _wording("box", rng, name=name), write_box(item.box), detail=detail)


def _refer(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    if not scene.objects:
        return None
    item = rng.choice(scene.objects)
    detail = {"key": item.concept, "box": list(item.box)}
    question = _wording("refer", rng, box=write_box(item.box))
    return Question("refer", question, known.captions[item.concept], detail=detail)


def _text(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    if not scene.texts:
        return None
    word = rng.choice(scene.texts)
    return Question("text", _wording("text", rng), word.text, detail={"box": list(word.box)})


def _describe(scene: Scene, known: Names, write_box: WriteBox, rng: random.Random) -> Question | None:
    placed = [(place_of(item.box), item) for item in scene.objects]
    if not 1 <= len(placed) <= 4 or len(_only(scene)) < len(placed) or any(place is None for place, _ in placed):
        return None
    order = sorted(placed, key=lambda pair: (pair[1].centre[1] >= 0.5, pair[1].centre[0] >= 0.5))
    answer = ", ".join(f"{known.captions[item.concept]} at the {place}" for place, item in order)
    return Question("describe", _wording("describe", rng), answer)


_ASK: dict[str, Callable[[Scene, Names, WriteBox, random.Random], Question | None]] = {
    "what": _what,
    "count": _count,
    "where": _where,
    "relation": _relation,
    "yes_no": _yes_no,
    "bigger": _bigger,
    "box": _box,
    "refer": _refer,
    "text": _text,
    "describe": _describe,
}
