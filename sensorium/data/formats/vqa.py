"""Visual question answering files in the layout of VQA v2 (visualqa.org)."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, field_validator

from sensorium.data.formats.base import FileSource, JsonSource
from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, RowReader, show
from sensorium.errors import UserError
from sensorium.sequence import Sample

QUESTION_KEYS = ("image_id", "question", "question_id", "image", "file_name")
ANNOTATION_KEYS = (
    "image_id", "question_id", "answers", "multiple_choice_answer", "answer", "answer_type", "question_type",
)  # fmt: skip


class Vqa(FileSource):
    """Questions [{image_id, question, question_id}] and annotations [{question_id, multiple_choice_answer, answers}].

    path          the questions file
    annotations   the annotations file; None for a test set: rows then have no answer
    picture_root  the folder of the pictures
    picture_name  file name of an image_id, with one %d, for example COCO_train2014_%012d.jpg; a question with its own
                  `image` or `file_name` does not use it
    instruction   put behind every question, for example "\\nAnswer with a single word or phrase."

    `Sample.info["answers"]` has the annotators' answers, for the metric.
    """

    annotations: str | None = None
    picture_root: str
    picture_name: str = Field(default="COCO_train2014_%012d.jpg")
    instruction: str = ""

    @field_validator("picture_name")
    @classmethod
    def _one_number(cls, name: str) -> str:
        try:
            if name % 1 == name % 2:
                raise TypeError
        except (TypeError, ValueError) as error:
            raise ValueError("expected a file name with one %d, for example COCO_train2014_%012d.jpg") from error
        return name

    def build(self) -> VqaSource:
        return VqaSource(self)


class VqaSource(JsonSource):
    def __init__(self, config: Vqa):
        reader = RowReader(config.picture_root, config.path, config.limits)
        super().__init__(JsonRows(config.path, "questions"), reader)
        self._config = config
        self._answers: JsonRows | None = None
        self._number: dict[int | str, int] = {}
        if config.annotations is not None:
            self._answers = JsonRows(config.annotations, "annotations", key="question_id")
            for number, key in enumerate(self._answers.keys):
                if key is None:
                    raise UserError(f"{self._answers.where(number)}: an annotation without a question_id")
                if key in self._number:
                    raise UserError(f"{self._answers.where(number)}: question_id {key!r} is annotated twice")
                self._number[key] = number

    def read(self, row: dict[str, Any], where: str) -> Sample:
        self.reader.keys(row, QUESTION_KEYS, ("question", "question_id"))
        picture = self.reader.picture(self._picture(row), where)
        key = row["question_id"]
        info: dict[str, Any] = {"question_id": key}
        answer = None
        if self._answers is not None:
            number = self._number.get(key) if isinstance(key, int | str) else None
            if number is None:
                raise BadRow(f"question_id {show(key)} is not in {self._answers.path}")
            found = self._answers.row(number)
            self.reader.keys(found, ANNOTATION_KEYS, (), f"annotation of question {show(key)}")
            answers = _answers(found)
            answer = found.get("multiple_choice_answer", found.get("answer", answers[0] if answers else None))
            if answer is None:
                raise BadRow(f"{self._answers.where(number)} has no multiple_choice_answer, answer or answers")
            info["answers"] = answers or [answer]
        row = {"id": str(key), **row}
        return self.reader.question(row, where, [picture], answer, self._config.instruction, **info)

    def _picture(self, row: dict[str, Any]) -> str:
        named = row.get("image", row.get("file_name"))
        if named is not None:
            return named
        number = row.get("image_id")
        if isinstance(number, bool) or not isinstance(number, int):
            raise BadRow(f"a question needs image_id (a number), image or file_name; image_id is {show(number)}")
        return self._config.picture_name % number


def _answers(annotation: dict[str, Any]) -> list[str]:
    """The annotators' answers: [{"answer": ...}, ...] in VQA v2, plain texts elsewhere."""
    given = annotation.get("answers") or []
    if not isinstance(given, list):
        raise BadRow(f"answers must be a list, found {show(given)}")
    return [str(item.get("answer", "")) if isinstance(item, dict) else str(item) for item in given]


def picture_name(root: str, subtype: str, image_id: int) -> str | None:
    """The naming of pictures in `root`, found by looking for one of them: COCO's two namings and the plain number."""
    for name in (f"COCO_{subtype}_%012d.jpg", "%012d.jpg", "%d.jpg", "%d.png"):
        if os.path.exists(os.path.join(root, name % image_id)):
            return name
    return None
