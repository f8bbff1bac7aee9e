"""`sensorium chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sensorium.commands.output import console_for
from sensorium.data.media import PictureFile
from sensorium.errors import UserError
from sensorium.sequence import MediaError


def run_chat(
    run: Path, images: list[str], prompt: str | None, system: str | None, sampling: dict[str, Any], json: bool,
    quantize: str | None = None, draft: Path | None = None,
) -> None:  # fmt: skip
    for image in images:  # before a model is loaded
        try:
            PictureFile(image).load()
        except MediaError as error:
            raise UserError(str(error)) from error
    from sensorium.api import load
    from sensorium.infer.kernels.quantize import check_kind

    kind = None if quantize is None else check_kind(quantize)
    session = load(run, quantize=kind, draft=draft).session(system, **sampling)
    if json or prompt is not None:
        _answer_all(session, [prompt] if prompt is not None else _lines(), images, json)
        return
    from sensorium.infer.terminal import chat_terminal

    chat_terminal(session, images, console_for(False))


def _lines() -> Iterable[str]:
    return (line.strip() for line in sys.stdin if line.strip())


def _answer_all(session: Any, questions: Iterable[str], images: list[str], json: bool) -> None:
    """One answer for each question; the pictures belong to the first."""
    from json import dumps

    pending = [PictureFile(image) for image in images]
    for question in questions:
        answer = "".join(session.send(question, pending))
        print(dumps({"question": question, "answer": answer}, ensure_ascii=False) if json else answer, flush=True)
        pending = []
