"""Folders of pictures by class, as ImageNet's validation set is kept."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, ClassVar

from pydantic import Field

from sensorium.data.formats.captions import PICTURE_SUFFIXES
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.media import DEFAULT_LIMITS, Limits
from sensorium.errors import UserError
from sensorium.evaluate.item import Items, TaskItem, TaskSource
from sensorium.evaluate.tasks.reading import Gathering, Pictures, shown, text_of, whole, words


class ImageFolder(TaskSource):
    """A folder per class. Every class is an option of every picture, and likelihood decides between them.

    path      the folder of the classes
    names     what classes are called; None: as their folders. A .json {folder: name}, {folder: [names]} or
              {number: [folder, name]} (imagenet_class_index.json), or lines `n01440764 tench, Tinca tinca`
              (LOC_synset_mapping.txt). Of several names the first is the option, each is a right answer; a first name
              that several classes share is written with all of its class's names, or with its folder
    question  what is asked

    Pictures are taken of each class in turn, so that the first n are of many. The part of an item is its class's name.
    """

    title: ClassVar[str] = "image folder"
    metric: ClassVar[str] = "likelihood"
    layout: ClassVar[str] = "a folder per class with pictures: n01440764/ILSVRC2012_val_00000293.JPEG"

    path: str = Field(min_length=1)
    names: str | None = None
    question: str = "What is this?"
    limits: Limits = DEFAULT_LIMITS

    def load(self) -> Items:
        if not os.path.isdir(self.path):
            raise UserError(f"{self.path} is no folder; expected {self.layout}")
        folders = sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name[0] != ".")
        found = Gathering()
        named = self._named(folders, found)
        options = _told_apart(named)
        numbers = {folder: number for number, folder in enumerate(named)}
        if len(numbers) < 2:
            raise UserError(f"{self.path} has {len(numbers)} classes, expected two at least: {self.layout}")
        pictures = Pictures(self.path, self.limits)

        def read(given: Any, where: str) -> TaskItem:
            folder, name = given
            return TaskItem(
                id=f"{folder}/{words(name, 'the name of the file')}",
                question=self.question,
                media=shown(pictures.one(f"{folder}/{name}")),
                options=options,
                answer=numbers[folder],
                answers=named[folder],
                group=f"{folder}/{name}",
                part=options[numbers[folder]],
            )

        for folder, name in _in_turn({folder: self._pictures(folder) for folder in named}):
            found.add(os.path.join(self.path, folder, name), read, (folder, name))
        for folder in named:
            if not self._pictures(folder):
                found.refuse(os.path.join(self.path, folder), "a class without a picture")
        return found.given(f"{self.path} as {self.title}", self.layout)

    def _pictures(self, folder: str) -> list[str]:
        names = os.listdir(os.path.join(self.path, folder))
        return sorted(name for name in names if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES)

    def _named(self, folders: list[str], found: Gathering) -> dict[str, tuple[str, ...]]:
        """The names of each folder; one that the file does not name is refused."""
        if self.names is None:
            return {folder: (folder.replace("_", " "),) for folder in folders}
        given = dict(_read_names(self.names))
        named: dict[str, tuple[str, ...]] = {}
        for folder in folders:
            try:
                if folder not in given:
                    raise BadRow(f"a class that {self.names} does not name")
                named[folder] = given[folder] if self._pictures(folder) else ()
            except BadRow as error:
                found.refuse(os.path.join(self.path, folder), str(error))
        return {folder: given[folder] for folder in named}


def _read_names(path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(folder, names). Raises UserError when the file is of none of the layouts."""
    try:
        if not path.endswith(".json"):
            for line in text_of(path).splitlines():
                folder, space, names = line.strip().replace("\t", " ").partition(" ")
                if folder:
                    yield words(folder, "a folder"), _each(names.split(",") if space else [], folder)
            return
        value = whole(path)
        if not isinstance(value, dict):
            raise BadRow("expected one object of names by folder")
        for folder, names in value.items():
            if folder.isdigit() and isinstance(names, list) and len(names) == 2:
                yield words(names[0], f"the folder of class {folder}"), _each([names[1].replace("_", " ")], folder)
            else:
                yield folder, _each(names if isinstance(names, list) else [names], folder)
    except (BadRow, AttributeError) as error:
        raise UserError(f"{path} does not name classes: {error}") from error


def _each(names: Iterable[Any], folder: str) -> tuple[str, ...]:
    found = tuple(words(name, f"a name of {folder}").strip() for name in names)
    if not found:
        raise BadRow(f"{folder} has no name, found {show(names)}")
    return found


def _told_apart(named: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """One text for each class, no two alike."""
    first = Counter(names[0] for names in named.values())
    whole_names = Counter(", ".join(names) for names in named.values())
    options = []
    for folder, names in named.items():
        joined = ", ".join(names)
        if first[names[0]] == 1:
            options.append(names[0])
        else:
            options.append(joined if whole_names[joined] == 1 and first[joined] <= 1 else f"{joined} ({folder})")
    return tuple(options)


def _in_turn(pictures: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """The first picture of every class, then the second ..."""
    for row in zip_longest(*pictures.values()):
        for folder, name in zip(pictures, row):
            if name is not None:
                yield folder, name
