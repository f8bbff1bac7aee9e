"""Boxes as text: every convention written and read back, and found with their names in what a model says."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensorium.data.boxes import _READERS, BOX_FORMATS, FoundBox, find_boxes, format_box, parse_box
from sensorium.errors import UserError

STEP = {"hundred": 0.006, "decimal": 0.006, "patches": 1 / 32}
"""How far off a box may be that was written and read; one in a thousand in the other conventions."""


def test_conventions_by_hand():
    box = (0.1, 0.25, 0.5, 1.0)
    assert format_box(box, "hundred") == "{<10><25><50><100>}"
    assert format_box(box, "thousand") == "[100, 250, 500, 999]"
    assert format_box(box, "decimal") == "[0.10, 0.25, 0.50, 1.00]"
    assert format_box(box, "loc") == "<loc_100><loc_250><loc_500><loc_999>"
    assert format_box(box, "pairs") == "(100,250),(500,999)"
    assert format_box(box, "patches") == "<patch_index_0259><patch_index_1007>"  # rows 8 and 31, columns 3 and 15
    assert format_box(box, "loc_rows") == "<loc0256><loc0102><loc1023><loc0512>"
    assert parse_box("{<50><10><20><30>}", "hundred") is None
    with pytest.raises(UserError, match="decimal"):
        format_box(box, "decimals")
    with pytest.raises(UserError, match="decimal"):
        parse_box("", "decimals")


edge = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize("convention", sorted(BOX_FORMATS))
@given(edges=st.tuples(edge, edge, edge, edge))
@example(edges=(0.0, 0.0, 0.0, 0.0))
@example(edges=(1.0, 1.0, 1.0, 1.0))
@example(edges=(0.0, 1.0, 0.0, 1.0))
@example(edges=(0.0, 1.0, 0.5, 0.5))
def test_what_is_written_is_read(convention: str, edges: tuple[float, float, float, float]):
    (x0, x1), (y0, y1) = sorted(edges[:2]), sorted(edges[2:])
    text = f"it is at {format_box((x0, y0, x1, y1), convention)}, I think"
    read = parse_box(text, convention)
    assert read == pytest.approx((x0, y0, x1, y1), abs=STEP.get(convention, 0.0011))
    assert find_boxes(text)[0].box == read
    assert len(find_boxes(text)) == 1
    assert parse_box("nowhere", convention) is None


def test_every_convention_is_written_and_read():
    assert set(BOX_FORMATS) == set(_READERS)


def test_names_as_each_system_marks_them():
    said = {
        "<p>a cat</p> {<10><20><30><40>} and a dog {<50><50><60><60>}": ["a cat", None],
        "<ref>the bench</ref><box>(100,200),(300,400)</box>": ["the bench"],
        "<|object_ref_start|>hat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>": ["hat"],
        "<ref>cats</ref><box>[[10, 20, 30, 40], [50, 60, 70, 80]]</box>": ["cats", "cats"],
        "<grounding> An image of<phrase> a\npage</phrase><object><patch_index_0003><patch_index_0047>"
        "</delimiter_of_multi_objects/><patch_index_0100><patch_index_0200></object> and": ["a page", "a page"],
        "<loc0100><loc0200><loc0300><loc0400> black cat ; <loc0000><loc0000><loc1023><loc1023> sky": [
            "black cat",
            "sky",
        ],
        "the man[[100,200,300,400;500,600,700,800]]": [None, None],
        "[0.1,0.2,0.35,0.4]": [None],
    }
    for text, labels in said.items():
        assert [found.label for found in find_boxes(text)] == labels, text


def test_kosmos_cells_by_hand():
    """Cells 3 (row 0) and 47 (row 1, column 15): middles; 3 and 15 share a row: around both."""
    assert find_boxes("<patch_index_0003><patch_index_0047>") == [
        FoundBox((3.5 / 32, 0.5 / 32, 15.5 / 32, 1.5 / 32), None)
    ]
    assert find_boxes("<patch_index_0003><patch_index_0015>") == [FoundBox((3 / 32, 0.0, 16 / 32, 1 / 32), None)]


def test_what_is_no_box():
    for text in (
        "[3, 2, 1, 0]",
        "[1.5, 2.0, 3.0, 4.0]",
        "[1, 2, 3]",
        "{<101><102><103><104>}",
        "f(1,2)",
        "(1,2) or (3,4)",
    ):
        assert find_boxes(text) == [], text


@given(st.text(alphabet="[](){}<>0123456789.,; _locpatchindexbrf/|\n", max_size=200))
def test_any_text_is_read(text: str):
    for found in find_boxes(text):
        x0, y0, x1, y1 = found.box
        assert 0 <= x0 <= x1 <= 1
        assert 0 <= y0 <= y1 <= 1
