"""Open questions about one picture: VQAv2, OK-VQA, GQA, TextVQA, DocVQA, ChartQA."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from sensorium.data.formats.files import scan
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import id_in, label_in, list_in, member, proper, text_in, texts_in, words
from sensorium.errors import UserError
from sensorium.evaluate.item import Items, TaskItem
from sensorium.evaluate.tasks.reading import ONE_WORD, FileTask, Gathering, keyed, rows_of, shown

SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".JPEG", ".gif")


class VQAv2(FileTask):
    """Questions {"questions": [{image_id, question, question_id}]} and ten annotators' answers (visualqa.org).

    annotations   {"annotations": [{question_id, image_id, answers: [{answer, ...}], answer_type, question_type}]};
                  None: the file beside the questions that is called as published
    picture_name  file name of an image_id, with one %d; None: COCO's names, and the plain number

    The part of an item is its answer type (yes/no, number, other), by which the benchmark is reported.
    """

    title: ClassVar[str] = "VQAv2"
    metric: ClassVar[str] = "vqa"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = (
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and val2014/ with pictures "
        "COCO_val2014_000000000042.jpg"
    )
    files: ClassVar[tuple[str, ...]] = ("*val*questions.json", "*questions*.json")
    shelves: ClassVar[tuple[str, ...]] = ("val2014", "val2017", "train2014", "images")
    part_key: ClassVar[str] = "answer_type"

    annotations: str | None = None
    picture_name: str | None = None

    def load(self) -> Items:
        found = Gathering()
        pictures, names = self.shelf(), _names(self.file, self.picture_name)
        kinds, annotated = self._annotated(found)
        asked: set[str] = set()

        def read(row: Any, where: str) -> TaskItem:
            key = id_in(row, "question_id")
            asked.add(key)
            if key not in annotated:
                raise BadRow(f"question_id {key} has no annotation")
            annotation = annotated[key]
            if isinstance(annotation, BadRow):
                raise annotation
            number = member(row, "image_id")
            if isinstance(number, bool) or not isinstance(number, int):
                raise BadRow(f"image_id must be a number, found {show(number)}")
            if annotation.get("image_id", number) != number:
                raise BadRow(f"image_id is {number}, its annotation has {show(annotation['image_id'])}")
            return TaskItem(
                id=key,
                question=text_in(row, "question"),
                media=shown(pictures.first(name % number for name in names)),
                answers=_answers(annotation),
                group=str(number),
                part=kinds.get(label_in(annotation, self.part_key), label_in(annotation, self.part_key)),
                info={"question_type": label_in(annotation, "question_type")},
            )

        for where, row in rows_of(self.file, "questions"):
            found.add(where, read, row)
        for key in annotated.keys() - asked:
            found.refuse(f"{self._annotations} question_id {key}", "an annotation of no question")
        return found.given(f"{self.file} as {self.title}", self.layout)

    @property
    def _annotations(self) -> str:
        if self.annotations is not None:
            return self.annotations
        folder, name = os.path.split(self.file)
        beside = os.path.join(folder, name.replace("OpenEnded_", "").replace("questions", "annotations"))
        if beside == self.file or not os.path.exists(beside):
            raise UserError(f"{self.file} needs its answers: give `annotations` (looked for {beside})")
        return beside

    def _annotated(self, found: Gathering) -> tuple[dict[str, str], dict[str, Any]]:
        """Names of the parts where the file has them, and {question_id: annotation}."""
        annotated: dict[str, Any] = {}
        for where, row in rows_of(self._annotations, "annotations"):
            try:
                if isinstance(row, BadRow):
                    raise row
                key = id_in(row, "question_id")
            except BadRow as error:
                found.refuse(where, str(error))
                continue
            annotated[key] = BadRow(f"question_id {key} is annotated twice") if key in annotated else row
        return self._kinds(), annotated

    def _kinds(self) -> dict[str, str]:
        """Names of what the parts are called by."""
        return {}


class OKVQA(VQAv2):
    """OK-VQA: the layout of VQAv2, with the kinds of knowledge named in `question_types`; they are the parts."""

    title: ClassVar[str] = "OK-VQA"
    part_key: ClassVar[str] = "question_type"
    layout: ClassVar[str] = (
        "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json and val2014/ with COCO's pictures"
    )

    def _kinds(self) -> dict[str, str]:
        kinds = next((one.value for one in scan(self._annotations) if one.field == "question_types"), None)
        return {key: str(name) for key, name in kinds.items()} if isinstance(kinds, dict) else {}


def _names(path: str, given: str | None) -> list[str]:
    """How a picture may be called, by its number."""
    if given is not None:
        try:
            if given % 1 == given % 2:
                raise TypeError
        except (TypeError, ValueError) as error:
            raise UserError(f"picture_name {given!r}: expected one %d, as in COCO_val2014_%012d.jpg") from error
        return [given]
    subtype = next((one.value for one in scan(path) if one.field == "data_subtype"), None)
    coco = [f"COCO_{subtype.replace('%', '')}_%012d.jpg"] if isinstance(subtype, str) else []
    return [*coco, "COCO_val2014_%012d.jpg", "%012d.jpg", "%d.jpg", "%d.png"]


def _answers(annotation: Any) -> tuple[str, ...]:
    """The annotators' answers: objects as published, or plain texts."""
    given = list_in(annotation, "answers")
    answers = tuple(
        proper(member(one, "answer") if isinstance(one, dict) else one, f"answer {number}")
        for number, one in enumerate(given, 1)
    )
    if not any(answers):  # one annotator may have said nothing, and counts as one of the ten
        raise BadRow("every answer is empty")
    return answers


