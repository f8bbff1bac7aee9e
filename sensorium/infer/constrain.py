"""Answers of a given form: one of some texts, what matches a regular expression, JSON of a schema.

The grammars are those of llguidance, which says after every token which ones may follow. It works on bytes, so any way
of cutting a text into tokens is allowed, also in the middle of a character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import field_validator, model_validator
from torch import Tensor

from sensorium.config import Config, explain
from sensorium.errors import UserError
from sensorium.infer.token_bytes import TokenBytes
from sensorium.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SPACE = r" ?|\n[ \t]{0,24}"
"""White space between the parts of JSON: as on one line, or on lines of their own with an indentation. It has an end:
a model that would rather say nothing could otherwise fill an answer with blanks."""

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""Where in a grammar something is wrong, which nobody wrote."""
LARK = '%llguidance {"no_forcing": true}\nstart: '
"""The model chooses among all ways of cutting a text into tokens, even one that is forced: the library would ask the
tokenizer how it cuts it, and those that set a space before every text answer with another text."""


class Constraint(Config):
    """What an answer must be, as a whole. Exactly one of

    choices      one of these texts
    regex        a text that this regular expression matches from its beginning to its end (syntax of Rust's crate
                 regex: no look-around, no references back; \\d is ASCII)
    json_schema  JSON that this schema allows (what of JSON Schema llguidance knows; other keywords are errors)
    """

    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None

    @field_validator("choices")
    @classmethod
    def _texts(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or "" in value):
            raise ValueError("choices need at least one text, and no empty one")
        return value

    @model_validator(mode="after")
    def _one(self) -> Constraint:
        from llguidance import LLMatcher

        fields = ("choices", "regex", "json_schema")
        given = [name for name in fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(fields)}, not {' and '.join(given) or 'none'}")
        wrong, messages = LLMatcher.validate_grammar_with_warnings(self.grammar())
        if wrong:
            raise ValueError(f"{given[0]} cannot be used: {_reason(messages[0])}")
        return self

    def grammar(self) -> str:
        """The constraint in llguidance's own words."""
        from llguidance import regex_to_lark

        if self.choices is not None:
            body = " | ".join(json.dumps(choice) for choice in self.choices)
        elif self.regex is not None:
            body = f"/{regex_to_lark(self.regex, 'd')}/"
        else:
            assert self.json_schema is not None
            body = "%json " + json.dumps({"x-guidance": {"whitespace_pattern": SPACE}, **self.json_schema})
        return LARK + body


def response_format(value: Mapping[str, Any]) -> Constraint | None:
    """`response_format` of OpenAI's chat interface as a constraint; None for plain text.

    {"type": "json_object"} is any JSON object, {"type": "json_schema", "json_schema": {"name", "schema", "strict"}} one
    of that schema, which is always followed strictly. Raises UserError for anything else.
    """
    kind, schema = value.get("type"), value.get("json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(json_schema={"type": "object"})
    if kind != "json_schema":
        raise UserError(f"response_format: the type is one of text, json_object and json_schema, not {kind!r}")
    if not isinstance(schema, Mapping) or not isinstance(schema.get("schema"), dict):
        raise UserError('response_format: json_schema needs an object with "name" and "schema"')
    try:
        return Constraint(json_schema=schema["schema"])
    except ValueError as error:
        raise UserError(f"response_format: {explain(error)}") from error


class Guide:
    """Follows one answer through the grammar of its constraint.

    stops  ids that end an answer: of all special tokens only these are ever allowed, where the grammar may end

    Raises UserError where the constraint, or this tokenizer, cannot be used for it.
    """

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, stops: frozenset[int]) -> None:
        if not stops:
            raise UserError("a constrained answer needs a token that ends it, this model has none")
        compiled = _compiled(constraint.grammar(), tokenizer, stops)
        self._vocabulary = compiled.vocabulary
        self._matcher = compiled.matcher.deep_copy()
        self._allowed: Tensor | None = compiled.first
        self._begun = False

    def allowed(self) -> Tensor:
        """(vocab) bool: the tokens that may come next. Raises UserError where none may: the tokenizer has no token that
        goes on as the grammar demands, or the grammar became too large to follow."""
        if self._allowed is None:
            self._allowed = _mask(self._matcher, self._vocabulary.size)
        if not self._allowed.any():
            raise UserError("the constraint asks for something here that no token of this model can say")
        return self._allowed

    def take(self, id: int) -> None:
        """The token that was chosen. Raises ValueError for one that is not allowed."""
        if not 0 <= id < self._vocabulary.size or not self.allowed()[id]:
            raise ValueError(f"token {id} is not among those that the constraint allows here")
        if self._begun or id in self._vocabulary.stops:
            self._matcher.consume_token(id)
        else:
            self._matcher.consume_tokens(self._vocabulary.first_ids(id))
        if self._matcher.is_error():
            raise UserError(f"the constraint cannot be followed: {_reason(self._matcher.get_error())}")
        self._begun, self._allowed = True, None

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._matcher.is_stopped()


