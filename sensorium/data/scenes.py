"""Scenes: several emoji and words on one canvas, with exact ground truth.

A scene is a function of (split, seed, index). Its boxes are those of the pixels drawn, its masks are exact, and its
objects never overlap except in the layout `stack`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sensorium.data.builtin_names import draw, held_out_names, names
from sensorium.data.builtin_phrases import WORDS
from sensorium.data.emoji import Artist, Concept, concept, decode, picture_digest, pictures
from sensorium.errors import UserError, nearest

PIXELS = 224
BACKGROUNDS = ("#ffffff", "#f4efe6", "#e8f1f8", "#edf6e9", "#fbeef0", "#f1ecf8", "#fff8dc", "#e6e6e6")
INKS = ("#000000", "#1f3a93", "#8e1b1b", "#145a32", "#4a235a")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
LAYOUTS = ("quadrants", "pair", "count", "size", "text")
SPLITS = ("train", "val_scene", "dev_scene")
GAP = 3
"""Pixels that stay free on each side of a cell."""

Box = tuple[float, float, float, float]
Cell = tuple[int, int, int, int]
Pool = tuple[tuple[Concept, Artist], ...]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An emoji in a scene; box is x0 y0 x1 y1 in [0, 1] of the canvas, around its drawn pixels."""

    concept: str
    artist: str
    box: Box

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, slots=True)
class SceneText:
    """A rendered word; box as in SceneObject, `points` the font size in pixels."""

    text: str
    box: Box
    points: int
    colour: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What is on a canvas of pixels x pixels. Objects are drawn in order, later ones on top; texts come last."""

    layout: str
    background: str
    objects: tuple[SceneObject, ...] = ()
    texts: tuple[SceneText, ...] = ()
    pixels: int = PIXELS

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    def render(self) -> Image.Image:
        """The picture in mode RGB."""
        image = Image.new("RGB", (self.pixels, self.pixels), self.background)
        for item in self.objects:
            cell = self._cell(item.box)
            sprite = _sprite(item.concept, item.artist, cell[2] - cell[0], cell[3] - cell[1])
            image.paste(sprite, cell[:2], sprite)
        for word in self.texts:
            image.paste(word.colour, self._cell(word.box), _ink(word.text, word.points))
        return image

    def masks(self) -> np.ndarray:
        """(objects, pixels, pixels) bool: what can be seen of each object; a pixel belongs to the topmost one."""
        masks = np.zeros((len(self.objects), self.pixels, self.pixels), dtype=bool)
        for index, item in enumerate(self.objects):
            x0, y0, x1, y1 = self._cell(item.box)
            drawn = np.asarray(_sprite(item.concept, item.artist, x1 - x0, y1 - y0).getchannel("A")) > 0
            masks[:index, y0:y1, x0:x1] &= ~drawn
            masks[index, y0:y1, x0:x1] = drawn
        for word in self.texts:
            x0, y0, x1, y1 = self._cell(word.box)
            masks[:, y0:y1, x0:x1] &= np.asarray(_ink(word.text, word.points)) == 0
        return masks

    def _cell(self, box: Box) -> Cell:
        x0, y0, x1, y1 = (round(edge * self.pixels) for edge in box)
        return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """A scene as a picture (Media): its key is known without rendering it."""

    scene: Scene

    def key(self) -> str:
        """sha256 of the scene's JSON and of the pictures it is composed of."""
        digest = hashlib.sha256(self.scene.to_json().encode("utf-8"))
        for item in self.scene.objects:
            digest.update(picture_digest(item.concept, item.artist))
        return digest.hexdigest()

    def shape(self) -> tuple[int, int]:
        return self.scene.pixels, self.scene.pixels

    def load(self) -> Image.Image:
        return self.scene.render()


@lru_cache(maxsize=1024)
def _cut(key: str, artist: str) -> Image.Image:
    """The drawing alone, RGBA, cut at its box."""
    return decode(key, artist).crop(concept(key).boxes[artist])


@lru_cache(maxsize=256)
def _sprite(key: str, artist: str, width: int, height: int) -> Image.Image:
    return _cut(key, artist).resize((width, height), Image.Resampling.BILINEAR)


@cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(points)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow was built without FreeType, which scenes with words need: install its wheel")
    return font


