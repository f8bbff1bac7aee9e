"""Questions whose answer is yes or no, and statements that are true or false: MME, POPE, NLVR2, VSR."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from sensorium.data.formats.captions import PICTURE_SUFFIXES
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import id_in, label_in, member, text_in, words
from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import PLACE, Items, TaskItem
from sensorium.evaluate.metrics.yesno import MME_TASKS
from sensorium.evaluate.tasks.reading import ONE_WORD, FileTask, Gathering, Pictures, rows_of, shown, text_of


class MME(FileTask):
    """A folder per task with pictures and texts of the same name, of two lines `question<tab>Yes` (arXiv 2306.13394).

    Both published layouts: pictures and texts together, or in images/ and questions_answers_YN/. A picture whose text
    is not two questions is a bad row: accuracy+ asks for both. The part of an item is its task, its group its picture.

    path   the folder of the tasks
    tasks  those that are asked; empty: all there are
    """

    title: ClassVar[str] = "MME"
    metric: ClassVar[str] = "mme"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = (
        "folders existence/, count/, posters/ ... with 000000006040.jpg and .txt, or images/ and questions_answers_YN/"
    )

    tasks: tuple[str, ...] = ()

    def load(self) -> Items:
        found = Gathering()
        if not os.path.isdir(self.path):
            raise UserError(f"{self.path} is no folder; expected {self.layout}")
        there = sorted(name for name in os.listdir(self.path) if os.path.isdir(os.path.join(self.path, name)))
        missing = [task for task in self.tasks if task not in there]
        if missing:
            raise UserError(f"{self.path} has no task {', '.join(missing)}; it has {', '.join(there) or 'none'}")
        for task in self.tasks or there:
            self._task(task, found)
        return found.given(f"{self.path} as {self.title}", self.layout)

    def _task(self, task: str, found: Gathering) -> None:
        folder = os.path.join(self.path, task)
        apart = os.path.isdir(os.path.join(folder, "questions_answers_YN"))
        texts = os.path.join(folder, "questions_answers_YN") if apart else folder
        pictures = Pictures(os.path.join(folder, "images") if apart else folder, self.limits)

        def read(stem: Any, where: str) -> list[TaskItem]:
            picture = pictures.first(stem + suffix for suffix in (".jpg", ".png", ".jpeg", ".JPG"))
            lines = [line for line in _text(where).split("\n") if line.strip()]
            if len(lines) != 2:
                raise BadRow(f"a picture of {self.title} has two questions, this has {len(lines)}")
            items = []
            for number, line in enumerate(lines, 1):
                question, tab, answer = line.rpartition("\t")
                if not tab or answer.strip().lower() not in ("yes", "no"):
                    raise BadRow(f"line {number}: expected question<tab>Yes or No, found {show(line)}")
                items.append(
                    TaskItem(
                        id=f"{task}/{stem}/{number}",
                        question=words(question, f"line {number}").strip(),
                        media=shown(picture),
                        answers=(answer.strip().capitalize(),),
                        group=f"{task}/{stem}",
                        part=task,
                    )
                )
            return items

        stems = sorted(os.path.splitext(name)[0] for name in os.listdir(texts) if name.endswith(".txt"))
        if stems and task.lower() not in {known.lower() for known in MME_TASKS}:
            found.refuse(folder, f"no task of {self.title} is called {task!r}: {nearest(task, MME_TASKS)}")
            return
        for stem in stems:
            found.add(os.path.join(texts, f"{stem}.txt"), read, stem)
        if not stems:  # a folder of something else
            return
        for name in sorted(os.listdir(pictures.folder) if os.path.isdir(pictures.folder) else []):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PICTURE_SUFFIXES and stem not in stems:
                found.refuse(os.path.join(pictures.folder, name), f"a picture without {stem}.txt")


def _text(path: str) -> str:
    try:
        return text_of(path)
    except UserError as error:
        raise BadRow(str(error)) from error


SETTING = re.compile(r"random|popular|adversarial")


class POPE(FileTask):
    """JSON Lines {question_id, image, text, label} of three settings (arXiv 2305.10355).

    path   one file, or a folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json

    The part of an item is its setting, its group its picture: six questions are about each.
    """

    title: ClassVar[str] = "POPE"
    metric: ClassVar[str] = "pope"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and val2014/"
    parts: ClassVar[tuple[str, ...]] = ("*adversarial*.json*", "*popular*.json*", "*random*.json*")
    shelves: ClassVar[tuple[str, ...]] = ("val2014", "images")

    def load(self) -> Items:
        pictures = self.shelf()

        def read(part: str, number: int, row: Any) -> TaskItem:
            name, label = text_in(row, "image"), text_in(row, "label").strip().lower()
            if label not in ("yes", "no"):
                raise BadRow(f"label must be yes or no, found {show(row['label'])}")
            key = id_in(row, "question_id")
            return TaskItem(
                id=f"{part}/{key}" if part else key,
                question=text_in(row, "text"),
                media=shown(pictures.one(name)),
                answers=(label,),
                group=name,
                part=part,
            )

        return self.gathered_parts(_setting, read)


def _setting(name: str) -> str:
    found = SETTING.search(name)
    return found[0] if found else ""


STATEMENT = "{statement}"
TRUE_OR_FALSE = "Answer with True or False."


class NLVR2(FileTask):
    """JSON Lines {identifier, sentence, label}: a sentence about two pictures, true or false (arXiv 1811.00491).

    The pictures of dev-850-0-1 are dev-850-0-img0.png (left) and dev-850-0-img1.png; those of train lie in a folder by
    their row's `directory`. Sentences about one pair are a group.

    question  what is asked; no prompt was published
    """

    title: ClassVar[str] = "NLVR2"
    metric: ClassVar[str] = "exact"
    asks: ClassVar[str] = TRUE_OR_FALSE
    layout: ClassVar[str] = "dev.json and dev/ with pictures dev-850-0-img0.png and dev-850-0-img1.png"
    files: ClassVar[tuple[str, ...]] = ("dev.json", "test1.json", "*.json")
    shelves: ClassVar[tuple[str, ...]] = ("dev", "test1", "images")

    question: str = f"Left: {PLACE} Right: {PLACE} Is this statement about the two pictures true or false? {STATEMENT}"

    def load(self) -> Items:
        pictures = self.shelf()

        def read(row: Any, where: str) -> TaskItem:
            key, label = id_in(row, "identifier"), str(member(row, "label")).strip().capitalize()
            if label not in ("True", "False"):
                raise BadRow(f"label must be True or False, found {show(row['label'])}")
            pair, dash, _ = key.rpartition("-")
            if not dash:
                raise BadRow(f"an identifier is of the form dev-850-0-1, found {show(key)}")
            folder = str(row.get("directory", ""))
            sides = [
                pictures.first(dict.fromkeys((f"{pair}-img{side}.png", os.path.join(folder, f"{pair}-img{side}.png"))))
                for side in (0, 1)
            ]
            return TaskItem(
                id=key,
                question=self.question.replace(STATEMENT, text_in(row, "sentence")),
                media=shown(*sides),
                answers=(label,),
                group=pair,
                info={"sentence": row["sentence"]},
            )

        return self.gathered(rows_of(self.file), read)


class VSR(FileTask):
    """JSON Lines {image, caption, label, relation}: a sentence about places, true or false (arXiv 2205.00363).

    The part of an item is its relation. The question is InstructBLIP's (arXiv 2305.06500, appendix).
    """

    title: ClassVar[str] = "VSR"
    metric: ClassVar[str] = "exact"
    asks: ClassVar[str] = TRUE_OR_FALSE
    layout: ClassVar[str] = "test.jsonl (or dev.jsonl) and images/ with COCO's pictures 000000050403.jpg"
    files: ClassVar[tuple[str, ...]] = ("test.jsonl", "dev.jsonl", "*.jsonl")
    shelves: ClassVar[tuple[str, ...]] = ("images", "trainval2017", "train2017")

    question: str = f"Based on the image, is this statement true or false? {STATEMENT}"

    def load(self) -> Items:
        pictures = self.shelf()

        def read(row: Any, where: str) -> TaskItem:
            name, caption, label = text_in(row, "image"), text_in(row, "caption"), member(row, "label")
            if isinstance(label, bool) or label not in (0, 1):
                raise BadRow(f"label must be 0 or 1, found {show(label)}")
            return TaskItem(
                id=f"{name}/{caption}",
                question=self.question.replace(STATEMENT, caption),
                media=shown(pictures.one(name)),
                answers=("True" if label else "False",),
                group=name,
                part=label_in(row, "relation"),
            )

        return self.gathered(rows_of(self.file), read)
