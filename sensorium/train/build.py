"""From a recipe to a model with its weights, tokenizer and renderer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sensorium.convert.gguf import GGUF
from sensorium.convert.hubs import published_folder
from sensorium.convert.published import Said, fill_published, read_published
from sensorium.encoders import efficientnet
from sensorium.errors import UserError
from sensorium.hub import fetch
from sensorium.hub.pretrained import Pretrained
from sensorium.models.denoiser import Denoiser
from sensorium.models.generator import Generator
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.sequence import Item, Media
from sensorium.tokenizer import Tokenizer
from sensorium.train.recipe import Published, Recipe


@dataclass(slots=True)
class Loaded:
    """What a partial load did, by parameter name."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
        for name, members in (("missing", self.missing), ("unexpected", self.unexpected)):
            if members:
                shown = ", ".join(members[:4]) + (" ..." if len(members) > 4 else "")
                text += f"; {len(members)} {name}: {shown}"
        return text


def build_model(recipe: Recipe, config: Wiring.Config | None = None) -> Wiring:
    """A wiring (default: the recipe's model) with random weights that depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return (config or recipe.model).build()


def load_pretrained(
    model: Wiring, recipe: Recipe, progress: Callable[..., None] | None = None, known: Collection[str] = ()
) -> dict[str, Loaded]:
    """Fill the recipe's pretrained parts, those in `known` excepted; further routes then start as copies of the first.

    The recipe names parts of its own model. Where `model` is the wiring of a stage, those it shares with that are
    filled; of a generator's denoiser, which a stage trains by itself, those within it.
    Raises UserError when a part's weights do not fit it.
    """
    reports = {}
    if recipe.start is not None and model.config == recipe.model:
        fill_published(model, _said(recipe, recipe.start))
        return reports
    modules = dict(model.named_modules())
    within = _place_of(model, recipe)

    def is_known(part: str) -> bool:
        """Whether a part, or one that holds it, is there already."""
        return any(part == one or part.startswith(f"{one}.") for one in known)

    for name, pretrained in recipe.init.items():
        part = name.removeprefix(within)
        if not name.startswith(within) or is_known(part) or part not in modules:  # a stage may do without a part
            continue
        path = fetch(pretrained, progress=progress) if progress else fetch(pretrained)
        report = load_part(modules[part], _tensors(pretrained, path))
        added = [name for name in report.missing if not ADDED.search(name)]
        if added:
            raise UserError(f"{pretrained.name} does not fill {part!r} of recipe {recipe.name!r}: {report}")
        reports[part] = report
    for name, module in modules.items():
        if isinstance(module, Backbone) and not is_known(name):
            module.start_routes()
    return reports


def _folder_of(start: Published) -> Path:
    """Raises UserError where it is not there."""
    folder = published_folder(start.folder)
    if folder is None:
        raise UserError(f"{start.folder} is no published checkpoint, and this run begins with it: restore the folder")
    return folder


def _said(recipe: Recipe, start: Published) -> Said:
    """What the published folder says now. Raises UserError where it is not what the recipe was made of."""
    said = read_published(_folder_of(start))
    if said.config != recipe.model:
        raise UserError(f"{start.folder} describes another model than the one this run began with: give that one")
    return said


def _place_of(model: Wiring, recipe: Recipe) -> str:
    """What stands before the names of a wiring's parts in the recipe's model."""
    generators = getattr(recipe.model, "generators", {})
    found = [kind for kind, one in generators.items() if one.denoiser == model.config]
    return f"generators.{found[0]}.denoiser." if found else ""


ADDED = re.compile(r"(^|\.)blocks\.\d+\.(routes|cross)\.")
"""What a design adds to the blocks of a published stack."""


def become(model: Wiring, recipe: Recipe, config: Wiring.Config) -> Wiring:
    """The wiring `config` with the parts that `model` has already; the others start as in a new run."""
    if model.config == config:
        return model
    made = build_model(recipe, config)
    shared = set()
    for room in ("encoders", "connectors", "codecs"):
        before, after = getattr(model, room), getattr(made, room)
        for kind in set(before) & set(after):
            if room == "connectors" and before[kind].out_width != after[kind].out_width:
                after[kind].adopt(before[kind])
            else:
                after[kind] = before[kind]
            shared.add(f"{room}.{kind}")
    for kind, generator in made.generators.items():  # a wiring that a stage trained is the same within another
        assert isinstance(generator, Generator)
        before = model.generators[kind] if kind in model.generators else None  # noqa: SIM401 (no mapping)
        if isinstance(before, Generator) and before.config == generator.config:
            generator.connector, generator.denoiser = before.connector, before.denoiser
            shared |= {f"generators.{kind}.{part}" for part in ("connector", "denoiser")}
        elif generator.denoiser.config == model.config:
            assert isinstance(model, Denoiser)
            generator.denoiser = model
            shared.add(f"generators.{kind}.denoiser")
    load_pretrained(made, recipe, known=shared)
    return made


def _tensors(pretrained: Pretrained, path) -> Iterable[tuple[str, Tensor]]:
    match pretrained.format:
        case "gguf":
            with GGUF(path) as file:
                yield from file.tensors(torch.float32)
        case "state_dict":
            yield from efficientnet.load_published(path).items()
        case other:
            raise UserError(f"{pretrained.name} is stored as {other!r}, which fills no part here yet")


@torch.no_grad()
def load_part(part: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Loaded:
    """Copy tensors into a part by name, one at a time. A tensor of another shape raises UserError with both shapes.

    A vocabulary may be larger than the file's: its further rows are drawn with the mean and spread of the file's.
    """
    own = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    loaded, unexpected = [], []
    for name, tensor in tensors:
        if name not in own:
            unexpected.append(name)
            continue
        if VOCABULARY.search(name) and len(own[name]) > len(tensor):
            tensor = _more_rows(tensor, len(own[name]))
        if own[name].shape != tensor.shape:
            raise UserError(f"{name!r} is {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model")
        own[name].copy_(tensor)
        loaded.append(name)
    persistent = set(part.state_dict())
    return Loaded(loaded, sorted(persistent - set(loaded)), unexpected)


VOCABULARY = re.compile(r"(^|\.)(embed|head)\.weight$")
"""Tensors with a row for each token."""


def _more_rows(table: Tensor, rows: int) -> Tensor:
    """table (V, D) -> (rows, D)."""
    draw = torch.randn(rows - len(table), table.shape[1], generator=torch.Generator().manual_seed(len(table)))
    return torch.cat([table, (table.mean(0) + draw.to(table) * table.std(0)).to(table.dtype)])


def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """The recipe's tokenizer; its vocabulary must fit the backbone's."""
    if recipe.start is not None:
        tokenizer = Tokenizer.load(_folder_of(recipe.start))
    elif isinstance(recipe.tokenizer, Pretrained):
        with GGUF(fetch(recipe.tokenizer)) as file:
            tokenizer = file.tokenizer()
    else:
        tokenizer = Tokenizer.bytes()
    model = recipe.model
    words = model.stack.vocab
    if recipe.start is None:  # a published tokenizer has tokens for all that its model says, marks and codes among them
        words = min([words, *(min(tokens.ids) for tokens in model.formats.values())])
    if len(tokenizer) > words:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the backbone's vocabulary room for {words} words")
    return tokenizer


def item_loader(model: Wiring) -> Callable[[str, Media], Item]:
    """(kind, media) -> Item, decoded and preprocessed as the model's encoder or codec of that kind asks."""

    def load(kind: str, media: Media) -> Item:
        return Item(model.reader(kind).preprocess(media.load()), media.shape(), media.key())

    return load