@lru_cache(maxsize=1024)
def _ink(text: str, points: int) -> Image.Image:
    """Coverage of a word in Pillow's built-in font, mode L, cut at its ink."""
    canvas = Image.new("L", (points * (len(text) + 2), points * 3))
    ImageDraw.Draw(canvas).text((points, points // 2), text, fill=255, font=_font(points))
    return canvas.crop(canvas.getbbox())


@cache
def scene_pool(split: str, holdout_dev: bool = False) -> Pool:
    """(concept, artist) pairs that scenes of a split are made of. Raises UserError for an unknown split.

    train and dev_scene use trained concepts by the trained artists, val_scene the same concepts by the artist that is
    never trained on. All of them have an English name that training may say.
    """
    if split not in SPLITS:
        raise UserError(f"scenes have no split {split!r}: {nearest(split, SPLITS)}")
    drawn = pictures("val_artist" if split == "val_scene" else "train", holdout_dev and split != "val_scene")
    known = names("train", "en", holdout_dev).captions
    return tuple((member, artist) for member, artist in drawn if member.key in known)


@cache
def scene_words(holdout_dev: bool = False) -> tuple[str, ...]:
    """Words that scenes may show: none is the name of a held-out concept."""
    return tuple(word for word in WORDS if word.casefold() not in held_out_names(holdout_dev))


def make_scene(split: str, seed: int, index: int, layout: str | None = None, holdout_dev: bool = False) -> Scene:
    """Scene number `index` of a split. Splits never share a scene. Raises UserError for an unknown layout or split."""
    rng = draw("scene", split, seed, index)
    layout = layout or rng.choice(LAYOUTS)
    if layout not in _MAKERS:
        raise UserError(f"scenes have no layout {layout!r}: {nearest(layout, _MAKERS)}")
    pool = scene_pool(split, holdout_dev)
    if layout == "text":
        return text_scene(rng, pool, scene_words(holdout_dev))
    return _MAKERS[layout](rng, pool)


def quadrant_scene(
    rng: random.Random,
    pool: Pool,
    count: int | None = None,
    target: tuple[Concept, Artist] | None = None,
    quadrant: str | None = None,
) -> Scene:
    """1 to 4 different objects, each within its own quarter; `target` comes first, in `quadrant` when given."""
    count = count or rng.randint(1, 4)
    places = rng.sample(QUADRANTS, 4)
    if quadrant is not None:
        places = [quadrant, *(place for place in places if place != quadrant)]
    half = PIXELS // 2
    objects = []
    for place, chosen in zip(places, _different(rng, pool, count, target)):
        x, y = half * ("right" in place), half * ("bottom" in place)
        objects.append(_put(rng, chosen, (x, y, x + half, y + half), rng.randint(56, half - 2 * GAP)))
    return Scene("quadrants", rng.choice(BACKGROUNDS), tuple(objects))


def pair_scene(rng: random.Random, pool: Pool) -> Scene:
    """Two different objects of like size, side by side or one above the other."""
    half, objects = PIXELS // 2, []
    upright = rng.random() < 0.5
    for index, chosen in enumerate(_different(rng, pool, 2)):
        start = index * half
        cell = (0, start, PIXELS, start + half) if upright else (start, 0, start + half, PIXELS)
        objects.append(_put(rng, chosen, cell, rng.randint(76, half - 2 * GAP)))
    rng.shuffle(objects)
    return Scene("pair", rng.choice(BACKGROUNDS), tuple(objects))


def count_scene(
    rng: random.Random, pool: Pool, target: tuple[Concept, Artist] | None = None, count: int | None = None
) -> Scene:
    """1 to 5 copies of one object and, half of the time, 1 to 3 other objects, in cells of a 3 x 3 grid."""
    count = count or rng.randint(1, 5)
    others = rng.randint(1, 3) if rng.random() < 0.5 else 0
    edges = [round(PIXELS * step / 3) for step in range(4)]
    cells = [(edges[x], edges[y], edges[x + 1], edges[y + 1]) for y in range(3) for x in range(3)]
    side = rng.randint(46, 66)
    first, *rest = _different(rng, pool, 1 + others, target)
    chosen = [first] * count + rest
    objects = tuple(_put(rng, one, cell, side) for one, cell in zip(chosen, rng.sample(cells, len(chosen))))
    return Scene("count", rng.choice(BACKGROUNDS), objects)


def size_scene(rng: random.Random, pool: Pool) -> Scene:
    """Two different objects, one at least twice as long and three times as large as the other."""
    split, upright, large_first = 146, rng.random() < 0.5, rng.random() < 0.5
    while True:
        large, small = _different(rng, pool, 2)
        spans = ((0, split), (split, PIXELS)) if large_first else ((PIXELS - split, PIXELS), (0, PIXELS - split))
        objects = []
        for chosen, span, side in ((large, spans[0], rng.randint(112, 140)), (small, spans[1], rng.randint(36, 56))):
            cell = (0, span[0], PIXELS, span[1]) if upright else (span[0], 0, span[1], PIXELS)
            objects.append(_put(rng, chosen, cell, side))
        if objects[0].area >= 3 * objects[1].area:  # thin drawings can fail this: then two others are taken
            rng.shuffle(objects)
            return Scene("size", rng.choice(BACKGROUNDS), tuple(objects))


def text_scene(rng: random.Random, pool: Pool, words: tuple[str, ...]) -> Scene:
    """One word, a dictionary word or letters and digits, above or below an object or alone."""
    text = rng.choice(words)
    if rng.random() < 0.25:
        text = "".join(rng.choices("ABCDEFGHJKLMNPRTUVWXYZ2346789", k=rng.randint(3, 5)))
    elif rng.random() < 0.3:
        text = text.upper()
    points = rng.randint(22, 40)
    while _ink(text, points).width > PIXELS - 2 * GAP:
        points -= 2
    width, height = _ink(text, points).size
    band, below, alone = 64, rng.random() < 0.5, rng.random() < 0.3
    top = 0 if alone or not below else PIXELS - band
    bottom = PIXELS if alone or below else band
    x = rng.randint(GAP, PIXELS - GAP - width)
    y = rng.randint(top + GAP, bottom - GAP - height)
    word = SceneText(text, _unit((x, y, x + width, y + height)), points, rng.choice(INKS))
    objects: tuple[SceneObject, ...] = ()
    if not alone:
        cell = (0, 0, PIXELS, PIXELS - band) if below else (0, band, PIXELS, PIXELS)
        objects = (_put(rng, rng.choice(pool), cell, rng.randint(80, 130)),)
    return Scene("text", rng.choice(BACKGROUNDS), objects, (word,))


def stack_scene(rng: random.Random, pool: Pool) -> Scene:
    """Two different objects, the second in front of the first: their boxes overlap."""
    back, front = _different(rng, pool, 2)
    first = _put(rng, back, (16, 16, 176, 176), rng.randint(96, 130))
    x, y = (round(value * PIXELS) for value in first.centre)
    second = _put(rng, front, (x - 20, y - 20, x + 100, y + 100), rng.randint(80, 100))
    return Scene("stack", rng.choice(BACKGROUNDS), (first, second))


_MAKERS: dict[str, Callable[..., Scene]] = {
    "quadrants": quadrant_scene,
    "pair": pair_scene,
    "count": count_scene,
    "size": size_scene,
    "text": text_scene,
    "stack": stack_scene,
}


def _different(
    rng: random.Random, pool: Pool, count: int, first: tuple[Concept, Artist] | None = None
) -> list[tuple[Concept, Artist]]:
    """`count` pictures of different concepts, `first` among them at the front when given."""
    chosen = [first] if first else []
    seen = {member.key for member, _ in chosen}
    while len(chosen) < count:
        candidate = rng.choice(pool)
        if candidate[0].key not in seen:
            chosen.append(candidate)
            seen.add(candidate[0].key)
    return chosen


def _put(rng: random.Random, chosen: tuple[Concept, Artist], cell: Cell, side: int) -> SceneObject:
    """The object somewhere within a cell, `side` pixels long (less where the cell is smaller)."""
    member, artist = chosen
    x0, y0, x1, y1 = member.boxes[artist]
    room = (cell[2] - cell[0] - 2 * GAP, cell[3] - cell[1] - 2 * GAP)
    scale = min(side / max(x1 - x0, y1 - y0), room[0] / (x1 - x0), room[1] / (y1 - y0))
    width, height = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    x = rng.randint(cell[0] + GAP, cell[2] - GAP - width)
    y = rng.randint(cell[1] + GAP, cell[3] - GAP - height)
    return SceneObject(member.key, artist, _unit((x, y, x + width, y + height)))


def _unit(cell: Cell) -> Box:
    x0, y0, x1, y1 = (edge / PIXELS for edge in cell)
    return x0, y0, x1, y1
