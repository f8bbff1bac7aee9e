"""SentencePiece's BPE (Llama 2, Vicuna) in GGUF, both ways: pieces with scores instead of merges.

llama.cpp joins the neighbours whose piece has the highest score. Merges say the same where all that make one piece
stand together, and every way to cut a piece into two others is among them.
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from sensorium.errors import UserError

NORMAL, UNKNOWN, BYTE = 1, 2, 6
SPACE = "▁"
Merge = tuple[str, str]


def backend_of(tokens: list[str], scores: list[float], kinds: list[int]) -> tokenizers.Tokenizer:
    """A tokenizer of pieces; added tokens are not yet in it."""
    order = sorted((id for id, kind in enumerate(kinds) if kind == NORMAL), key=lambda id: (-scores[id], id))
    plain = {tokens[id]: id for id in order}
    merges = [pair for id in order for pair in sorted(_cuts(tokens[id], plain), key=lambda one: _ids(one, plain))]
    unknown = next((token for token, kind in zip(tokens, kinds) if kind == UNKNOWN), None)
    model = models.BPE(
        vocab={token: id for id, token in enumerate(tokens)}, merges=merges, unk_token=unknown, fuse_unk=True,
        byte_fallback=True,
    )  # fmt: skip
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])  # fmt: skip
    return backend


def _cuts(piece: str, pieces: dict[str, int]) -> list[Merge]:
    """The ways to cut a piece into two others."""
    pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    return [(left, right) for left, right in pairs if left in pieces and right in pieces]


def _ids(pair: Merge, pieces: dict[str, int]) -> tuple[int, int]:
    return pieces[pair[0]], pieces[pair[1]]


def are_sentences(said: dict[str, Any]) -> bool:
    """Whether a tokenizer's description is one of pieces: bytes where no piece is, and spaces as a character."""
    wanted = json.loads(backend_of(["<unk>"], [0.0], [UNKNOWN]).to_str())
    parts = ("normalizer", "decoder", "pre_tokenizer")
    model = said["model"]
    return (model["type"] == "BPE" and bool(model.get("byte_fallback"))
            and all(said[part] == wanted[part] for part in parts))  # fmt: skip


def sentence_keys(model: dict[str, Any], tokens: dict[int, str], kinds: dict[int, int], rows: int) -> dict[str, Any]:
    """The keys of a file that say pieces.

    tokens, kinds  by id; kinds of special tokens are known already, those of bytes and of the unknown one change
    Raises UserError for merges that no scores give.
    """
    found = (one.split(" ", 1) if isinstance(one, str) else one for one in model["merges"])
    merges: list[Merge] = [(left, right) for left, right in found]
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        piece = left + right
        if piece != last and piece in scores:
            raise UserError(
                f"the tokenizer's merges make {piece!r} at several ranks, and in GGUF a piece has one score"
            )
        scores.setdefault(piece, -float(len(scores)))
        last = piece
    special = {tokens[id] for id, kind in kinds.items() if kind != NORMAL}
    pieces = {token: id for token, id in model["vocab"].items() if token not in special and not _is_byte(token)}
    known = set(merges)
    for piece in pieces:
        lost = [pair for pair in _cuts(piece, pieces) if pair not in known]
        if lost:
            raise UserError(f"the tokenizer never merges {lost[0]} into {piece!r}, which llama.cpp would")
    kinds = {**kinds, **{id: BYTE for token, id in model["vocab"].items() if _is_byte(token)}}
    if model.get("unk_token") is not None:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    lowest = -float(len(scores))
    listed = [tokens.get(id, f"[PAD{id}]") for id in range(rows)]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": listed,
        "tokenizer.ggml.scores": [scores.get(token, lowest) for token in listed],
        "tokenizer.ggml.token_type": [kinds.get(id, 5) for id in range(rows)],
        "tokenizer.ggml.add_space_prefix": True,
    }
    if model.get("unk_token") is not None:
        keys["tokenizer.ggml.unknown_token_id"] = model["vocab"][model["unk_token"]]
    return keys


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
