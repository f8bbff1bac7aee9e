"""Rows as they will be trained on: pictures, rendered text token by token, and which tokens carry loss.

Rows are (Sample, Sequence) pairs: the sample as the source gave it, the sequence as the renderer made it. One list of
cells is made of each row; the terminal, the HTML page and the JSON are three views of it.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sensorium.sequence import Media, MediaError, Sample, Span
from sensorium.sequence import Sequence as Tokens

if TYPE_CHECKING:
    from rich.console import Console

THUMBNAIL = 192  # pixels on the longer side
LONGEST_CHARACTER = 8  # tokens that may share one character before they are shown as they are
UNFINISHED = "\ufffd"

Row = tuple[Sample, Tokens]


class Decoder(Protocol):
    """What is needed of a tokenizer (sensorium.tokenizer.Tokenizer)."""

    special: dict[str, int]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True)
class Cell:
    """A piece of a row that is shown as one: a token, several that share a character, or a span.

    text     what the tokens say; for a span what it holds
    weight   loss weight of predicting it
    start    index of its first token
    """

    kind: Literal["text", "special", "span"]
    text: str
    weight: float
    start: int
    ids: tuple[int, ...]
    branch: int = 0
    span: Span | None = None


def cells(tokens: Tokens, tokenizer: Decoder) -> list[Cell]:
    """The cells of one row, in order; together they have every token once. Of K parallel streams the first is shown."""
    ids = (tokens.ids if tokens.ids.dim() == 1 else tokens.ids[:, 0]).tolist()
    weights = (tokens.weight if tokens.weight.dim() == 1 else tokens.weight[:, 0]).tolist()
    branches = tokens.branch.tolist()
    special = set(tokenizer.special.values())
    spans = {
        span.start: span for span in tokens.spans if span.length and span.op == "replace" and span.mode != "memory"
    }
    found: list[Cell] = []
    place = 0
    while place < len(ids):
        if place in spans:
            span = spans[place]
            stop = place + span.length
            weight = max(weights[place:stop])
            found.append(
                Cell("span", _describe(tokens, span), weight, place, tuple(ids[place:stop]), branches[place], span)
            )
        elif ids[place] in special:
            stop = place + 1
            text = tokenizer.decode([ids[place]], skip_special=False)
            found.append(Cell("special", text, weights[place], place, (ids[place],), branches[place]))
        else:
            stop = place + 1
            text = tokenizer.decode(ids[place:stop], skip_special=False)
            while text.endswith(UNFINISHED) and stop < len(ids) and stop - place < LONGEST_CHARACTER:
                # half a character: show it with the tokens that finish it, as long as they mean the same for the loss
                same = weights[stop] == weights[place] and branches[stop] == branches[place]
                if stop in spans or ids[stop] in special or not same:
                    break
                stop += 1
                text = tokenizer.decode(ids[place:stop], skip_special=False)
            found.append(Cell("text", text, weights[place], place, tuple(ids[place:stop]), branches[place]))
        place = stop
    return found


def summary(row: Row) -> dict[str, Any]:
    """Counts of one row, plain values."""
    sample, tokens = row
    weight = tokens.weight if tokens.weight.dim() == 1 else tokens.weight[:, 0]
    spans = [{"kind": span.kind, "tokens": span.length, "mode": span.mode} for span in tokens.spans]
    trained = int((weight != 0).sum())
    return {"id": sample.id, "source": sample.source, "tokens": len(tokens), "trained": trained, "spans": spans}


def preview_json(rows: Sequence[Row], tokenizer: Decoder) -> list[dict[str, Any]]:
    """Counts, and the cells as {kind, text, weight, tokens}, of every row."""
    return [
        {
            **summary(row),
            "cells": [
                {"kind": cell.kind, "text": cell.text, "weight": cell.weight, "tokens": len(cell.ids)}
                for cell in cells(row[1], tokenizer)
            ],
        }
        for row in rows
    ]


def preview_terminal(rows: Sequence[Row], tokenizer: Decoder, console: Console) -> None:
    """Print rows: what carries loss is green, special tokens are cyan, pictures are boxes with their token count."""
    from rich.panel import Panel
    from rich.text import Text

    for number, row in enumerate(rows, 1):
        text = Text()
        branch = 0
        for cell in cells(row[1], tokenizer):
            if cell.branch != branch:
                branch = cell.branch
                text.append(f"\n── branch {branch} ──\n", style="magenta")
            colour = {"span": "bold yellow", "special": "cyan", "text": "default"}[cell.kind]
            style = (
                f"{colour} on dark_green" if cell.weight > 0 else f"{colour} on dark_red" if cell.weight < 0 else colour
            )
            shown = f"[{cell.text}]" if cell.kind == "span" else visible(cell.text)
            text.append(shown, style=style)
        title = Text(f"{number}  {_headline(row)}")
        console.print(Panel(text, title=title, title_align="left"))
    legend = Text("Tokens ")
    legend.append("on green", style="on dark_green")
    legend.append(" carry loss.")
    console.print(legend)


def preview_html(rows: Sequence[Row], tokenizer: Decoder, title: str = "Data preview") -> str:
    """One self-contained page: no scripts, no links; pictures are small data URLs. All text is escaped."""
    body = "\n".join(_article(number, row, tokenizer) for number, row in enumerate(rows, 1))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n<p>{len(rows)} rows as they are trained "
        'on. Tokens <span class="t" style="--w:1">on green</span> carry loss, the deeper the more; '
        '<span class="t s">special tokens</span> and <span class="box">media</span> are marked.</p>\n'
        f"{body}\n</body></html>\n"
    )


STYLE = """
:root{color-scheme:light dark;--line:#8886;--loss:46,160,67}
body{font:15px/1.7 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
article{border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:1rem 0}
h2{font-size:.9rem;margin:0 0 .6rem;font-weight:600;overflow-wrap:anywhere}
.row{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace}
.t{border-right:1px solid var(--line);background:rgba(var(--loss),calc(var(--w,0)*.45))}
.n{background:rgba(218,54,51,.35)}
.s{color:#0a7ea4;font-weight:600}
.box{display:inline-block;border:2px solid #d4a017;border-radius:6px;padding:.2rem .5rem;margin:.2rem}
.box img{display:block;max-width:192px;background:#fff}
.bad{color:#da3633}
.branch{display:block;color:#a0a;border-top:1px dashed var(--line);margin-top:.4rem}
""".strip()


def visible(text: str) -> str:
    """Control characters as their pictures (a terminal or page must not obey them); newlines marked and kept."""
    shown = []
    for character in text:
        if character == "\n":
            shown.append("↵\n")
        elif character < " " and character != "\t":
            shown.append(chr(0x2400 + ord(character)))
        elif character == "\x7f" or "\x80" <= character < "\xa0":
            shown.append("␡" if character == "\x7f" else "\ufffd")
        elif character in BIDI:
            shown.append(f"<U+{ord(character):04X}>")
        else:
            shown.append(character)
    return "".join(shown)


BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they would reorder the text around them


def _describe(tokens: Tokens, span: Span) -> str:
    items = tokens.items.get(span.kind, [])
    shape = items[span.item].shape if span.item < len(items) else ()
    size = f" {shape[1]}x{shape[0]}" if span.kind == "image" and len(shape) >= 2 else ""
    mode = "" if span.mode == "embed" else f" {span.mode}"
    return f"{span.kind} {span.item + 1}{size}: {span.length} tokens{mode}"


def _headline(row: Row) -> str:
    counts = summary(row)
    where = visible(" ".join(filter(None, (counts["id"], counts["source"]))))
    return f"{where}  {counts['tokens']} tokens, {counts['trained']} carry loss, {len(counts['spans'])} media"


def _article(number: int, row: Row, tokenizer: Decoder) -> str:
    sample, tokens = row
    media = {}
    for segment in sample.segments:
        if segment.kind == "image" and isinstance(segment.data, Media):
            try:
                media[segment.data.key()] = segment.data
            except MediaError:
                continue  # its span has no key either: the renderer could not read it
    parts = []
    branch = 0
    for cell in cells(tokens, tokenizer):
        if cell.branch != branch:
            branch = cell.branch
            parts.append(f'<span class="branch">branch {branch}</span>')
        parts.append(_span_html(cell, tokens, media) if cell.span is not None else _token_html(cell))
    return f'<article><h2>{number}  {html.escape(_headline(row))}</h2><div class="row">{"".join(parts)}</div></article>'


def _token_html(cell: Cell) -> str:
    kind = "t s" if cell.kind == "special" else "t"
    kind += " n" if cell.weight < 0 else ""
    strength = f' style="--w:{min(cell.weight, 2.0):.3g}"' if cell.weight > 0 else ""
    hint = f"{', '.join(map(str, cell.ids))}; loss {cell.weight:g}"
    return f'<span class="{kind}"{strength} title="{hint}">{html.escape(visible(cell.text))}</span>'


def _span_html(cell: Cell, tokens: Tokens, media: dict[str, Media]) -> str:
    assert cell.span is not None
    picture = ""
    items = tokens.items.get(cell.span.kind, [])
    if cell.span.kind == "image" and cell.span.item < len(items):
        found = media.get(items[cell.span.item].key)
        if found is not None:
            try:
                picture = f'<img alt="" src="{_thumbnail(found)}">'
            except MediaError as error:
                picture = f'<span class="bad">{html.escape(visible(str(error)))}</span>'
    loss = f"; loss {cell.weight:g}" if cell.weight else ""
    return f'<span class="box">{picture}{html.escape(cell.text + loss)}</span>'


def _thumbnail(media: Media) -> str:
    picture = media.load()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