class GQA(FileTask):
    """Questions {id: {imageId, question, answer, types: {structural, ...}}} (Hudson and Manning 2019).

    The part of an item is the structural type of its question: verify, query, choose, logical, compare.
    """

    title: ClassVar[str] = "GQA"
    metric: ClassVar[str] = "exact"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = "testdev_balanced_questions.json and images/ with pictures 2354786.jpg"
    files: ClassVar[tuple[str, ...]] = ("testdev_balanced_questions.json", "*_questions.json")
    shelves: ClassVar[tuple[str, ...]] = ("images",)

    def load(self) -> Items:
        pictures = self.shelf()

        def read(given: Any, where: str) -> TaskItem:
            key, row = given
            if isinstance(row, BadRow):
                raise row
            picture = id_in(row, "imageId")
            types = row.get("types")
            return TaskItem(
                id=key,
                question=text_in(row, "question"),
                media=shown(pictures.first(picture + suffix for suffix in (".jpg", ".png", ".jpeg"))),
                answers=(text_in(row, "answer"),),
                group=picture,
                part=label_in(types, "structural") if isinstance(types, dict) else "",
                info={"full_answer": row["fullAnswer"]} if isinstance(row.get("fullAnswer"), str) else {},
            )

        return self.gathered(((where, (key, row)) for where, key, row in keyed(self.file)), read)


