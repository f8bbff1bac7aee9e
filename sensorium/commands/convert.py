"""`sensorium convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.commands.output import console_for, print_json
from sensorium.convert.family import FAMILIES, Family, family_named
from sensorium.convert.files import Files
from sensorium.convert.published import is_published, open_published, write_published
from sensorium.errors import UserError, nearest
from sensorium.train.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from sensorium.models.wiring import Wiring

LAYOUTS = ("hf",)


def run_convert(source: Path, out: Path, to: str, family: str | None, json: bool) -> None:
    if to not in LAYOUTS:
        raise UserError(f"there is no layout {to!r}: {nearest(to, LAYOUTS)}")
    if not source.is_dir():
        raise UserError(f"there is no folder {source}: give a run, a checkpoint or a published folder")
    came: Files | None = None
    if is_published(source):
        opened = open_published(source)
        model, tokenizer, template = opened.model, opened.tokenizer, opened.template
        chosen, came = opened.family, opened.files
        if family is not None and family != chosen.name:
            chosen, came = family_named(family), None
    else:
        recipe, model, tokenizer = load_checkpoint(source)
        template = recipe.template_of(model.config)
        chosen = family_named(family) if family is not None else _that_can(model)
    write_published(out, chosen, model, tokenizer, template, came)
    files = sorted(path.name for path in out.iterdir())
    if json:
        print_json({"out": str(out), "family": chosen.name, "files": files})
    else:
        text = f"{out}: {', '.join(files)} in the layout of {chosen.name}"
        console_for(False).print(text, markup=False, soft_wrap=True)


def _that_can(model: Wiring) -> Family:
    """The first family whose layout says the model. Raises UserError with the reason of each that cannot."""
    reasons = []
    for one in FAMILIES:
        try:
            one.write(model.config)
        except UserError as error:
            reasons.append(f"{one.name}: {error}")
        else:
            return one
    raise UserError("no published layout can say this model yet.\n  " + "\n  ".join(reasons))
