"""The list of systems: nothing is claimed that no test shows, and the page in docs is the generated one."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from sensorium.recipes.catalog import names
from sensorium.systems import LETTERS, SHOWN, markdown, systems

ROOT = Path(__file__).parent.parent


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_recipe_is_a_system_with_recipe_and_figures_shown():
    found = {one.name: one for one in systems()}
    assert set(found) == set(names())
    for one in found.values():
        assert one.sizes == ("tiny", "small", "paper")
        assert {"R", "F"} <= set(one.letters) <= set(LETTERS)
        assert one.paper and one.family  # noqa: PT018
    assert {name for name, _ in SHOWN} <= set(found)


def test_every_piece_of_evidence_exists():
    for one in systems():
        for letter, evidence in one.letters.items():
            assert evidence, (one.name, letter)
            for item in evidence:
                if item.startswith("sensorium "):
                    continue
                path, _, test = item.partition("::")
                assert test.partition("[")[0] in functions(path), item


def test_the_page_in_docs_is_the_generated_one():
    page = (ROOT / "docs" / "systems.md").read_text("utf-8")
    assert page == markdown(), "run: sensorium systems --markdown > docs/systems.md"


def test_json_says_what_is_shown_and_by_what():
    one = next(one.to_json() for one in systems() if one.name == "llava-next")
    assert set(one) == {"name", "title", "family", "paper", "sizes", "letters"}
    assert one["letters"]["F"] == ["tests/recipes/test_catalog.py::test_published_figures_hold[llava-next]"]
