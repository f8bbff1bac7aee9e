"""Captions: COCO, NoCaps, Flickr30K, in every layout they are published in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

from sensorium.data.formats.files import first_character, scan
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import hint_in, id_in, list_in, member, text_in, texts_in, words
from sensorium.errors import UserError
from sensorium.evaluate.item import Items, TaskItem
from sensorium.evaluate.tasks.reading import FileTask, Gathering, Row, rows_of, shown, text_of


class CaptionTask(FileTask):
    """Pictures with the captions that people gave them. The file's content says which layout it has:

    {"images": [{id, file_name}], "annotations": [{image_id, caption}]}   captions_val2014.json, NoCaps (its `domain` is
                                                                          the part)
    {"images": [{filename, filepath, split, sentences: [{raw}]}]}         dataset_coco.json, dataset_flickr30k.json
    [{image, caption: [...]}]                                             coco_karpathy_test.json
    1000092795.jpg#0<tab>Two young guys ...                               results_20130124.token of Flickr30K

    split     of a file that has several; None: all of it
    only      a file of picture names, one a line: no other picture is asked for
    question  what is asked; LLaVA-1.5's words for captions
    """

    title: ClassVar[str] = "captions"
    metric: ClassVar[str] = "cider"
    layout: ClassVar[str] = (
        "captions_val2014.json, nocaps_val_4500_captions.json, dataset_coco.json, coco_karpathy_test.json or "
        "results_20130124.token, and a folder of pictures"
    )
    files: ClassVar[tuple[str, ...]] = (
        "captions_val*.json", "nocaps_val*captions.json", "dataset_*.json", "*karpathy_test*.json", "*.token",
    )  # fmt: skip
    shelves: ClassVar[tuple[str, ...]] = ("val2014", "val2017", "flickr30k-images", "images")

    split: str | None = None
    only: str | None = None
    question: str = "Provide a one-sentence caption for the provided image."

    def load(self) -> Items:
        found, pictures, file = Gathering(), self.shelf(), self.file
        chosen, asked = self._chosen(), set[str]()

        def read(given: Any, where: str) -> TaskItem | list[TaskItem]:
            if isinstance(given, BadRow):
                raise given
            key, names, captions, part = given
            if chosen is not None and os.path.basename(names[0]) not in chosen:
                return []
            picture = pictures.first(names)
            path = str(picture.path)
            if path in asked:
                raise BadRow(f"the picture {path} is named twice")
            asked.add(path)
            if not captions:
                raise BadRow(f"the picture {names[0]} has no caption")
            return TaskItem(
                id=key, question=self.question, media=shown(picture), answers=captions, group=key, part=part
            )

        for where, given in self._rows(file, found):
            found.add(where, read, given)
        return found.given(f"{file} as {self.title}", self.layout)

    def _chosen(self) -> frozenset[str] | None:
        if self.only is None:
            return None
        names = [line.strip() for line in text_of(self.only).splitlines() if line.strip()]
        return frozenset(name if os.path.splitext(name)[1] else f"{name}.jpg" for name in names)

    def _rows(self, file: str, found: Gathering) -> Iterator[Row]:
        """(id, names the picture may have, captions, part) of every picture."""
        start = first_character(file)
        if start == "[":
            return _listed(file)
        if start != "{":
            return _token_lines(file, found)
        first = next((one.value for one in scan(file) if one.field == "images"), None)
        if isinstance(first, dict) and "sentences" in first:
            return _karpathy(file, self.split)
        return _coco(file, found)


def _coco(file: str, found: Gathering) -> Iterator[Row]:
    captions: dict[str, list[str]] = {}
    for where, row in rows_of(file, "annotations"):
        try:
            if isinstance(row, BadRow):
                raise row
            captions.setdefault(id_in(row, "image_id"), []).append(text_in(row, "caption"))
        except BadRow as error:
            found.refuse(where, str(error))
    known = set[str]()
    for where, row in rows_of(file, "images"):
        try:
            if isinstance(row, BadRow):
                raise row
            key = id_in(row, "id")
            if key in known:
                raise BadRow(f"the image id {key} is given twice")
            known.add(key)
            name = f"{id_in(row, 'open_images_id')}.jpg" if "file_name" not in row else text_in(row, "file_name")
            yield where, (key, [name], tuple(captions.get(key, ())), hint_in(row, "domain"))
        except BadRow as error:
            yield where, error
    for key in captions.keys() - known:
        found.refuse(f"{file} image_id {key}", f"{len(captions[key])} captions of no image of the file")


def _karpathy(file: str, split: str | None) -> Iterator[Row]:
    for where, row in rows_of(file, "images"):
        try:
            if isinstance(row, BadRow):
                raise row
            part = hint_in(row, "split")
            if split is not None and part != split:
                continue
            name = text_in(row, "filename")
            texts = tuple(text_in(one, "raw") for one in list_in(row, "sentences") if _is_object(one))
            yield where, (id_in(row, "imgid"), _under(hint_in(row, "filepath"), name), texts, part)
        except BadRow as error:
            yield where, error


def _is_object(value: Any) -> bool:
    if not isinstance(value, dict):
        raise BadRow(f"a sentence must be an object with raw, found {show(value)}")
    return True


def _listed(file: str) -> Iterator[Row]:
    for where, row in rows_of(file):
        try:
            if isinstance(row, BadRow):
                raise row
            name = text_in(row, "image")
            texts = (text_in(row, "caption"),) if isinstance(member(row, "caption"), str) else texts_in(row, "caption")
            yield where, (name, _under(*os.path.split(name)), texts, "")
        except BadRow as error:
            yield where, error


def _under(folder: str, name: str) -> list[str]:
    return [name, os.path.join(folder, name)] if folder else [name]


def _token_lines(file: str, found: Gathering) -> Iterator[Row]:
    """Lines `picture#number<tab>caption`; the captions of a picture need not stand together."""
    captions: dict[str, dict[str, str]] = {}
    first: dict[str, str] = {}
    lines = text_of(file).splitlines()
    if not any("#" in line.split("\t")[0] and "\t" in line for line in lines):
        raise UserError(f"{file}: no line is of the form picture.jpg#0<tab>caption")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            place, tab, text = line.partition("\t")
            name, mark, which = place.rpartition("#")
            if not tab or not mark:
                raise BadRow(f"expected picture.jpg#0<tab>caption, found {show(line)}")
            kept = captions.setdefault(words(name, "the picture's name"), {})
            if which in kept:
                raise BadRow(f"caption {which} of the picture {name} is given twice")
            kept[which] = words(text, "the caption").strip()
            first.setdefault(name, where)
        except BadRow as error:
            found.refuse(where, str(error))
    for name, kept in captions.items():
        if kept:
            yield first[name], (name, [name], tuple(kept.values()), "")
