"""Questions and answers in one flat row, as `sensorium eval --task` reads them: one file trains and another asks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sensorium.data.formats.base import FileSource, JsonSource
from sensorium.data.formats.chat import reader_of
from sensorium.data.formats.files import JsonRows
from sensorium.data.formats.rows import BadRow, show
from sensorium.data.formats.values import list_in, options_of, picked, text_or_number
from sensorium.sequence import Sample

KEYS = ("image", "images", "question", "answer", "answers", "choices", "id", "group", "part")


class QuestionJsonl(FileSource):
    """One question a row, as JSON Lines or one JSON array: {"image" or "images", "question", "answer"}.

    question  `<image>` is the place of a picture; pictures without one stand before the question
    answer    text or a number; with "choices" the text of one of them, its letter ("B") or its number from 0
    answers   several right ones: what is trained is the one that is given most often, of equals the first

    picture_root  folder that relative picture paths start from; None: the folder of the file
    """

    picture_root: str | None = None

    def build(self) -> QuestionSource:
        return QuestionSource(self)


class QuestionSource(JsonSource):
    def __init__(self, config: QuestionJsonl):
        super().__init__(JsonRows(config.path), reader_of(config.path, config.picture_root, config.limits))

    def read(self, row: dict[str, Any], where: str) -> Sample:
        self.reader.keys(row, KEYS, ("question",))
        question = row["question"]
        if not isinstance(question, str) or not question.strip():
            raise BadRow(f"question must be text that is not empty, found {show(question)}")
        if row.get("image") is not None and row.get("images") is not None:
            raise BadRow("both image and images: give one of them")
        given = row.get("images", row.get("image"))
        pictures = given if isinstance(given, list) else [] if given is None else [given]
        if "<image>" not in question:
            question = "<image>" * len(pictures) + question
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer_of(row)}]
        known = {"id": row["id"]} if "id" in row else {}
        return self.reader.chat({"messages": turns, "images": pictures, **known}, where)


def answer_of(row: dict[str, Any]) -> str:
    """What is trained. Raises BadRow."""
    if row.get("answers") is not None and row.get("answer") is None:
        (answer, _), *_ = Counter(text_or_number(one, "an answer") for one in list_in(row, "answers")).most_common(1)
        return answer
    if row.get("answer") is None:
        raise BadRow("neither answer nor answers: without one there is nothing to learn")
    if row.get("choices") is None:
        return text_or_number(row["answer"], "answer")
    options = options_of(list_in(row, "choices"))
    return options[picked(row["answer"], options)]
