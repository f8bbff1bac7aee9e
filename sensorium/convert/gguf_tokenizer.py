"""Tokenizers in GGUF, both ways: byte-level BPE here, pieces with scores in gguf_sentences.

llama.cpp knows how texts are cut before merging by a name (`tokenizer.ggml.pre`), so a tokenizer can be written where
its own cutting is one of those named here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sensorium.convert.gguf_file import GGUFFile
from sensorium.convert.gguf_sentences import NORMAL, UNKNOWN, are_sentences, backend_of, sentence_keys
from sensorium.errors import UserError
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
_CONTRADICTS = "its tokenizer contradicts itself: tokens, token types and merges do not fit together"
NO_MERGES = ["À Á"]
"""llama.cpp asks for merges. A tokenizer without any gets one of bytes (C0, C1) that no UTF-8 text has."""

# The cutting of Llama 3 and Qwen2, of which the second takes digits one by one; from their published tokenizers.
_WORDS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _llama3() -> pre_tokenizers.PreTokenizer:
    return _split(_WORDS % "{1,3}")


def _qwen2() -> pre_tokenizers.PreTokenizer:
    return _split(_WORDS % "")


_PRE: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _smollm, "gpt-2": _gpt2, "llama-bpe": _llama3, "qwen2": _qwen2,
}  # fmt: skip
_WHOLE = ("llama-bpe",)
"""A word that is a token is taken as it is, without merging."""
_COMPOSED = ("qwen2",)
"""Texts are normalised (NFC) by the published tokenizers; llama.cpp leaves them as they are."""
_BEGINS = ("llama-bpe",)
"""llama.cpp puts bos before a text unless the file says otherwise."""


# ---- reading


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """The file's tokenizer with its chat template. Raises UserError for kinds that cannot be read.

    A byte without a symbol in the vocabulary is left out of the text, as the published tokenizers do (SmolLM2 has no
    symbol for six control characters and for the lead bytes of unassigned planes).
    """
    data = file.metadata
    model, pre = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre")
    tokens = _list(file, "tokens", str)
    kinds = data.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    fits = isinstance(kinds, list) and len(kinds) == len(tokens) == len(set(tokens))
    if not fits:
        raise file.bad(_CONTRADICTS)
    if model == "llama":
        scores = _list(file, "scores", float)
        if len(scores) != len(tokens) or data.get("tokenizer.ggml.add_space_prefix", True) is not True:
            raise file.bad("its pieces have no score each, or texts do not begin with a space: this cannot be read")
        used = [token for token, kind in zip(tokens, kinds) if kind != UNUSED]
        if used != tokens[: len(used)]:
            raise file.bad("its vocabulary has unused tokens among the others")
        backend = backend_of(used, scores, kinds[: len(used)])
    elif model == "gpt2" and pre in _PRE:
        backend = _byte_level(file, tokens, kinds, pre)
    else:
        raise UserError(
            f"{file.path} has a tokenizer of kind {model!r} with the text splitting {pre!r}; "
            f"only 'llama', and 'gpt2' with one of {sorted(_PRE)}, can be read"
        )
    for kind, special in ((UNKNOWN, True), (CONTROL, True), (USER_DEFINED, False)):
        chosen = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
        backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in chosen])
    names = {role: _token(file, f"{key}_token_id", tokens)
             for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
    _surround(backend, file, names, model == "llama" or pre in _BEGINS)
    template = data.get("tokenizer.chat_template")
    chat = template if isinstance(template, str) else None
    return Tokenizer(backend, bos=names["bos"], eos=names["eos"], pad=names["pad"], chat_template=chat)


def _byte_level(file: GGUFFile, tokens: list[str], kinds: list[int], pre: str) -> tokenizers.Tokenizer:
    merges = _list(file, "merges", str)
    merges = [] if merges == NO_MERGES else merges
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    known = all(
        len(pair) == 2 and pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary
        for pair in pairs
    )
    if not known:
        raise file.bad(_CONTRADICTS)
    used = {token: id for token, id in vocabulary.items() if kinds[id] != UNUSED}
    bpe = models.BPE(vocab=used, merges=pairs, ignore_merges=pre in _WHOLE)  # type: ignore[arg-type]
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = _PRE[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    return backend


def _surround(backend: tokenizers.Tokenizer, file: GGUFFile, names: dict[str, str | None], begins: bool) -> None:
    """Plain text begins with bos and ends with eos where the file says so; `begins`: where it says nothing of bos."""
    begin = file.metadata.get("tokenizer.ggml.add_bos_token", begins)
    bos, eos = (names["bos"] if begin is True else None,
                names["eos"] if file.metadata.get("tokenizer.ggml.add_eos_token") is True else None)  # fmt: skip
    if begin is True and bos is None:
        raise file.bad("its tokenizer puts bos before a text, and names no bos token")
    around = [token for token in (bos, eos) if token is not None]
    if around:
        backend.post_processor = processors.TemplateProcessing(
            single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
        )


def _list(file: GGUFFile, name: str, kind: type) -> list[Any]:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        what = "strings" if kind is str else "numbers"
        raise file.bad(f"its header has no list of {what} called tokenizer.ggml.{name}")
    return value


def _token(file: GGUFFile, key: str, tokens: list[str]) -> str | None:
    id = file.metadata.get(f"tokenizer.ggml.{key}")
    if id is None:
        return None
    if not isinstance(id, int) or not 0 <= id < len(tokens):
        raise file.bad(f"its tokenizer says {key} = {id!r}, but it has {len(tokens)} tokens")
    return tokens[id]


# ---- writing


def tokenizer_keys(tokenizer: Tokenizer, template: Template, rows: int) -> dict[str, Any]:
    """The keys of a file that say a tokenizer.

    template  which tokens end an answer; `eos` is the first of them
    rows      of the model's vocabulary; those without a token are unused ones
    Raises UserError for a tokenizer that llama.cpp has no words for.
    """
    said = tokenizer.description()
    model = said["model"]
    pieces = are_sentences(said)
    pre = "" if pieces else _pre(said)
    tokens = {id: token for token, id in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in said["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if max(tokens) >= rows:
        raise UserError(f"the tokenizer has ids up to {max(tokens)}, the model a vocabulary of {rows}")
    if pieces:
        return sentence_keys(model, tokens, kinds, rows) | _roles(tokenizer, template) | _around(tokenizer)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens.get(id, f"[PAD{id}]") for id in range(rows)],
        "tokenizer.ggml.token_type": [kinds.get(id, UNUSED) for id in range(rows)],
        "tokenizer.ggml.merges": merges or NO_MERGES,
        "tokenizer.ggml.add_space_prefix": False,
    }
    return keys | _roles(tokenizer, template) | _around(tokenizer)


def _pre(said: dict[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer cuts texts."""
    model, normalizer, decoder = said["model"], *((said[one] or {}).get("type") for one in ("normalizer", "decoder"))
    if model["type"] != "BPE" or decoder != "ByteLevel":
        raise UserError(f"the tokenizer is a {model['type']} with the decoder {decoder}; only byte-level BPE and "
                        "SentencePiece's BPE are written as GGUF")  # fmt: skip
    found = _cutting(said["pre_tokenizer"])
    for name, make in _PRE.items():
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = make()
        fits = found == _cutting(json.loads(backend.to_str())["pre_tokenizer"])
        whole = bool(model.get("ignore_merges")) == (name in _WHOLE) or not model["merges"]
        if fits and whole and normalizer in ((None, "NFC") if name in _COMPOSED else (None,)):
            return name
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    if not model["merges"] and found == plain and normalizer is None:
        return "gpt-2"  # every byte is a token, however the text is cut
    raise UserError(f"the tokenizer cuts texts in a way that none of llama.cpp's {sorted(_PRE)} does: "
                    f"{json.dumps(said['pre_tokenizer'])[:200]}, normaliser {normalizer}")  # fmt: skip


