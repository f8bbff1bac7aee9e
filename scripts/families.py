"""docs/families.md, the published layouts that are read and written: python scripts/families.py > docs/families.md"""

from __future__ import annotations

from sensorium.convert.family import FAMILIES

HEAD = """# Published layouts

What `sensorium.load` opens and `sensorium convert` writes; a folder's family is read from its config, never from its
path. Of each, tests hold a model of the reference's own class with random weights, in a plain and an unusual config,
against what is opened here: numbers within 2e-4 in float32, greedy text and token ids the same, prepared pictures
within 1e-5, and what is written back the same to the last bit and opened by the reference. `qwen2_vl` and `smolvlm`
read clips too: ids, frames and numbers are held against what the published processors made of them
(`scripts/clip_fixtures.py`). Made by `scripts/families.py`.

| family | `model_type` or class of the config | class that is written |
|-|-|-|
"""


def page() -> str:
    rows = [(one.name, _listed(one.types), _listed((one.architecture, *one.also))) for one in FAMILIES]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in sorted(rows))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
