"""Text to token ids and back, with a wall between what a program writes and what a person typed.

`encode` is for plain text: whatever it says, no special token comes out. `split_special` is for trusted template text:
it finds the special tokens. The format on disk is Hugging Face's tokenizer.json + tokenizer_config.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from sensorium.errors import UserError
from sensorium.text_stream import HALF, Stream

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
BYTES = 256
"""Texts up to this vocabulary are bytes, and nothing is merged."""
_READERS = "readers"
"""The folder beside a tokenizer with those that connectors read words with."""

Offsets = list[tuple[int, int]]


class Tokenizer:
    """A `tokenizers.Tokenizer` with the ids a model needs.

    backend        its added tokens marked special are the special tokens
    bos, eos, pad  the strings of those special tokens; None where the model has none
    chat_template  Jinja source, stored beside the tokenizer
    readers        by kind of item the tokenizers with which their connectors read words, where these are not this one:
                   InstructBLIP's Q-Former reads BERT's tokens (arXiv 2305.06500)
    named          further tokens by their field (sep_token, image_token), as processors of published models look for
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        chat_template: str | None = None,
        readers: Mapping[str, Tokenizer] | None = None,
        named: dict[str, str] | None = None,
    ) -> None:
        self.readers = dict(readers or {})
        self._names = {"bos": bos, "eos": eos, "pad": pad}
        self.named = dict(named or {})
        self.chat_template = chat_template
        self._state = backend.to_str()
        self._plain = tokenizers.Tokenizer.from_str(self._state)
        # Special tokens in the text stay text: their added-token match is switched off.
        self._plain.encode_special_tokens = True
        self._plain.no_padding()
        self._plain.no_truncation()
        if isinstance(self._plain.model, models.BPE) and self._plain.get_vocab_size(with_added_tokens=False) <= BYTES:
            # it merges nothing, and would keep the symbols of ten thousand texts: 80 MiB of a server's memory
            self._plain.model._resize_cache(0)
        added = {id: token for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special: dict[str, int] = {token.content: id for id, token in sorted(added.items())}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        """Rows an embedding needs: the largest id + 1."""
        self.bos, self.eos, self.pad = (self._id_of(role, name, vocabulary) for role, name in self._names.items())
        unknown = self._unknown(backend)
        # A model may say "unknown" for plain text; that is no control over the conversation, unless it also ends it.
        harmless = {self.special.get(unknown)} - {self.bos, self.eos, self.pad} if unknown else set()
        self._forbidden = frozenset(self.special.values()) - harmless
        self._splitter = _splitter(added.values())

    @staticmethod
    def _id_of(role: str, name: str | None, vocabulary: dict[str, int]) -> int | None:
        if name is not None and name not in vocabulary:
            raise UserError(f"the tokenizer's {role} token is {name!r}, but its vocabulary has no such token")
        return None if name is None else vocabulary[name]

    def _unknown(self, backend: tokenizers.Tokenizer) -> str | None:
        """The token a model writes for what it does not know."""
        if isinstance(backend.model, models.Unigram):  # the only kind without an attribute for it
            model = json.loads(self._state)["model"]
            return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        return getattr(backend.model, "unk_token", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._state, self._names, self.chat_template, self.named, self.readers)

    def __len__(self) -> int:
        return self.vocab_size

    def description(self) -> dict[str, Any]:
        """All that tokenizer.json says: the model with its vocabulary, how text is cut, the added tokens."""
        return json.loads(self._state)

    # ---- text -> ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Never a special token, whatever the text says; no begin or end token is added."""
        encoded = self._encoded(text)
        ids = encoded.ids  # offsets of a long text are many times its size, and are made when they are looked at
        return ids if self._forbidden.isdisjoint(ids) else self._without_special(text, ids, encoded.offsets)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Ids of plain text and, for each, the (start, end) characters it covers.

        The bytes of one character may be spread over several tokens, which then all cover it. A lone surrogate, which
        is no character, is read as U+FFFD.
        """
        encoded = self._encoded(text)
        ids, offsets = encoded.ids, encoded.offsets
        if self._forbidden.isdisjoint(ids):
            return ids, offsets
        return self._without_special(text, ids, offsets)

    def _encoded(self, text: str) -> tokenizers.Encoding:
        try:
            return self._plain.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            if _SURROGATE.search(text) is None:
                raise
            return self._plain.encode(_SURROGATE.sub(HALF, text), add_special_tokens=False)
        except Exception as error:
            if type(error) is not Exception:  # the Rust library raises this very class
                raise
            raise UserError(f"this tokenizer has no word for {text[:80]!r}: {error}") from error

    def _without_special(self, text: str, ids: list[int], offsets: Offsets) -> tuple[list[int], Offsets]:
        """Some models (Unigram) find special tokens by themselves: cut the text inside each and encode the halves."""
        index = next(place for place, id in enumerate(ids) if id in self._forbidden)
        start, end = offsets[index]
        if end - start < 2:
            raise UserError(
                f"this tokenizer writes {text[start:end]!r} as its special token {self.token(ids[index])!r}, so plain "
                "text with it cannot be encoded; remove it from the text or choose another tokenizer"
            )
        cut = start + 1
        left, left_offsets = self.encode_with_offsets(text[:cut])
        right, right_offsets = self.encode_with_offsets(text[cut:])
        return left + right, left_offsets + [(a + cut, b + cut) for a, b in right_offsets]

    def around(self) -> tuple[str, str]:
        """The special tokens that the published tokenizer puts before and after a plain text, as text; often ""."""
        mark = self.encode("a")
        ids = self._plain.encode("a", add_special_tokens=True).ids
        begin = next((at for at in range(len(ids)) if ids[at : at + len(mark)] == mark), 0)
        before, after = ids[:begin], ids[begin + len(mark) :]
        return "".join(self.token(id) or "" for id in before), "".join(self.token(id) or "" for id in after)

    def encode_whole(self, text: str) -> list[int]:
        """Ids of plain text between what the published tokenizer puts before and after one."""
        before, after = self._frame
        return [*before, *self.encode(text), *after]

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        before, after = self.around()
        return self.encode_trusted(before), self.encode_trusted(after)

    def split_special(self, text: str) -> list[str | tuple[str, int]]:
        """Trusted text at its special tokens: pieces of plain text, and (token, id) for each special token."""
        pieces: list[str | tuple[str, int]] = []
        for number, piece in enumerate(self._splitter.split(text)):
            if number % 2:
                name = piece if piece in self.special else piece.strip()
                pieces.append((name, self.special[name]))
            elif piece:
                pieces.append(piece)
        return pieces

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of trusted text, special tokens included. Never for text that a person typed."""
        ids: list[int] = []
        for piece in self.split_special(text):
            ids += self.encode(piece) if isinstance(piece, str) else [piece[1]]
        return ids

    # ---- ids -> text

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids. Bytes that make no character become U+FFFD."""
        return self._plain.decode([int(id) for id in ids], skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> Stream:
        """A decoder that takes one id at a time."""
        return Stream(self, skip_special)

    def token(self, id: int) -> str | None:
        """The vocabulary's own string of an id; None when there is no such id."""
        return self._plain.id_to_token(id)

    def id(self, token: str) -> int | None:
        """The id of a vocabulary's own string; None when there is no such token."""
        return self._plain.token_to_id(token)

    # ---- making, keeping and comparing

    @property
    def source(self) -> str:
        """What tokenizer.json says."""
        return self._state

    @classmethod
    def bytes(cls, special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> Tokenizer:
        """A tokenizer that needs no pretrained data: ids 0-255 are the bytes of UTF-8, then ChatML's special tokens."""
        symbols = byte_symbols()
        backend = tokenizers.Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in symbols.items()}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([_special(name) for name in special])
        bos, eos, pad = (name if name in special else None for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        return cls(backend, bos=bos, eos=eos, pad=pad, chat_template=CHATML)

    def add_special(self, names: Sequence[str]) -> Tokenizer:
        """A new tokenizer with more special tokens at the end of the vocabulary; those it has already are kept.

        Raises UserError for a name that is an ordinary token: plain text could then no longer be kept apart from it.
        """
        backend = tokenizers.Tokenizer.from_str(self._state)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        new = [name for name in dict.fromkeys(names) if name not in self.special]
        for name in new:
            if not name.strip():
                raise UserError(f"a special token needs a visible name, {name!r} was given")
            if name in vocabulary:
                raise UserError(
                    f"{name!r} cannot become a special token: it is ordinary token {vocabulary[name]} of this "
                    "tokenizer; choose a name such as '<|name|>'"
                )
        backend.add_special_tokens([_special(name) for name in new])
        return Tokenizer(
            backend, **self._names, chat_template=self.chat_template, named=self.named, readers=self.readers
        )  # fmt: skip

    def with_template(self, chat_template: str | None) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return _restore(self._state, self._names, chat_template, self.named, self.readers)

    def with_readers(self, readers: Mapping[str, Tokenizer]) -> Tokenizer:
        """The same tokenizer beside others, with which connectors read words."""
        return _restore(self._state, self._names, self.chat_template, self.named, readers)

    def lower_case(self) -> Tokenizer:
        """The same tokenizer, which reads every text in lower case."""
        state = json.loads(self._state)
        if "Lowercase" in json.dumps(state["normalizer"]):
            return self
        backend = tokenizers.Tokenizer.from_str(self._state)
        lower = normalizers.Lowercase()
        backend.normalizer = normalizers.Sequence([lower, backend.normalizer]) if state["normalizer"] else lower
        return Tokenizer(
            backend, **self._names, chat_template=self.chat_template, named=self.named, readers=self.readers
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which Hugging Face libraries read too; readers in folders."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.named,
            **{f"{role}_token": name for role, name in self._names.items() if name is not None},
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (place / "tokenizer.json").write_text(self._state, "utf-8")
        (place / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), "utf-8")
        for kind, reader in self.readers.items():
            reader.save(place / _READERS / kind)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read what `save` or a Hugging Face library wrote. Raises UserError naming the file that is unusable."""
        place = Path(folder)
        config = _read_json(place / "tokenizer_config.json")
        state = _read(place / "tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_str(state)
        except Exception as error:
            if type(error) is not Exception:  # the Rust library raises this very class for a bad file
                raise
            raise UserError(f"{place / 'tokenizer.json'} is not a tokenizer: {error}") from error
        names = {role: _name(config.get(f"{role}_token")) for role in ("bos", "eos", "pad")}
        readers = {inner.name: cls.load(inner) for inner in sorted((place / _READERS).glob("*"))}
        template, named = _template(place, config), _named(config, names)
        return cls(backend, **names, chat_template=template, named=named, readers=readers)

    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides ids and prompts; equal fingerprints mean equal behaviour."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts = [json.loads(self._state), self._names, self.chat_template]
        parts += [[kind, reader.fingerprint()] for kind, reader in sorted(self.readers.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def byte_symbols() -> dict[int, str]:
    """The visible character that stands for each byte in byte-level BPE vocabularies (GPT-2, section 2.2).

    Bytes that are visible in Latin-1 stand for themselves, the other 68 for the characters from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)}


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def _splitter(added: Iterable[AddedToken]) -> re.Pattern[str]:
    """Matches one special token, the longest where several begin at one place, with the white space it swallows."""
    patterns = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in sorted(added, key=lambda token: (-len(token.content), token.content))
    ]
    return re.compile(f"({'|'.join(patterns)})" if patterns else r"(?!)()")