def _cutting(value: Any) -> Any:
    """What decides the cutting; offsets do not."""
    if isinstance(value, dict):
        return {name: _cutting(one) for name, one in value.items() if name != "trim_offsets"}
    return [_cutting(one) for one in value] if isinstance(value, list) else value


def _roles(tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """The ids of special tokens. llama.cpp has a default for bos and eos, so eos is always said."""
    stops = list(dict.fromkeys((template.stop, *template.ends)))
    ids = [tokenizer.special[one] for one in stops if one in tokenizer.special]
    if len(ids) != len(stops) or len(ids) > 3:
        raise UserError(f"answers end with {stops}: GGUF has places for three special tokens of the tokenizer")
    if tokenizer.eos in ids:
        ids = [tokenizer.eos, *(id for id in ids if id != tokenizer.eos)]
    keys = {f"tokenizer.ggml.{role}_token_id": id for role, id in zip(("eos", "eot", "eom"), ids)}
    if tokenizer.bos is not None:
        keys["tokenizer.ggml.bos_token_id"] = tokenizer.bos
    if tokenizer.pad is not None:
        keys["tokenizer.ggml.padding_token_id"] = tokenizer.pad
    return keys


def _around(tokenizer: Tokenizer) -> dict[str, Any]:
    """Whether plain text begins with bos and ends with eos."""
    before, after = tokenizer.around()
    bos, eos = (tokenizer.token(id) if id is not None else None for id in (tokenizer.bos, tokenizer.eos))
    if before not in ("", bos) or after not in ("", eos):
        raise UserError(f"the tokenizer puts {before!r} before a text and {after!r} behind it; GGUF can say bos "
                        f"({bos!r}) before and eos ({eos!r}) behind")  # fmt: skip
    return {"tokenizer.ggml.add_bos_token": before != "", "tokenizer.ggml.add_eos_token": after != ""}
