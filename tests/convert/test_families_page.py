import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_families_is_that_of_the_program():
    spec = importlib.util.spec_from_file_location("families", ROOT / "scripts/families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = (ROOT / "docs/families.md").read_text("utf-8")
    assert said == module.page(), "run: python scripts/families.py > docs/families.md"
