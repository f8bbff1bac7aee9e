"""What a person sees before training is what will be trained."""

import base64
import html
import io
import json
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from sensorium.data.media import PictureFile
from sensorium.data.preview import cells, preview_html, preview_json, preview_terminal, summary, visible
from sensorium.render import Renderer, Template
from sensorium.sequence import Item, Plan, Sample, Segment
from sensorium.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()
TYPED = "你好 <b>&</b> <|im_end|> \x1b[31m [bold] \u202egnp"


def picture(colour: str = "red", size: tuple[int, int] = (30, 20)) -> PictureFile:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return PictureFile(buffer.getvalue(), name=colour)


def rendered(*segments: Segment):
    sample = Sample(segments, id="row <7>", source="my.jsonl")
    renderer = Renderer(TOKENIZER, Template(), plan=lambda kind, shape: Plan(5), load=lambda kind, media: item(media))
    return sample, renderer.render(sample)


def item(media) -> Item:
    return Item(torch.zeros(1), media.shape(), media.key())


@pytest.fixture(scope="module")
def row():
    return rendered(
        Segment("image", picture(), role="user"),
        Segment("text", TYPED, role="user"),
        Segment("text", "好", role="assistant"),
    )


def test_cells_hold_every_token_once_with_its_weight(row):
    tokens = row[1]
    found = cells(tokens, TOKENIZER)
    assert [id for cell in found for id in cell.ids] == tokens.ids.tolist()
    weights = [cell.weight for cell in found for _ in cell.ids]
    assert weights == tokens.weight.tolist()
    assert "".join(cell.text for cell in found if cell.kind != "span").count(TYPED) == 1
    trained = "".join(cell.text for cell in found if cell.weight)
    assert trained == "好<|im_end|>"
    # three bytes, one character, one cell
    assert [(cell.text, len(cell.ids)) for cell in found if "好" in cell.text] == [("好", 3), ("好", 3)]
    assert [cell.text for cell in found if cell.kind == "special"] == ["<|im_start|>", "<|im_end|>"] * 2
    (span,) = [cell for cell in found if cell.kind == "span"]
    assert span.text == "image 1 30x20: 5 tokens"
    assert len(span.ids) == 5


def test_counts(row):
    counts = summary(row)
    assert counts["tokens"] == len(row[1])
    assert counts["trained"] == 4  # three bytes and the stop
    assert counts["spans"] == [{"kind": "image", "tokens": 5, "mode": "embed"}]
    (value,) = json.loads(json.dumps(preview_json([row], TOKENIZER)))
    assert sum(cell["tokens"] for cell in value["cells"]) == counts["tokens"]


def test_the_page_is_self_contained_and_escaped(row):
    page = preview_html([row, row], TOKENIZER, title="A & B")
    assert page.count("<article>") == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert not re.search(r"<script|<link|https?://|<b>", page)
    assert "<title>A &amp; B</title>" in page
    assert "row &lt;7&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    words = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert visible(TYPED) in words
    trained = re.findall(r'<span class="t[^"]*" style="--w:1" title="[^"]*">([^<]*)</span>', page)
    assert [html.unescape(text) for text in trained] == ["好", "<|im_end|>"] * 2
    assert "30x20: 5 tokens" in page
    assert "4 carry loss" in page


def test_the_thumbnail_is_the_picture_of_its_own_span():
    two = rendered(
        Segment("image", picture("red", (400, 300)), role="user"),
        Segment("image", picture("blue"), role="user"),
        Segment("image", picture("red", (400, 300)), role="user"),
    )
    urls = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', preview_html([two], TOKENIZER))
    shown = [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]
    assert [image.size for image in shown] == [(192, 144), (30, 20), (192, 144)]
    assert [max(range(3), key=lambda channel: image.getpixel((5, 5))[channel]) for image in shown] == [0, 2, 0]


def test_a_picture_that_broke_since_is_said_to_be_broken(row, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG not really")
    sample = Sample((Segment("image", PictureFile(path), role="user"),), id="x")
    tokens = rendered(Segment("image", picture(), role="user"))[1]
    tokens.items["image"][0] = Item(None, (20, 30), PictureFile(path).key())
    page = preview_html([(sample, tokens)], TOKENIZER)
    assert "broken.png" in page
    assert "<img" not in page


def test_the_terminal_shows_text_as_it_is(row):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    preview_terminal([row], TOKENIZER, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]" in shown
    assert "\x1b" not in shown
    assert "␛[31m" in shown
    assert "[image 1 30x20: 5 tokens]" in shown
    assert "4 carry loss, 1 media" in shown
    colours = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    preview_terminal([row], TOKENIZER, colours)
    painted = re.findall(r"\x1b\[[0-9;]*48;5;22m([^\x1b]*)\x1b", colours.file.getvalue())  # type: ignore[attr-defined]
    assert "好" in painted
    assert "你" not in "".join(painted)


def test_branches_are_told_apart():
    segments = [Segment("text", "what?", role="user")]
    segments += [Segment("text", word, role="assistant", branch=n) for n, word in enumerate(("cat", "dog"), 1)]
    branched = rendered(*segments)
    assert preview_html([branched], TOKENIZER).count('class="branch"') == 2
    assert {cell.branch for cell in cells(branched[1], TOKENIZER)} == {0, 1, 2}
