"""Tasks that need no files: emoji, scenes of them, and the fetched stamps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from sensorium.data.builtin_names import draw
from sensorium.data.builtin_phrases import CAPTION
from sensorium.data.emoji import Language
from sensorium.data.emoji import Split as EmojiSplit
from sensorium.data.media import DEFAULT_LIMITS, Limits
from sensorium.data.questions import SceneQuestions, choice_items, scene_items
from sensorium.data.stamps import Split as StampSplit
from sensorium.data.stamps import Stamp, in_split, read_stamps
from sensorium.errors import UserError
from sensorium.evaluate.item import Items, TaskItem, TaskSource
from sensorium.evaluate.tasks.reading import Gathering, Pictures, shown
from sensorium.sequence import Sample

FOUR = 4


class Emoji(TaskSource):
    """What is it? Four names of one subcategory, of emoji by the built-in artists; the items of `evaluate.choice`.

    Groups of four share question and options, and each option is right once: an answer without the picture is right
    once in four.

    split     val_artist, val_concept: never trained on; the dev splits are for tuning
    n         items, a multiple of four
    language  of question and names
    """

    title: ClassVar[str] = "emoji"
    metric: ClassVar[str] = "likelihood"

    split: EmojiSplit = "val_concept"
    n: int = Field(default=300, ge=1)
    language: Language = "en"
    seed: int = 0
    holdout_dev: bool = False

    def load(self) -> Items:
        items = choice_items(self.split, self.n, self.seed, language=self.language, holdout_dev=self.holdout_dev)
        return Items([_closed(item, FOUR, index, str(item.info["category"])) for index, item in enumerate(items)])


class Scenes(TaskSource):
    """Questions about fresh scenes of emoji.

    family  count: one to five; position: a quarter of the picture; both with options, each right once in a group, the
            items of `evaluate.choice`; yes_no: is there one; box: where it is, as a box
    split   val_scene, dev_scene: scenes that were not trained on
    """

    title: ClassVar[str] = "scenes"
    metric: ClassVar[str] = "likelihood"

    family: Literal["count", "position", "yes_no", "box"] = "count"
    split: Literal["val_scene", "dev_scene", "train"] = "val_scene"
    n: int = Field(default=300, ge=1)
    seed: int = 0
    holdout_dev: bool = False

    def metric_for(self, items: object) -> str:
        return {"yes_no": "pope", "box": "grounding"}.get(self.family, self.metric)

    def load(self) -> Items:
        if self.family in ("count", "position"):
            size = 5 if self.family == "count" else FOUR
            items = scene_items(self.family, self.split, self.n, self.seed, holdout_dev=self.holdout_dev)
            return Items([_closed(item, size, index, self.family) for index, item in enumerate(items)])
        source = SceneQuestions(
            split=self.split,
            count=self.n,
            questions_per_picture=1,
            families=(self.family,),
            holdout_dev=self.holdout_dev,
            seed=self.seed,
        ).build()
        return Items([self._open(source[index]) for index in range(len(source))])

    def _open(self, sample: Sample) -> TaskItem:
        boxes = (tuple(sample.info["box"]),) if self.family == "box" else ()
        return TaskItem(
            id=f"{self.family}/{sample.id}",
            question=sample.info["question"],
            media=shown(sample.segments[0].data),
            answers=() if boxes else (sample.info["answer"],),
            boxes=boxes,
            group=sample.id,
            part=self.family,
        )


def _closed(sample: Sample, size: int, index: int, part: str) -> TaskItem:
    """An item of `data.builtin_items`: those of a group of `size` stand together."""
    return TaskItem(
        id=sample.id,
        question=sample.info["question"],
        media=shown(sample.segments[0].data),
        options=tuple(sample.info["options"]),
        answer=sample.info["answer"],
        group=f"{sample.id.rpartition('/')[0]}/{index // size}",
        part=part,
        info={"key": sample.info["key"], "artist": sample.info["artist"]},
    )


class Stamps(TaskSource):
    """What is it? Four captions of stamps of one category; every option is right once in a group of four.

    The set is fetched with `sensorium fetch stamps` (161 MB).

    root      as in data.stamps; None: where it was fetched to
    split     val_concept is never trained on; dev_concept is for tuning
    n         items at most; 0: as many as categories bear
    language  of the captions
    """

    title: ClassVar[str] = "stamps"
    metric: ClassVar[str] = "likelihood"

    root: str | None = None
    split: StampSplit = "val_concept"
    n: int = Field(default=0, ge=0)
    language: str = "en"
    seed: int = 0
    holdout_dev: bool = False
    limits: Limits = DEFAULT_LIMITS

    def load(self) -> Items:
        found = read_stamps(self.root)
        chosen = [one for one in found.stamps if in_split(one.key, self.split, self.holdout_dev)]
        named = [one for one in chosen if self.language in one.captions]
        pictures, gathering = Pictures(str(found.root), self.limits), Gathering()
        question = CAPTION[self.language if self.language in CAPTION else "en"][0]
        for number, four in enumerate(self._fours(named)):
            options = tuple(one.captions[self.language] for one in four)
            for answer, stamp in enumerate(four):

                def read(
                    stamp: Stamp, where: str, answer: int = answer, options: tuple[str, ...] = options, at: int = number
                ) -> TaskItem:
                    return TaskItem(
                        id=f"{stamp.key}/{self.language}",
                        question=question,
                        media=shown(pictures.one(f"{stamp.key}.png")),
                        options=options,
                        answer=answer,
                        group=f"{stamp.category}/{at}",
                        part=stamp.category.partition("/")[0],
                    )

                gathering.add(f"{found.root}/{stamp.key}.png", read, stamp)
        items = gathering.given(f"the stamps in {found.root}")
        return Items(items.items[: self.n or None], items.bad)

    def _fours(self, stamps: Iterable[Stamp]) -> list[list[Stamp]]:
        """Fours of one folder, then of one main folder, whose captions all differ; those left over are not asked."""
        rng = draw("stamps", self.split, self.language, self.seed)
        near, rest = defaultdict[str, list[Stamp]](list), defaultdict[str, list[Stamp]](list)
        for stamp in stamps:
            near[stamp.category].append(stamp)
        fours: list[list[Stamp]] = []
        for category, members in near.items():
            made, left = self._apart(rng.sample(members, len(members)))
            fours += made
            rest[category.partition("/")[0]] += left
        for members in rest.values():
            fours += self._apart(members)[0]
        if not fours:
            raise UserError(f"no four stamps of split {self.split!r} in {self.language!r} are of one category")
        rng.shuffle(fours)
        return fours

    def _apart(self, members: list[Stamp]) -> tuple[list[list[Stamp]], list[Stamp]]:
        """Fours without two captions alike, and who is left."""
        made: list[list[Stamp]] = []
        four: list[Stamp] = []
        left: list[Stamp] = []
        for stamp in members:
            alike = any(stamp.captions[self.language] == one.captions[self.language] for one in four)
            (left if alike else four).append(stamp)
            if len(four) == FOUR:
                made.append(four)
                four = []
        return made, [*four, *left]
