"""`sensorium convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sensorium.commands.output import console_for, print_json
from sensorium.convert.adapters import is_adapter, open_adapter, write_adapter
from sensorium.convert.family import FAMILIES, Family, family_named
from sensorium.convert.files import Files
from sensorium.convert.gguf import GGUF, open_gguf
from sensorium.convert.gguf_write import write_gguf
from sensorium.convert.hubs import published_folder
from sensorium.convert.published import open_published, read_published, write_published
from sensorium.errors import OtherKind, UserError, nearest
from sensorium.models.fused import Fused
from sensorium.models.wiring import Wiring
from sensorium.nn.blank import blank
from sensorium.nn.lora import merge_lora
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer
from sensorium.train.checkpoint import load_checkpoint
from sensorium.train.recipe import Recipe

LAYOUTS = ("hf", "peft", "gguf")


@dataclass(slots=True)
class Source:
    """What is converted. family: that it came in, or None; came: with these files; base: under its adapters; context:
    the longest text it was trained on, in tokens, where that is known; notes: what is said about it."""

    model: Wiring
    tokenizer: Tokenizer | None
    template: Template
    family: Family | None = None
    came: Files | None = None
    base: str = ""
    recipe: Recipe | None = None
    context: int | None = None
    notes: list[str] = field(default_factory=list)


def run_convert(
    source: Path, out: Path, to: str, family: str | None, json: bool, language: bool = False,
    numbers: str | None = None,
) -> None:  # fmt: skip
    if to not in LAYOUTS:
        raise UserError(f"there is no layout {to!r}: {nearest(to, LAYOUTS)}")
    if numbers is not None and to != "gguf":
        raise UserError("--type chooses the numbers of a GGUF file: leave it out, or give --to gguf")
    found = _opened(source)
    if language:
        merge_lora(found.model)
        found = _language(found)
    if to == "gguf":
        if family is not None:
            raise UserError("--family chooses a layout of transformers: leave it out with --to gguf")
        _to_gguf(found, out, numbers, json)
        return
    chosen = found.family or _that_can(found.model)
    if family is not None and family != chosen.name:
        chosen, found.came = family_named(family), None
    if to == "peft":
        _check_adapted(found)
        write_adapter(out, chosen, found.model, found.base)
    else:
        merge_lora(found.model)
        write_published(out, chosen, found.model, found.tokenizer, found.template, found.came)
    files = sorted(path.name for path in out.iterdir())
    if json:
        print_json({"out": str(out), "family": chosen.name, "files": files, "notes": found.notes})
    else:
        for note in found.notes:
            console_for(False).print(f"note: {note}", markup=False, soft_wrap=True)
        text = f"{out}: {', '.join(files)} in the layout of {chosen.name}"
        console_for(False).print(text, markup=False, soft_wrap=True)


def _opened(source: Path) -> Source:
    """A published folder or hub id, an adapter with its base, a run or one of its checkpoints."""
    published = published_folder(source)
    if published is not None or is_adapter(source):
        opened = open_published(published) if published is not None else open_adapter(source)
        return Source(opened.model, opened.tokenizer, opened.template, opened.family, opened.files,
                      str(opened.files.folder))  # fmt: skip
    if source.is_file() and source.suffix == ".gguf":
        with GGUF(source) as file:
            context = file.context()
        return Source(*open_gguf(source), context=context)
    if not source.is_dir():
        raise UserError(f"there is no folder {source}: give a run, a checkpoint, a published folder or a GGUF file")
    recipe, model, tokenizer = load_checkpoint(source)
    found = Source(model, tokenizer, recipe.template_of(model.config), recipe=recipe)
    if recipe.start is not None and model.config == recipe.model:
        found.base = recipe.start.folder
        _take_settings(found, recipe.start.folder)
    return found


def _take_settings(found: Source, base: str) -> None:
    """Family and settings of the published model that a run began with, where it is still there."""
    try:
        folder = published_folder(base)
    except UserError:
        folder = None
    if folder is None:
        found.notes.append(f"{base}, which this run began with, is not there: what its config says besides what the "
                           "model is made of is left out")  # fmt: skip
        return
    said = read_published(folder)
    found.family, found.came = said.family, said.files


def _language(found: Source) -> Source:
    """The language model alone, of a model whose other parts no layout has."""
    config = found.model.config
    if not isinstance(config, Fused.Config) or config.source is not None:
        raise UserError(f"--language takes the language model out of a model that has one; this is {config.tag()}")
    with blank():
        alone = Fused.Config(backbone=config.backbone).build()
    alone.load_state_dict(
        {f"backbone.{name}": one for name, one in found.model.stack.state_dict().items()}, assign=True
    )
    return Source(alone.eval(), found.tokenizer, found.template.replace(media={}, placeholder={}))


def _check_adapted(found: Source) -> None:
    """Raises UserError where adapters are not all that was learned, or lie on no published model."""
    if found.base == "":
        raise UserError("an adapter needs the published model that it is for: this run began from none (--to hf writes "
                        "all of it)")  # fmt: skip
    for stage in found.recipe.stages if found.recipe is not None else ():
        names = [name for name in found.model.state_dict() if ".lora_" not in name and stage.trains(name)]
        if names:
            raise UserError(f"stage {stage.name!r} trained {len(names)} tensors besides adapters ({names[0]}, ...): an "
                            "adapter alone would lose them; write all of it (--to hf)")  # fmt: skip


def _to_gguf(found: Source, out: Path, numbers: str | None, json: bool) -> None:
    if found.tokenizer is None:
        raise UserError(f"GGUF holds a language model, this is a {found.model.config.tag()} without words")
    merge_lora(found.model)
    context = found.context
    if context is None and found.came is not None:
        said = found.came.config.values
        context = said.get("max_position_embeddings") or said.get("text_config", {}).get("max_position_embeddings")
    if context is None and found.recipe is not None:
        context = max((stage.tokens for stage in found.recipe.stages), default=None)
    written = write_gguf(out, found.model, found.tokenizer, found.template, numbers=numbers, context=context)
    files = [str(path) for path in written.files]
    if json:
        print_json({"out": str(out), "files": files, "notes": written.notes})
        return
    for line in (", ".join(files), *(f"note: {note}" for note in written.notes)):
        console_for(False).print(line, markup=False, soft_wrap=True)


def _that_can(model: Wiring) -> Family:
    """The first family whose layout says the model. Raises UserError with the reason of each that cannot."""
    reasons, others = [], []
    for one in FAMILIES:
        try:
            one.write(model.config)
        except OtherKind:
            others.append(one.name)
        except UserError as error:
            reasons.append(f"{one.name}: {error}")
        else:
            return one
    told = [*reasons, f"of other kinds of models: {', '.join(others)}"]
    raise UserError("no published layout can say this model. Its language model alone may have one: --language.\n  "
                    + "\n  ".join(told))  # fmt: skip
