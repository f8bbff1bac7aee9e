"""Chat in a terminal, or through a pipe: one line is one turn."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console

from sensorium.data.media import PictureFile
from sensorium.errors import UserError
from sensorium.infer.session import Session
from sensorium.sequence import Media, MediaError

HELP = "/image PATH adds a picture to the next question, /reset starts over, /quit (or end of input) leaves"


def chat_terminal(
    session: Session, images: Iterable[str | Media] = (), console: Console | None = None, lines: TextIO | None = None
) -> None:
    """Talk until /quit or the end of input. Answers stream; Ctrl-C stops an answer, not the chat.

    images   pictures that belong to the first question, and to the first after each /reset
    lines    where questions come from, standard input by default; prompts are shown only for a person at a terminal

    Raises UserError for one of `images` that cannot be read, and for input that is not UTF-8.
    """
    console = console or Console(highlight=False)
    source = sys.stdin if lines is None else lines
    if source is None:
        raise UserError("this process has no standard input to read questions from")
    person = source.isatty()
    given = [_checked(image) for image in images]
    pending = list(given)
    if person:
        console.print(HELP, style="dim", markup=False)
    while True:
        line = _read(source, console, person)
        if line is None or line in ("/quit", "/exit"):
            return
        command, _, rest = line.partition(" ")
        if command == "/image" and rest.strip():
            _add(pending, rest.strip().strip("'\""), console)
        elif command == "/reset":
            session.reset()
            pending = list(given)
            console.print("the conversation starts over", style="dim")
        elif command.startswith("/") and command.lstrip("/").isalpha():
            console.print(f"there is no {command}: {HELP}", style="yellow", markup=False)
        elif line:
            pending = _turn(session, line, pending, console)


def _turn(session: Session, text: str, pending: list[Media], console: Console) -> list[Media]:
    """Ask and print the answer. Returns the pictures that are still to be asked about."""
    try:
        answer = session.send(text, pending)
    except MediaError as error:  # a file that changed since it was added
        console.print(f"{error}; the question was not asked and its pictures are dropped", style="red", markup=False)
        return []
    try:
        for piece in answer:
            console.print(_visible(piece), end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" (stopped)", end="", style="dim")
    console.print()
    return []


def _add(pending: list[Media], path: str, console: Console) -> None:
    try:
        picture = _checked(path)
    except UserError as error:
        console.print(f"{error}; nothing was added", style="red", markup=False)
        return
    height, width = picture.shape()[:2]
    pending.append(picture)
    console.print(f"{path} ({width} x {height}) goes with the next question", style="dim", markup=False)


def _checked(image: str | Media) -> Media:
    """A picture that was decoded once, so that damage shows now and not in the middle of an answer."""
    picture = PictureFile(image) if isinstance(image, str) else image
    try:
        picture.load()
    except MediaError as error:
        raise UserError(str(error)) from error
    return picture


def _visible(text: str) -> str:
    """Without control characters, which could command the terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t\u200d\ufe0f")


def _read(lines: TextIO, console: Console, person: bool) -> str | None:
    """The next line without its end; None at the end of input."""
    try:
        if not person:
            line = lines.readline()
            return line.strip() if line else None
        return console.input("[bold]> [/bold]").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"the input is not UTF-8: {error}") from error
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
