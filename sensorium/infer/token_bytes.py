"""Which bytes of a text each token stands for."""

from __future__ import annotations

import re
from typing import Any

from sensorium.errors import UserError
from sensorium.tokenizer import Tokenizer, byte_symbols

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PIECES = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
"""Decoders of sentencepiece's vocabularies, whose words have their space before them."""


class TokenBytes:
    """The bytes of a tokenizer's tokens, as its decoder writes them.

    Known are byte-level vocabularies (GPT-2), those of sentencepiece with or without a fallback to bytes, and word
    pieces (BERT) where decoding does not tidy up spaces. Raises UserError for a decoder that is none of these.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        description = tokenizer.description()
        self._steps = _flat(description["decoder"])
        kinds = {step["type"] for step in self._steps}
        suffix = description["model"].get("end_of_word_suffix")
        self._symbols: dict[str, int] | None = None
        self._prefix: str | None = None
        if kinds == {"ByteLevel"} and not suffix:
            self._symbols = {symbol: byte for byte, symbol in byte_symbols().items()}
        elif kinds == {"WordPiece"} and not self._steps[0]["cleanup"]:
            self._prefix = self._steps[0]["prefix"]
        elif not kinds or not kinds <= _PIECES or any(not _plain(step) for step in self._steps):
            raise UserError(
                "a constraint needs to know the bytes of every token, and this tokenizer's decoder "
                f"({' + '.join(step['type'] for step in self._steps) or 'none'}) does not let it: byte-level and "
                "sentencepiece vocabularies do"
            )

    def inner(self, id: int) -> bytes:
        """What a token adds to a text that has begun; nothing for an id that is no token."""
        token = self._tokenizer.token(id)
        if token is None:
            return b""
        if self._symbols is not None:
            known = [self._symbols.get(symbol) for symbol in token]
            # an added token may have characters that are no symbols: it stands as it is
            return token.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if self._prefix is not None:
            return token.removeprefix(self._prefix).encode() if token.startswith(self._prefix) else f" {token}".encode()
        return self._piece(token)

    def first(self, id: int) -> bytes:
        """What a token says at the very beginning, where a decoder of words leaves out the space."""
        inner = self.inner(id)
        if self._prefix is not None:
            return (self._tokenizer.token(id) or "").encode()
        if self._symbols is not None or not inner.startswith(b" "):
            return inner
        return self._tokenizer.decode([id], skip_special=False).encode()

    def _piece(self, token: str) -> bytes:
        for step in self._steps:
            if step["type"] == "Replace":
                token = token.replace(step["pattern"]["String"], step["content"])
            elif step["type"] == "Metaspace":
                token = token.replace(step["replacement"], " ")
            elif step["type"] == "ByteFallback":
                byte = _BYTE.fullmatch(token)
                if byte is not None:
                    return bytes([int(byte[1], 16)])
        return token.encode()


def _flat(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A decoder's steps, those of sequences of steps in their place."""
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flat(part)]


def _plain(step: dict[str, Any]) -> bool:
    """Whether a step changes every token by itself, but for what stands before the first."""
    if step["type"] == "Replace":
        return "String" in step["pattern"]
    return step["type"] != "Strip" or (step["stop"] == 0 and step["content"] == " ")
