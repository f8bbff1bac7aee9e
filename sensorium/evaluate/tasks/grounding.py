"""Referring expressions with boxes: RefCOCO, RefCOCO+, RefCOCOg."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import field_validator

from sensorium.data.formats.files import scan
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import id_in, label_in, list_in, member, pixel_box, text_in
from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import Items, TaskItem
from sensorium.evaluate.tasks.pickles import SUFFIXES, is_pickle, plain_pickle
from sensorium.evaluate.tasks.reading import FileTask, Gathering, Pictures, Row, rows_of, shown

EXPRESSION = "{expression}"


class RefCOCO(FileTask):
    """Expressions that point at one object of a picture. Published as instances.json and a pickle of refs, refs(unc).p,
    refs(google).p or refs(umd).p, of which nothing but plain values is read. The layouts:

    {"images": [{id, file_name, width, height}], "annotations": [{id, bbox}], "refs": [{ref_id, ann_id, image_id, split,
        sentences: [{sent_id, sent}]}]}                     one file, or `refs` in a list of its own, JSON or a pickle
    {"images": [{id, file_name, width, height, caption, original_id}], "annotations": [{image_id, bbox}]}
                                                            finetune_refcoco_val.json of MDETR: an image per expression

    path      also the pickle of refs, beside whose instances.json it is read
    refs      the list of refs where it is a file of its own; None: in the file itself, or the refs*.json or refs*.p
              beside it
    split     val, testA, testB, test of refs; None: all. It is the part of an item
    question  what is asked; LLaVA-1.5's words

    A bbox is x, y, width, height in pixels. Expressions about one picture are a group.
    """

    title: ClassVar[str] = "RefCOCO"
    metric: ClassVar[str] = "grounding"
    layout: ClassVar[str] = "instances.json with refs(unc).p, or finetune_refcoco_val.json; pictures in train2014/"
    files: ClassVar[tuple[str, ...]] = ("finetune_refcoco*_val.json", "finetune_refcoco*.json", "instances.json")
    shelves: ClassVar[tuple[str, ...]] = ("train2014", "images")

    refs: str | None = None
    split: str | None = None
    question: str = f"Please provide the bounding box coordinate of the region this sentence describes: {EXPRESSION}"

    @field_validator("question")
    @classmethod
    def _with_expression(cls, question: str) -> str:
        if EXPRESSION not in question:
            raise ValueError(f"expected {EXPRESSION} in it, where the expression stands")
        return question

    def load(self) -> Items:
        if os.path.isfile(self.path) and is_pickle(self.path):
            return self.replace(path=os.path.join(os.path.dirname(self.path), "instances.json"), refs=self.path).load()
        file, found = self.file, Gathering()
        fields: dict[str | None, Any] = {}
        for element in scan(file):
            fields.setdefault(element.field, element.value)
        if not {"images", "annotations"} <= fields.keys():
            raise UserError(f"{file} has no images and annotations; expected {self.layout}")
        first = fields["images"]
        if isinstance(first, dict) and "caption" in first:
            self._load_captioned(file, found)
        else:
            self._load_refs(file, "refs" in fields, found)
        return found.given(f"{file} as {self.title}", self.layout)

    def _load_captioned(self, file: str, found: Gathering) -> None:
        pictures, boxes = self.shelf(), _by_id(file, "annotations", "image_id", found)

        def read(row: Any, where: str) -> TaskItem:
            key = id_in(row, "id")
            if key not in boxes:
                raise BadRow(f"image {key} has no annotation with its box")
            original = id_in(row, "original_id") if "original_id" in row else text_in(row, "file_name")
            part = label_in(row, "dataset_name")
            return self._item(key, text_in(row, "caption"), row, boxes[key], pictures, original, part)

        seen = set[str]()
        for where, row in rows_of(file, "images"):
            seen.add(str(row.get("id")) if isinstance(row, dict) else "")
            found.add(where, read, row)
        for key in boxes.keys() - seen:
            found.refuse(f"{file} image_id {key}", "an annotation of no image of the file")

    def _load_refs(self, file: str, inside: bool, found: Gathering) -> None:
        pictures = self.shelf()
        images = _by_id(file, "images", "id", found)
        boxes = _by_id(file, "annotations", "id", found)
        splits: set[str] = set()

        def read(row: Any, where: str) -> Iterator[TaskItem]:
            split = label_in(row, "split")
            splits.add(split)
            if self.split is not None and split != self.split:
                return
            ref, image, box = (id_in(row, key) for key in ("ref_id", "image_id", "ann_id"))
            if image not in images or box not in boxes:
                raise BadRow(f"ref {ref} is of image {image} and annotation {box}, which {file} does not both have")
            for sentence in list_in(row, "sentences"):
                if not isinstance(sentence, dict):
                    raise BadRow(f"a sentence must be an object with sent and sent_id, found {show(sentence)}")
                key, text = f"{ref}/{id_in(sentence, 'sent_id')}", text_in(sentence, "sent")
                yield self._item(key, text, images[image], boxes[box], pictures, image, split)

        refs = self.refs or (None if inside else _beside(file))
        if not inside and refs is None:
            raise UserError(f"{file} has no refs, and there is no refs*.json or refs*.p beside it: give `refs`")
        rows = rows_of(file, "refs") if refs is None else _pickled(refs) if is_pickle(refs) else rows_of(refs)
        for where, row in rows:
            found.add(where, read, row)
        if self.split is not None and self.split not in splits:
            raise UserError(f"{refs or file} has no split {self.split!r}: {nearest(self.split, splits)}")

    def _item(
        self, key: str, text: str, image: Any, annotation: Any, pictures: Pictures, group: str, part: str
    ) -> TaskItem:
        for row in (image, annotation):
            if isinstance(row, BadRow):
                raise row
        box = pixel_box(member(annotation, "bbox"), member(image, "width"), member(image, "height"))
        return TaskItem(
            id=key,
            question=self.question.replace(EXPRESSION, text.strip()),
            media=shown(pictures.one(text_in(image, "file_name"))),
            boxes=(box,),
            group=group,
            part=part,
            info={"expression": text, "width": image["width"], "height": image["height"]},
        )


def _by_id(file: str, field: str, key: str, found: Gathering) -> dict[str, Any]:
    """{id: row}; an id that is given twice has a BadRow, since nobody knows which is right."""
    rows: dict[str, Any] = {}
    for where, row in rows_of(file, field):
        try:
            if isinstance(row, BadRow):
                raise row
            name = id_in(row, key)
        except BadRow as error:
            found.refuse(where, str(error))
            continue
        rows[name] = BadRow(f"{field}: {key} {name} is given twice") if name in rows else row
    return rows


def _beside(file: str) -> str | None:
    folder = glob.escape(os.path.dirname(file) or ".")
    likely = sorted(path for end in (".json", *SUFFIXES) for path in glob.glob(os.path.join(folder, f"refs*{end}")))
    if len(likely) > 1:
        names = ", ".join(map(os.path.basename, likely))
        raise UserError(f"{os.path.dirname(file) or '.'} has several files of refs ({names}): give one as `refs`")
    return likely[0] if likely else None


def _pickled(path: str) -> Iterator[Row]:
    """The rows of a pickled list."""
    rows = plain_pickle(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of refs, found {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row
