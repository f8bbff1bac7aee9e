"""Sources of questions by the name that people call their benchmark by."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from sensorium.config import explain
from sensorium.errors import UserError, nearest
from sensorium.evaluate.item import TaskSource
from sensorium.evaluate.tasks.builtin import Emoji, Scenes, Stamps
from sensorium.evaluate.tasks.captions import CaptionTask
from sensorium.evaluate.tasks.choices import MMBench, ScienceQA, SEEDBench
from sensorium.evaluate.tasks.folders import ImageFolder
from sensorium.evaluate.tasks.grounding import RefCOCO
from sensorium.evaluate.tasks.jsonl import Jsonl
from sensorium.evaluate.tasks.mmmu import MMMU
from sensorium.evaluate.tasks.raven import Raven
from sensorium.evaluate.tasks.vqa import GQA, OKVQA, ChartQA, DocVQA, TextVQA, VQAv2
from sensorium.evaluate.tasks.yes_no import MME, NLVR2, POPE, VSR

SOURCES: dict[str, type[TaskSource]] = {
    "vqav2": VQAv2,
    "okvqa": OKVQA,
    "gqa": GQA,
    "textvqa": TextVQA,
    "docvqa": DocVQA,
    "chartqa": ChartQA,
    "scienceqa": ScienceQA,
    "mmbench": MMBench,
    "seedbench": SEEDBench,
    "mmmu": MMMU,
    "captions": CaptionTask,
    "refcoco": RefCOCO,
    "mme": MME,
    "pope": POPE,
    "nlvr2": NLVR2,
    "vsr": VSR,
    "raven": Raven,
    "imagefolder": ImageFolder,
    "jsonl": Jsonl,
    "emoji": Emoji,
    "scenes": Scenes,
    "stamps": Stamps,
}
"""Emoji and scenes need no files; stamps are fetched."""

ALSO = {
    "coco": "captions",
    "cococaptions": "captions",
    "nocaps": "captions",
    "flickr30k": "captions",
    "refcoco+": "refcoco",
    "refcocog": "refcoco",
    "imagenet": "imagefolder",
    "infographicvqa": "docvqa",
    "infovqa": "docvqa",
}
"""Benchmarks that are published in another's layout."""

PLACES = ("path", "root", "pictures", "annotations", "refs", "names", "ocr", "only")
"""Settings of sources that are files or folders."""


def source_class(name: str) -> type[TaskSource]:
    """The source of a benchmark, whatever its name's case, spaces, hyphens and underscores. Raises UserError."""
    plain = re.sub(r"[\s_-]", "", name.lower())
    plain = ALSO.get(plain, plain)
    if plain not in SOURCES:
        raise UserError(f"no task is called {name!r}: {nearest(plain, [*SOURCES, *ALSO])}")
    return SOURCES[plain]


def source_of(name: str, place: str | None = None, **settings: Any) -> TaskSource:
    """The questions of a benchmark.

    place     its file or folder, as published; None for the built-in ones
    settings  of its source, by name

    Raises UserError for an unknown name or setting.
    """
    made = source_class(name)
    fields = made.model_fields
    where = next((field for field in ("path", "root") if field in fields), None)
    if place is not None:
        if where is None:
            raise UserError(f"the task {name} is built in: it reads nothing, {place} was given")
        settings = {where: place, **settings}
    elif where == "path" and "path" not in settings:
        layout = getattr(made, "layout", "")
        raise UserError(f"the task {name} needs its file or folder{f': {layout}' if layout else ''}")
    for key in settings:
        if key not in fields:
            raise UserError(f"the task {name} has no setting {key!r}: {nearest(key, fields)}")
    try:
        return made(**settings)
    except ValidationError as error:
        raise UserError(f"the task {name}: {explain(error)}") from error
