"""Questions about one picture as a Sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sensorium.sequence import Media, Sample, Segment


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its exact answer.

    options  the closed set the answer comes from, empty where it is open
    detail   more of what evaluation needs: `name`, `box`, `letter` ...
    """

    family: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    language: str = "en"
    detail: dict[str, Any] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        known = {"family": self.family, "question": self.question, "answer": self.answer, "language": self.language}
        return {**known, "options": list(self.options), **self.detail}


def question_sample(
    picture: Media,
    questions: Iterable[Question],
    *,
    id: str,
    source: str,
    info: Mapping[str, Any],
    tags: Mapping[Any, str] | None = None,
) -> Sample:
    """A picture with its questions: one as a plain turn, several as branches 1, 2 ... that share the picture.

    `tags` maps families to task tags written before the question, as MiniGPT-v2 does. `info["questions"]` holds what
    `Question.info` says of each; of a single question the sample's info holds it too.
    """
    asked = list(questions)
    segments = [Segment("image", picture, "user")]
    for number, one in enumerate(asked, start=1):
        branch = number if len(asked) > 1 else 0
        tag = (tags or {}).get(one.family, "")
        text = f"{tag} {one.question}" if tag else one.question
        segments.append(Segment("text", text, "user", branch=branch))
        segments.append(Segment("text", one.answer, "assistant", branch=branch))
    details = [one.info() for one in asked]
    single = details[0] if len(details) == 1 else {}
    return Sample(tuple(segments), id=id, source=source, info={**info, **single, "questions": details})