class TextVQA(FileTask):
    """TextVQA 0.5.1: {"data": [{question, question_id, image_id, answers: ten texts}]} (textvqa.org).

    ocr   the published file of tokens that were read in the pictures ({"data": [{image_id, ocr_tokens}]}); they are
          put behind the question as LLaVA-1.5 was asked. None: the question alone
    """

    title: ClassVar[str] = "TextVQA"
    metric: ClassVar[str] = "vqa"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = "TextVQA_0.5.1_val.json and train_images/ with pictures 003a8ae2ef43b901.jpg"
    files: ClassVar[tuple[str, ...]] = ("TextVQA_0.5.1_val.json", "TextVQA_*.json")
    shelves: ClassVar[tuple[str, ...]] = ("train_images", "train_val_images", "images")

    ocr: str | None = None

    def load(self) -> Items:
        pictures, tokens = self.shelf(), self._tokens()

        def read(row: Any, where: str) -> TaskItem:
            picture = id_in(row, "image_id")
            question = text_in(row, "question")
            if tokens is not None:
                if picture not in tokens:
                    raise BadRow(f"image_id {picture} has no tokens in {self.ocr}")
                question += f"\nReference OCR token: {', '.join(tokens[picture])}"
            return TaskItem(
                id=id_in(row, "question_id"),
                question=question,
                media=shown(pictures.first((f"{picture}.jpg", f"{picture}.png"))),
                answers=_answers(row),
                group=picture,
            )

        return self.gathered(rows_of(self.file, "data"), read)

    def _tokens(self) -> dict[str, list[str]] | None:
        if self.ocr is None:
            return None
        tokens: dict[str, list[str]] = {}
        for where, row in rows_of(self.ocr, "data"):
            try:
                if isinstance(row, BadRow):
                    raise row
                read = member(row, "ocr_tokens")
                if not isinstance(read, list):
                    raise BadRow(f"ocr_tokens must be a list, found {show(read)}")
                tokens[id_in(row, "image_id")] = [words(token, "a token") for token in read]
            except BadRow as error:
                raise UserError(f"{where}: {error}") from error
        return tokens


class DocVQA(FileTask):
    """The challenge's files {"data": [{questionId, question, image, docId, answers, question_types}]} (docvqa.org).

    InfographicVQA's are the same with `image_local_name`. The part of an item is its first question type; questions
    about one document are a group.
    """

    title: ClassVar[str] = "DocVQA"
    metric: ClassVar[str] = "anls"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = "val_v1.0.json (or val_v1.0_withQT.json) and documents/ with pictures"
    files: ClassVar[tuple[str, ...]] = ("val_v1.0_withQT.json", "val_v1.0.json", "*val*.json")

    def load(self) -> Items:
        pictures = self.shelf()

        def read(row: Any, where: str) -> TaskItem:
            local = "image_local_name" in row
            name = text_in(row, "image_local_name" if local else "image")
            likely = (name, os.path.join("images", name), os.path.basename(name))
            kinds = row.get("question_types", row.get("operation/reasoning"))
            first = {"question type": kinds[0] if isinstance(kinds, list) and kinds else ""}
            return TaskItem(
                id=id_in(row, "questionId"),
                question=text_in(row, "question"),
                media=shown(pictures.first(likely)),
                answers=texts_in(row, "answers"),
                group=name if row.get("docId") is None else id_in(row, "docId"),
                part=label_in(first, "question type"),
            )

        return self.gathered(rows_of(self.file, "data"), read)


class ChartQA(FileTask):
    """Lists [{imgname, query, label}] of questions by people and of machine-made ones (arXiv 2203.10244).

    path   one file, or a folder with test_human.json and test_augmented.json: they are the parts
    """

    title: ClassVar[str] = "ChartQA"
    metric: ClassVar[str] = "relaxed"
    asks: ClassVar[str] = ONE_WORD
    layout: ClassVar[str] = "test_human.json, test_augmented.json and png/ with pictures"
    parts: ClassVar[tuple[str, ...]] = ("test_human.json", "test_augmented.json")
    shelves: ClassVar[tuple[str, ...]] = ("png", "images")

    def load(self) -> Items:
        pictures = self.shelf()

        def read(part: str, number: int, row: Any) -> TaskItem:
            name = text_in(row, "imgname")
            label = member(row, "label")
            label = str(label) if isinstance(label, int | float) and not isinstance(label, bool) else label
            return TaskItem(
                id=f"{part}/{number}",  # questions have no ids of their own
                question=text_in(row, "query"),
                media=shown(pictures.first(name + suffix for suffix in SUFFIXES)),
                answers=(words(label, "label"),),
                group=name,
                part=part,
            )

        return self.gathered_parts(lambda name: os.path.splitext(name)[0].rsplit("_", 1)[-1], read)
