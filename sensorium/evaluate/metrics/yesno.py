"""Questions answered by yes or no: POPE, and the tasks of MME."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import TaskItem
from sensorium.evaluate.metrics.base import Metric, Score, words_of
from sensorium.evaluate.result import Table
from sensorium.evaluate.statistics import Floats
from sensorium.infer.likelihoods import Likelihoods

_YES_NO = re.compile(r"\b(yes|no)\b")
_DENIED = re.compile(r"\b(?:not|cannot|never|none|neither|nothing|nobody)\b|n't\b|\bthere (?:is|are) no\b")
_STATED = re.compile(r"^(?:there (?:is|are)|it is|it's|i (?:can )?see|that is (?:correct|right|true)|correct|true)\b")
_UNSURE = re.compile(
    r"\b(?:not sure|unsure|unclear|uncertain|cannot (?:tell|determine|say|answer)|can't (?:tell|determine|say|answer)"
    r"|do(?:n't| not) know|unable|maybe|perhaps|sorry|not (?:clear|possible|certain))\b"
)
_MARKUP = re.compile(r"[*_`\"“”]|</?[a-z]+>")


def yes_or_no(said: str) -> bool | None:
    """What an answer says: True for yes. None where it says neither, both, or that it cannot tell.

    The first word decides; then the only one of yes and no in the first sentence; then, in a sentence that has neither,
    a denial (`The picture does not show a dog`) or a plain statement (`There is a dog`).
    """
    text = _MARKUP.sub("", said).replace("’", "'").strip().lower()
    text = re.sub(r"^(?:the )?(?:final )?answer(?: is)?\s*[:：]?\s*", "", text)
    sentence = re.split(r"[.!?\n。！？]", text, maxsplit=1)[0].strip()
    words = _YES_NO.findall(sentence)
    opening = re.match(r"\W*(yes|no)\b", sentence)
    if opening:
        joined = re.match(r"\W*(?:yes|no)\W*(?:or|and|/)\W*(?:yes|no)\b", sentence)
        return None if joined or re.match(r"\W*(?:yes|no)\W*/", sentence) else opening[1] == "yes"
    if _UNSURE.search(sentence):
        return None
    denied = _DENIED.search(sentence) is not None
    if len(set(words)) == 1:
        return None if words[0] == "yes" and denied else words[0] == "yes"
    if words:
        return None
    if denied:
        return False
    return True if _STATED.search(sentence) else None


def _right(item: TaskItem) -> bool:
    """The right answer of an item. Raises UserError where it is neither yes nor no."""
    if not item.answers and item.options and item.answer is not None:
        word = item.options[item.answer]
    else:
        word = item.answers[0] if item.answers else ""
    plain = word.strip().strip(".").lower()
    if plain not in ("yes", "no"):
        raise UserError(
            f"item {item.id} has the answer {word!r}; this metric is for questions whose answer is yes or no"
        )
    return plain == "yes"


class YesNo(Metric):
    """What metrics of yes-no questions share: parsed is true, false, or None where neither is said."""

    def parse(self, said: str | Likelihoods, item: TaskItem) -> bool | None:
        return yes_or_no(words_of(said))

    def prompt(self, item: TaskItem) -> str:
        return "Please answer yes or no."


class Pope(YesNo):
    """POPE (Li et al. 2023, arXiv 2305.10355, section 5.1): is an object in the picture, where yes is positive.

    An answer that says neither is wrong, and no yes. Precision without a single yes is 0.
    Statistics: true positives, false positives, true negatives, positives, items.
    """

    names = (Score("accuracy"), Score("precision"), Score("recall"), Score("F1"), Score("yes rate"))

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        rows = []
        for item, said in zip(items, parsed):
            right = _right(item)
            rows.append((said is True and right, said is True and not right, said is False and not right, right, True))
        return np.array(rows, dtype=np.float64).reshape(-1, 5)

    def scores(self, sums: Floats) -> Floats:
        true, false, negative, positives, asked = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
        said = true + false
        precision = np.where((said == 0) & (positives > 0), 0.0, _ratio(true, said))
        f1 = _ratio(2 * true, said + positives)
        found = (_ratio(true + negative, asked), precision, _ratio(true, positives), f1, _ratio(said, asked))
        return np.stack(found, axis=-1)

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        return 0.5


def _ratio(one: Floats, other: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return one / other


PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_TASKS = (*PERCEPTION, *COGNITION)


class Mme(YesNo):
    """MME (Fu et al. 2023, arXiv 2306.13394, section 2.3): 14 tasks (`item.part`), two questions for each picture.

    A task scores its accuracy plus accuracy+ (pictures with every question right), both in percent, at most 200;
    perception, cognition and the total are sums over tasks. Questions of a picture share `item.group`.
    Statistics: for each of MME_TASKS questions right, questions, pictures right, pictures (on their first question).
    """

    names = (
        Score("MME total", percent=False), Score("MME perception", percent=False),
        Score("MME cognition", percent=False), Score("accuracy"), Score("accuracy+"),
    )  # fmt: skip

    def statistics(self, items: Sequence[TaskItem], parsed: Sequence[Any]) -> Floats:
        rows = np.zeros((len(items), len(MME_TASKS), 4))
        pictures: dict[tuple[int, str], list[int]] = {}
        for index, (item, said) in enumerate(zip(items, parsed)):
            task = _task(item)
            rows[index, task, 0], rows[index, task, 1] = said is not None and said == _right(item), 1
            pictures.setdefault((task, item.group or item.id), []).append(index)
        for (task, _), questions in pictures.items():
            rows[questions[0], task, 2:] = rows[questions, task, 0].all(), 1
        return rows.reshape(len(items), -1)

    def scores(self, sums: Floats) -> Floats:
        counts = np.asarray(sums, dtype=np.float64).reshape(*sums.shape[:-1], len(MME_TASKS), 4)
        tasks = 100 * (_ratio(counts[..., 0], counts[..., 1]) + _ratio(counts[..., 2], counts[..., 3]))
        asked = counts[..., 1] > 0
        points = np.where(asked, np.nan_to_num(tasks), 0.0)

        def total(part: slice) -> Floats:
            return np.where(asked[..., part].any(-1), points[..., part].sum(-1), np.nan)

        right, number, pairs, pictures = np.moveaxis(counts.sum(-2), -1, 0)
        first = len(PERCEPTION)
        found = (total(slice(None)), total(slice(first)), total(slice(first, None)))
        return np.stack([*found, _ratio(right, number), _ratio(pairs, pictures)], axis=-1)

    def single(self, rows: Floats) -> Floats:
        """1 or 0: whether the question is answered rightly."""
        return rows.reshape(len(rows), -1, 4)[..., 0].sum(-1)

    def chance(self, items: Sequence[TaskItem]) -> float | None:
        """Of the total: half of the questions and a quarter of the pictures of every task."""
        return 75.0 * len({item.part.lower() for item in items})

    def tables(self, items: Sequence[TaskItem], rows: Floats) -> list[Table]:
        cells = []
        for task, counts in zip(MME_TASKS, rows.sum(0).reshape(-1, 4)):
            if counts[1]:
                one, both = counts[0] / counts[1], counts[2] / counts[3]
                cells.append((task, f"{int(counts[1])}", f"{one:.1%}", f"{both:.1%}", f"{100 * (one + both):.1f}"))
        return [Table("MME by task", ("task", "questions", "accuracy", "accuracy+", "score of 200"), tuple(cells))]


def _task(item: TaskItem) -> int:
    known = {task.lower(): place for place, task in enumerate(MME_TASKS)}
    if item.part.lower() not in known:
        raise UserError(f"item {item.id} is of the part {item.part!r}, which is no task of MME: "
                        f"{nearest(item.part, MME_TASKS)}")  # fmt: skip
    return known[item.part.lower()]
