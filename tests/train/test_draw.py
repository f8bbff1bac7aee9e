"""The drawing: well-formed, complete, inside its canvas, and honest about what trains."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sensorium.recipes.catalog import find, names
from sensorium.train.describe import describe
from sensorium.train.draw import FROZEN, TRAINED, draw_svg

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(name: str, size: str) -> ElementTree.Element:
    return ElementTree.fromstring(draw_svg(describe(find(name, size), costs=False)))


def texts(root: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in root.iter(f"{SPACE}text")]


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_drawn_inside_its_canvas(name: str):
    root = drawn(name, "tiny")
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for node in root.iter():
        if node.tag in (f"{SPACE}rect", f"{SPACE}text"):
            x, y = float(node.attrib.get("x", 0)), float(node.attrib.get("y", 0))
            assert 0 <= x <= x + float(node.attrib.get("width", 0)) <= width
            assert 0 <= y <= y + float(node.attrib.get("height", 0)) <= height


def test_parts_stages_and_numbers_are_written_on_it():
    found = texts(drawn("llava-1.5", "paper"))
    for text in ("LLaVA-1.5 7B", "6.74 B parameters", "21 M parameters", "304 M parameters", "576 image tokens"):
        assert text in found
    assert {"1  align", "2  instruct", "336 x 336 pixels"} <= set(found)
    assert "trains 21 M, frozen 7.04 B" in found


def test_colours_say_what_trains():
    svg = draw_svg(describe(find("llava", "tiny"), costs=False))
    cards = [line for line in svg.splitlines() if 'height="21"' in line]  # bars of parts: 3 in each of 2 stages
    colours = [re.search(r'fill="(#\w+)"', line) for line in cards]
    assert [match[1] for match in colours if match] == [FROZEN, TRAINED, FROZEN, FROZEN, TRAINED, TRAINED]
    encoder = next(line for line in svg.splitlines() if line.startswith("<polygon"))
    assert FROZEN in encoder


def test_tiles_and_adapters_are_drawn():
    assert "up to 672 x 672 pixels: a thumbnail and 4 tiles of 336" in texts(drawn("llava-next", "paper"))
    assert "LoRA  33.6 M" in texts(drawn("minigpt-v2", "paper"))


def test_text_of_a_recipe_cannot_become_markup():
    recipe = find("llava", "tiny").replace(title="<script>A & B</script>")
    root = ElementTree.fromstring(draw_svg(describe(recipe, costs=False)))
    assert texts(root)[0] == "<script>A & B</script>"
    assert not list(root.iter(f"{SPACE}script"))
