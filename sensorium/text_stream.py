"""Text of ids that come one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sensorium.tokenizer import Tokenizer

HALF = "\ufffd"
"""What bytes that make no character are decoded to."""


class Stream:
    """Decodes ids one at a time; the texts that `push` and `flush` return join to `decode` of all ids.

    Text is held back while its last character may still be incomplete. The decoder sees only the tokens since the last
    complete character and those of the push before (a space may depend on them), so each push costs the same.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._skipped = frozenset(tokenizer.special.values()) if skip_special else frozenset()
        self._ids: list[int] = []
        self._context = 0
        self._sent = ""

    def push(self, id: int) -> str:
        """The text that became certain with this id, often "" or a whole word."""
        if id in self._skipped or self._tokenizer.token(id) is None:  # not shown: what follows joins what was before
            return ""
        self._ids.append(id)
        text = self._decode()
        if text.endswith(HALF):  # an incomplete tail decodes to one U+FFFD, whatever its number of bytes
            return self._advance(text[:-1])
        new = self._advance(text)
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._sent = self._decode()
        return new

    def flush(self) -> str:
        """The rest, once no id follows; an incomplete character is U+FFFD."""
        return self._advance(self._decode())

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip_special)

    def _advance(self, text: str) -> str:
        new = text[len(self._sent) :]
        self._sent += new
        return new
