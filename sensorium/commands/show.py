"""`sensorium show` and `sensorium systems`."""

from __future__ import annotations

from pathlib import Path

from sensorium.commands.output import console_for, print_json
from sensorium.config import override
from sensorium.convert.hubs import published_folder
from sensorium.errors import UserError
from sensorium.recipes.catalog import find
from sensorium.recipes.finetune import finetune
from sensorium.train.recipe import Recipe


def resolve(name: str, size: str | None, overrides: list[str] | tuple[str, ...]) -> Recipe:
    """A recipe with `--set` applied; of a published checkpoint's folder, its fine-tuning.

    Raises UserError for an unknown name, size, path or value.
    """
    folder = published_folder(name)
    if folder is not None and size is not None:
        raise UserError(f"{name} is a published checkpoint, which has one size: leave out --size")
    recipe = find(name, size) if folder is None else finetune(folder, name)
    for assignment in overrides:
        recipe = override(recipe, assignment)
    return recipe


def run_show(name: str, size: str | None, overrides: list[str], draw: Path | None, json: bool) -> None:
    if draw is not None and draw.suffix != ".svg":
        raise UserError(f"--draw writes SVG: give a file that ends in .svg, not {draw}")
    recipe = resolve(name, size, overrides)
    from sensorium.train.describe import describe, describe_tree

    described = describe(recipe)
    if draw is not None:
        from sensorium.train.draw import draw_svg

        draw.parent.mkdir(parents=True, exist_ok=True)
        draw.write_text(draw_svg(described), "utf-8")
    if json:
        print_json(described.to_json())
    else:
        console = console_for(json)
        console.print(describe_tree(described))
        if draw is not None:
            console.print(f"drawn into {draw}", markup=False, soft_wrap=True)


def run_systems(markdown: bool, json: bool) -> None:
    from sensorium import systems

    if json:
        print_json([entry.to_json() for entry in systems.systems()])
    elif markdown:
        print(systems.markdown(), end="")
    else:
        console_for(json).print(systems.table())