def _restore(
    state: str, names: dict[str, str | None], chat_template: str | None, named: dict[str, str],
    readers: Mapping[str, Tokenizer],
) -> Tokenizer:  # fmt: skip
    backend = tokenizers.Tokenizer.from_str(state)
    return Tokenizer(backend, **names, chat_template=chat_template, named=named, readers=readers)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. A tokenizer folder needs tokenizer.json.") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path} is missing: it says which tokens begin, end and pad a text")
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def _named(config: dict[str, Any], roles: dict[str, str | None]) -> dict[str, str]:
    """The tokens that a tokenizer_config.json names beside those of the roles."""
    found = {field: _name(token) for field, token in config.items() if field.endswith("_token")}
    known = {f"{role}_token" for role in roles}
    return {field: token for field, token in found.items() if isinstance(token, str) and field not in known}


def _name(token: Any) -> str | None:
    """Hugging Face writes a token as its text or as an object with its `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _template(place: Path, config: dict[str, Any]) -> str | None:
    """The chat template: in a file of its own (older processors, newer libraries), as text, or the default one of
    several named ones."""
    older = place / "chat_template.json"
    if older.exists():
        return _read_json(older).get("chat_template")
    beside = place / "chat_template.jinja"
    if beside.exists():
        return _read(beside)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        return named.get("default")
    return template
