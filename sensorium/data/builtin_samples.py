"""Questions about one picture as a Sample, and the conventions boxes are written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sensorium.errors import UserError, nearest
from sensorium.sequence import Media, Sample, Segment

Box = tuple[float, float, float, float]
BoxFormat = Literal["hundred", "thousand", "decimal", "loc"]


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


def _integers(pattern: str, scale: int) -> Callable[[Box], str]:
    return lambda box: pattern.format(*(round(edge * scale) for edge in box))


BOX_FORMATS: dict[str, Callable[[Box], str]] = {
    "hundred": _integers("{{<{}><{}><{}><{}>}}", 100),
    "thousand": _integers("[{}, {}, {}, {}]", 999),
    "decimal": lambda box: "[" + ", ".join(f"{edge:.2f}" for edge in box) + "]",
    "loc": lambda box: "".join(f"<loc_{min(999, int(edge * 1000))}>" for edge in box),
}
"""How published systems write a box x0 y0 x1 y1 in [0, 1]: hundred is MiniGPT-v2 (section 2.2: integers in [0, 100]),
thousand is Qwen2-VL's and InternVL's 0-999, decimal is LLaVA-1.5 (two digits), loc has 1,000 bins (OFA, Kosmos-2)."""

_READERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "hundred": (r"\{<(\d+)><(\d+)><(\d+)><(\d+)>\}", lambda text: int(text) / 100),
    "thousand": (r"\[(\d+), (\d+), (\d+), (\d+)\]", lambda text: int(text) / 999),
    "decimal": (r"\[(\d\.\d+), (\d\.\d+), (\d\.\d+), (\d\.\d+)\]", float),
    "loc": (r"<loc_(\d+)><loc_(\d+)><loc_(\d+)><loc_(\d+)>", lambda text: (int(text) + 0.5) / 1000),
}


def format_box(box: Box, convention: str) -> str:
    """A box in [0, 1] as text. Raises UserError for an unknown convention."""
    if convention not in BOX_FORMATS:
        raise UserError(f"boxes have no convention {convention!r}: {nearest(convention, BOX_FORMATS)}")
    return BOX_FORMATS[convention](box)


def parse_box(text: str, convention: str) -> Box | None:
    """The first box in a text, in [0, 1], or None when there is none that is well formed."""
    if convention not in _READERS:
        raise UserError(f"boxes have no convention {convention!r}: {nearest(convention, _READERS)}")
    pattern, read = _READERS[convention]
    found = re.search(pattern, text)
    if found is None:
        return None
    x0, y0, x1, y1 = (read(group) for group in found.groups())
    inside = 0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1
    return (x0, y0, x1, y1) if inside else None
