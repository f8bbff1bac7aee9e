"""Captions as words, as the COCO evaluation takes them apart: Penn Treebank tokens in lower case, without punctuation.

The rules are those of the Penn Treebank (Marcus et al. 1993; its tokenization page) as Stanford's PTBTokenizer 3.4.1
applies them to captions, found by what it gives; tests hold its output on made captions beside this one's.
"""

from __future__ import annotations

import re
from functools import lru_cache

DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Tokens that are left out. Brackets are not among them: they are called -lrb- once they are in lower case."""

_RENAMED = {"’": "'", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_SHORT = """
    mr mrs ms dr drs prof profs sen sens rep reps atty lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste
    ave pres lieut hon brig cmdr comdr pfc spc jr sr bros esq blvd rd inc co cos corp ltd plc bancorp dept bhd assn univ
    intl jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri calif mass conn fla ariz ark
    colo ill ind kan kans ky la md mich minn miss mo mont neb nev okla ore penn tenn tex va vt wash wis wyo mt ft etc vs
    al est ph.d alex wm jos cie a.k.a cf
"""
_ABBREVIATIONS = "|".join(re.escape(word) for word in _SHORT.split())

_LETTER = r"[^\W\d_]"
_WORD = rf"(?:{_LETTER}|\d|[\u0300-\u036f])"
_TOKENS = re.compile(
    "|".join(
        (
            r"(?P<tag></?[a-z][^<>\s]*\s*/?>|<[a-z]\w*>)",
            r"(?P<address>(?:https?|ftp)://[^\s\"<>|()]+[^\s\"<>|().,!?;:'-]|www\.[^\s\"<>|()]+[^\s\"<>|().,!?;:'-]"
            r"|[a-z0-9][\w.+-]*@[\w-]+(?:\.[\w-]+)+|[@#][a-z_]\w*)",
            r"(?P<face>[<>]?[:;=][-']?[()dp](?!\w)|\^_\^|-_-)",
            r"(?P<cut>cannot|gonna|gotta|gimme|lemme|wanna)(?![\w'-])",
            r"(?P<time>\d{1,2}:\d\d)(?=[ap]m\b)",
            rf"(?P<short>(?:[a-z]\.)+[a-z]\.(?!\w)|(?<![\w-])(?<!\w')(?:{_ABBREVIATIONS}|[a-z])\.(?![\w]))",
            r"(?P<nos>nos?\.)(?=\s*\d)",
            rf"(?P<number>[+-]?(?:\d+(?:[.,:/]\d+)*|\.\d+)(?!{_WORD}|-\w))",
            r"(?P<decade>['’]\d0s)(?!\w)",
            r"(?P<bound>['’](?:em|til|cause|n['’])(?!\w)|['’]n(?!\w))",
            r"(?P<twas>['’]t)(?=(?:is|was)\b)",
            r"(?P<tail>(?:n['’]t|['’](?:s|m|d|ll|ve|re))(?!\w))",
            rf"(?P<elided>(?:[ldo]['’]|c['’](?=mon|est)|ma['’](?=am)){_WORD}+)",
            rf"(?P<word>[cf][+#]{{1,2}}|y['’](?=all)|{_WORD}+?(?=n['’]t(?!\w))|{_WORD}+(?:[-_./&?!]{_WORD}+)*(?:\.(?=[,:]))?)",
            r"(?P<dots>\.{2,})",
            r"(?P<dashes>-{2,})",
            r"(?P<quotes>''|``|\")",
            r"(?P<run>[?!]+|\*+|_+)",
            r"(?P<other>\S)",
        )
    )
)

_CUTS = {"cannot": 3, "gonna": 3, "gotta": 3, "gimme": 3, "lemme": 3, "wanna": 3}
_SPELT = str.maketrans(
    {
        "“": '"', "”": '"', "«": '"', "»": '"', "‘": "'", "‹": "'", "›": "'", "…": " ... ", "–": " -- ",
        "—": " -- ", "―": " -- ", "‐": "-", "‑": "-", "\u00ad": "", "\u00a0": " ", "\u200b": " ", "½": "1/2",
        "¼": "1/4", "¾": "3/4", "£": "#", "€": "$", "¢": " cents ", "\ufe0f": "",
    }
)  # fmt: skip


_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
_ENTITY = re.compile("|".join(_ENTITIES))
_UNREAD = re.compile("[\U00010000-\U0010ffff\ud800-\udfff]")  # the tokenizer knows 16-bit characters alone


@lru_cache(maxsize=200_000)
def caption_tokens(caption: str) -> tuple[str, ...]:
    """The words of a caption that metrics count."""
    text = caption.lower().replace("\n", " ").translate(_SPELT)
    text = _UNREAD.sub("", _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], text))
    found: list[str] = []
    for match in _TOKENS.finditer(text):
        token = match[0]
        match match.lastgroup:
            case "cut":
                found += [token[: _CUTS[token]], token[_CUTS[token] :]]
            case "face":
                found.append("".join(_RENAMED.get(mark, mark) for mark in token))
            case "other":
                found.append(_RENAMED.get(token, token))
            case "dots" | "dashes" | "quotes":
                continue
            case "elided":
                found.append(token)
            case _:
                found.append(token.replace("’", "'"))
    return tuple(token for token in found if token not in DROPPED)
