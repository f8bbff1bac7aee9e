"""Errors a person can act on: each says what was given, what was expected and what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The input was wrong, not the program. The command line prints the message alone and exits with code 2."""


class OtherKind(UserError):
    """A layout is of another kind of model altogether, so that no setting of this one would make it fit."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A sentence fragment that suggests the nearest known name, or lists what is known when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names) if names else "nothing is known here"