class _Vocabulary:
    """What llguidance knows of a tokenizer.

    A decoder of words with spaces before them leaves out the space of the very first token. That token is looked up in
    a vocabulary of its own, `first`; what it says is given to the grammar byte by byte, for which 256 tokens that no
    model has stand behind the others.
    """

    def __init__(self, tokenizer: Tokenizer, stops: frozenset[int]) -> None:
        self.size, self.stops = len(tokenizer), stops
        known = TokenBytes(tokenizer)
        hidden = {*tokenizer.special.values(), *stops}
        inner = [b"" if id in hidden else known.inner(id) for id in range(self.size)]
        first = [b"" if id in hidden else known.first(id) for id in range(self.size)]
        self._first = first if first != inner else None
        single = [bytes([byte]) for byte in range(255)] if self._first else []
        self.inner = _table(tokenizer, [*inner, *single], stops)
        self.first = self.inner if self._first is None else _table(tokenizer, [*first, *single], stops)
        self.silent = torch.zeros(self.size, dtype=torch.bool)
        """Tokens that say something, but nothing as the first: an answer may begin with one."""
        self.silent[[id for id in range(self.size) if inner[id] and not first[id]]] = True

    def first_ids(self, id: int) -> list[int]:
        """What stands for the first token of an answer among the inner ones."""
        return [id] if self._first is None else [self.size + byte for byte in self._first[id]]


@dataclass(frozen=True, slots=True)
class _Words:
    """The view of a tokenizer that LLTokenizer asks for."""

    tokens: list[bytes]
    tokenizer: Tokenizer
    eos_token_id: int
    bos_token_id: None = None
    special_token_ids: tuple[int, ...] = ()
    is_tokenizer_wrapper: bool = True

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)


def _table(tokenizer: Tokenizer, tokens: list[bytes], stops: frozenset[int]) -> LLTokenizer:
    from llguidance import LLTokenizer

    # 0xff begins no text, and to llguidance it is the mark of a special token
    tokens = [b"" if token.startswith(b"\xff") else token for token in tokens]
    words: Any = _Words(tokens, tokenizer, min(stops))
    return LLTokenizer(words, eos_token=sorted(stops))


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A grammar ready for a tokenizer, at its beginning, with the tokens (vocab) bool that may come first."""

    vocabulary: _Vocabulary
    matcher: LLMatcher
    first: Tensor


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer, stops: frozenset[int]) -> _Vocabulary:
    return _Vocabulary(tokenizer, stops)


def forget() -> None:
    """Give back the memory of the grammars of earlier answers."""
    _compiled.cache_clear()


@lru_cache(maxsize=64)
def _compiled(grammar: str, tokenizer: Tokenizer, stops: frozenset[int]) -> _Compiled:
    vocabulary = _vocabulary(tokenizer, stops)
    matcher = _matcher(vocabulary.inner, grammar)
    begin = matcher if vocabulary.first is vocabulary.inner else _matcher(vocabulary.first, grammar)
    return _Compiled(vocabulary, matcher, _mask(begin.deep_copy(), vocabulary.size) | vocabulary.silent)


def _matcher(table: LLTokenizer, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(table, grammar, log_level=0)
    if matcher.is_error():
        raise UserError(f"the constraint cannot be used: {_reason(matcher.get_error())}")
    return matcher


def _mask(matcher: LLMatcher, size: int) -> Tensor:
    """(size) bool: the tokens that may come next."""
    bits = matcher.compute_bitmask()
    if matcher.is_error():
        if _reason(matcher.get_error()) == "NoExtensionBias":  # no token goes on, and the grammar may not end
            return torch.zeros(size, dtype=torch.bool)
        raise UserError(f"the constraint cannot be followed: {_reason(matcher.get_error())}")
    return torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), count=size, bitorder="little").view(np.bool_))


def _reason(message: str) -> str:
    """The line of a message of llguidance that says what is wrong."""
    message = _PLACE.sub("", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no reason is given"])[0]
