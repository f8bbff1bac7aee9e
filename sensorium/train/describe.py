"""What a recipe is, before anything runs: parts, parameters, stages, tokens, cost and published figures.

The model is built on the meta device, so a 13 B recipe is described in seconds without allocating its weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from sensorium.codecs.base import Codec
from sensorium.config import Config
from sensorium.connectors.base import Connector
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError, nearest
from sensorium.models.wiring import Wiring
from sensorium.nn.backbone import Backbone
from sensorium.nn.blank import blank
from sensorium.nn.lora import add_lora
from sensorium.nn.moe import MixtureOfExperts
from sensorium.sequence import Item
from sensorium.train.checkpoint import parts_of
from sensorium.train.cost import ASSUMPTIONS, Cost, stage_costs
from sensorium.train.recipe import Recipe, Stage

Shape = tuple[int, int]
Reader = Encoder.Config | Codec.Config
PartConfig = Encoder.Config | Connector.Config | Codec.Config | Backbone.Config


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage: parameters that train and do not, by part (`trained`, all), and what it costs."""

    name: str
    trained: int
    frozen: int
    parts: dict[str, tuple[int, int]]
    cost: Cost | None
    stage: Stage

    def to_json(self) -> dict[str, Any]:
        cost = {} if self.cost is None else self.cost.to_json()
        return {
            "name": self.name,
            "trained": self.trained,
            "frozen": self.frozen,
            "parts": {
                part: {"trained": trained, "frozen": every - trained} for part, (trained, every) in self.parts.items()
            },
            "train": list(self.stage.train),
            "lr": self.stage.lr,
            **cost,
            "published": self.stage.published,
        }


@dataclass(frozen=True, slots=True)
class FigureView:
    """A published number beside ours; `holds` when they differ by at most `tolerance` (relative)."""

    name: str
    published: float
    ours: float
    tolerance: float
    source: str

    @property
    def holds(self) -> bool:
        return abs(self.ours - self.published) <= self.tolerance * abs(self.published)

    def to_json(self) -> dict[str, Any]:
        names = ("name", "published", "ours", "tolerance", "holds", "source")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Description:
    """A recipe described. `parts` maps a part to its parameters, adapters of any stage included as `<part>.lora`."""

    recipe: Recipe
    parts: dict[str, int]
    stages: tuple[StageView, ...]
    tokens: dict[str, int]
    tokens_by_size: dict[str, dict[str, int]]
    figures: tuple[FigureView, ...]
    sizes: dict[str, int]
    """Parameters by full name."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "name": recipe.name,
            "title": recipe.title,
            "size": recipe.size,
            "family": recipe.family,
            "paper": recipe.paper,
            "parameters": {"total": self.total, "by_part": self.parts},
            "stages": [stage.to_json() for stage in self.stages],
            "tokens_per_item": self.tokens,
            "tokens_by_size": self.tokens_by_size,
            "figures": [figure.to_json() for figure in self.figures],
            "deviations": list(recipe.deviations),
            "assumptions": list(ASSUMPTIONS),
        }


def describe(recipe: Recipe, *, costs: bool = True) -> Description:
    """Describe a recipe; without `costs` in a fraction of the time.

    Raises UserError when a stage's globs match nothing, or when a figure counts nothing known.
    """
    with blank():
        model = recipe.model.build()
    readers = recipe.model.readers
    shapes = {kind: native(reader) for kind, reader in readers.items()}
    wirings = {recipe.model.to_json(): (recipe.model, model)}
    stages = []
    for index, stage in enumerate(recipe.stages):
        config = recipe.wiring(index)
        if config.to_json() not in wirings:
            with blank():
                wirings[config.to_json()] = config, config.build()
        _, full = wirings[config.to_json()]
        add_lora(full, stage.adapters)
        stages.append(_stage_view(full, stage))
    if costs:
        for config, full in wirings.values():
            items = {kind: _meta_item(reader, native(reader)) for kind, reader in config.readers.items()}
            places = [index for index in range(len(stages)) if recipe.wiring(index) == config]
            measured = stage_costs(config, [recipe.stages[index] for index in places], items, full)
            for index, cost in zip(places, measured, strict=True):
                stages[index] = replace(stages[index], cost=cost)
    tokens = {kind: recipe.model.num_tokens(kind, shape) for kind, shape in shapes.items()}
    by_size = {
        kind: {
            f"{height}x{width}": recipe.model.num_tokens(kind, (height, width)) for height, width in canvases(reader)
        }
        for kind, reader in readers.items()
    }
    parts = _sizes(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counted = Description(recipe, parts, tuple(stages), tokens, by_size, (), sizes)
    return replace(counted, figures=tuple(_figures(counted)))


def _meta_item(reader: Reader, shape: Shape) -> Item:
    """A picture of `shape`, preprocessed, without its pixels."""
    views = 1 if isinstance(reader, Codec.Config) else reader.grid(shape).views
    return Item(torch.empty(views, 3, *reader.transform.extent(shape), device="meta"), shape)


def native(reader: Reader) -> Shape:
    """(height, width) of the picture an encoder or codec is made for: one view, or its largest, squarest canvas of
    tiles."""
    return max(canvases(reader), key=lambda canvas: (min(canvas), max(canvas)))


def canvases(reader: Reader) -> tuple[Shape, ...]:
    """(height, width) of every picture size that is preferred: one view, or the candidates of its tiles."""
    transform = reader.transform
    if transform.split and transform.first is not None:
        return ((transform.first, transform.first),)
    return transform.tiles or (transform.view,)


def measure(described: Description, key: str) -> float:
    """The number that a Figure names.

    parameters.total, parameters.<part>, parameters.without_codecs; share.<part> of all parameters; trained.<stage>,
    lr.<stage>; stages; tokens.<kind>, tokens.<kind>@<height>x<width>; tiles.<kind>@..., pixels.<kind>@... of the tiles;
    view.<kind> (pixels on a side), features.<kind> of an encoder or codec for a picture of its native size;
    codes.<kind> of a codec, cell.<kind> (pixels on a side of one code or latent), frames.<kind>; width, depth, heads,
    kv_heads, hidden, vocab and context (learned positions) of the text stack; reading.every so many blocks have
    cross-attention; matching.<glob>, the parameters whose names a glob matches; what the wiring itself measures.
    Raises UserError for any other key.
    """
    known = _measures(described)
    if key.startswith("matching."):
        glob = key.partition(".")[2]
        return sum(count for name, count in described.sizes.items() if fnmatchcase(name, glob))
    name, _, size = key.partition("@")
    kind = name.partition(".")[2]
    if size and kind in described.recipe.model.kinds:
        shape = tuple(map(int, size.split("x")))
        reader = described.recipe.model.reader(kind)
        tiles = reader.transform.views((shape[-2], shape[-1])) - 1
        known |= {
            f"tokens.{kind}@{size}": described.recipe.model.num_tokens(kind, shape),
            f"features.{kind}@{size}": reader.grid(shape).tokens,
            f"tiles.{kind}@{size}": tiles,
            f"pixels.{kind}@{size}": tiles * reader.transform.size**2,
        }
    if key not in known:
        raise UserError(
            f"recipe {described.recipe.name!r} has a figure {key!r}, which nothing counts: {nearest(key, known)}"
        )
    return known[key]


def _measures(described: Description) -> dict[str, float]:
    model, total = described.recipe.model, described.total
    stack = model.stack
    attention, ffn = stack.block.attention, stack.block.ffn
    found: dict[str, float] = {"parameters.total": total, "stages": len(described.stages)}
    coded = sum(count for part, count in described.parts.items() if part.startswith("codecs."))
    found["parameters.without_codecs"] = total - coded
    for part, count in described.parts.items():
        found[f"parameters.{part}"] = count
        found[f"share.{part}"] = count / total
    for view in described.stages:
        found[f"trained.{view.name}"] = view.trained
        if not isinstance(view.stage.lr, dict):
            found[f"lr.{view.name}"] = view.stage.lr
    for kind, count in described.tokens.items():
        found[f"tokens.{kind}"] = count
        reader = model.readers[kind]
        found[f"features.{kind}"] = reader.grid(native(reader)).tokens
        found[f"view.{kind}"] = reader.transform.size
        if isinstance(reader, Codec.Config):
            found |= {f"codes.{kind}": reader.codes, f"cell.{kind}": reader.spatial, f"frames.{kind}": reader.temporal}
    found |= {**model.measures, "context": stack.positions}
    found |= {"width": stack.width, "depth": stack.depth, "vocab": stack.vocab}
    if stack.block.cross is not None:
        found["reading.every"] = stack.cross_every
    found |= {"heads": attention.heads, "kv_heads": attention.kv_heads or attention.heads, "hidden": ffn.hidden}
    return found


def _figures(described: Description) -> Iterable[FigureView]:
    for figure in described.recipe.figures:
        ours = measure(described, figure.name)
        yield FigureView(figure.name, figure.published, ours, figure.tolerance, figure.source)


def _sizes(model: Wiring) -> dict[str, int]:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {part: sum(sizes[name] for name in names) for part, names in parts_of(sizes).items()}


def _stage_view(model: Wiring, stage: Stage) -> StageView:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for glob in stage.train:
        if not any(stage.replace(train=(glob,)).trains(name) for name in sizes):
            raise UserError(
                f"stage {stage.name!r}: train glob {glob!r} matches no parameter; parts: {sorted(parts_of(sizes))}"
            )
    parts = {
        part: (sum(sizes[name] for name in names if stage.trains(name)), sum(sizes[name] for name in names))
        for part, names in parts_of(sizes).items()
    }
    trained = sum(count for count, _ in parts.values())
    return StageView(stage.name, trained, sum(sizes.values()) - trained, parts, None, stage)


def part_configs(model: Wiring.Config) -> dict[str, PartConfig]:
    """Parts by name, in the order data takes."""
    parts: dict[str, PartConfig] = {f"codecs.{kind}": codec for kind, codec in model.codecs.items()}
    for kind in model.encoders:
        parts[f"encoders.{kind}"] = model.encoders[kind]
        if kind in model.connectors:
            parts[f"connectors.{kind}"] = model.connectors[kind]
    stacks = {name: getattr(model, name, None) for name in ("text", "backbone")}
    parts |= {name: stack for name, stack in stacks.items() if isinstance(stack, Backbone.Config)}
    for kind, one in getattr(model, "generators", {}).items():
        parts |= {f"generators.{kind}.connector": one.connector, f"generators.{kind}.denoiser": one.denoiser.backbone}
    return parts


def summary(config: PartConfig) -> str:
    """A part in a few words: its kind and the fields that make it what it is."""
    facts: list[str] = []
    stack = config if isinstance(config, Backbone.Config) else getattr(config, "backbone", None)
    if isinstance(config, Encoder.Config):
        rows, cols = config.cells
        facts.append(f"{config.transform.size} px, {rows} x {cols} features of {config.width}")
        if config.transform.tiles:
            facts.append(f"{len(config.transform.tiles)} tile canvases")
        if config.transform.split:
            facts.append("split into tiles")
    if isinstance(config, Codec.Config):
        grid, time = config.grid(native(config)), f" x {config.temporal} frames" if config.temporal > 1 else ""
        made = f"{config.codes:,} codes" if config.codes else f"latents of {config.width}"
        cell = f"{config.spatial} x {config.spatial} px{time}"
        facts.append(f"{config.transform.size} px, {grid.rows} x {grid.cols} cells of {cell}, {made}")
    if isinstance(stack, Backbone.Config) and not stack.depth:
        facts.append(f"a table of {stack.vocab:,} embeddings of {stack.width}")
    elif isinstance(stack, Backbone.Config):
        attention, ffn = stack.block.attention, stack.block.ffn
        groups = f" ({attention.kv_heads} kv)" if attention.kv_heads else ""
        mixed = f" x {ffn.experts}, {ffn.top} a token" if isinstance(ffn, MixtureOfExperts.Config) else ""
        facts.append(f"{stack.depth} blocks of {stack.width}, {attention.heads} heads{groups}, ffn {ffn.hidden}{mixed}")
        if stack.local is not None:
            near = sum(map(stack.local.at, range(stack.depth)))
            facts.append(f"a window of {stack.local.window:,} tokens in {near}")
        if stack.vocab:
            facts.append(f"vocabulary {stack.vocab:,}" + (", tied" if stack.tied else ""))
    if isinstance(config, Connector.Config):
        facts += _fields(config)
    return f"{_kind(config)}: {', '.join(facts)}" if facts else _kind(config)


def _kind(config: Config) -> str:
    return config.tag().rpartition(".")[2]


def _fields(config: Config) -> Iterable[str]:
    for field in type(config).model_fields:
        value = getattr(config, field)
        if isinstance(value, Config):
            facts = ", ".join(_fields(value))
            yield f"{field} {_kind(value)}" + (f" ({facts})" if facts else "")
        elif isinstance(value, bool):
            if value and field != "bias":
                yield field
        elif isinstance(value, int | float | str):
            yield f"{field} {value}"


def count(number: float) -> str:
    """7,062,902,784 -> 7.06 B."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:g}"


def size_of(amount: float) -> str:
    """Bytes in GB (1e9) or MB."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def describe_tree(described: Description) -> RenderableType:
    """The description for a terminal: a tree of parts, a table of stages, one of figures."""
    recipe = described.recipe
    root = Tree(
        Text.assemble((recipe.title, "bold"), f"  ({recipe.name}, {recipe.size})  {count(described.total)} parameters")
    )
    if recipe.paper:
        root.add(Text(recipe.paper, style="dim"))
    for part, config in part_configs(recipe.model).items():
        line = Text.assemble((part, "cyan"), f"  {count(described.parts.get(part, 0))}  ", (summary(config), "dim"))
        branch = root.add(line)
        kind = part.partition(".")[2]
        if part.startswith("connectors") or (part.startswith("codecs") and kind in described.tokens_by_size):
            sizes = described.tokens_by_size[kind]
            for size, tokens in list(sizes.items()):
                branch.add(f"{tokens} tokens for an item of {size} (height x width)")
        if (lora := described.parts.get(f"{part}.lora")) is not None:
            branch.add(Text.assemble(("adapters (LoRA)", "cyan"), f"  {count(lora)}"))
    for part, number in described.parts.items():  # heads and the like, which no value of their own describes
        if part.removesuffix(".lora") not in part_configs(recipe.model):
            root.add(Text.assemble((part, "cyan"), f"  {count(number)}"))
    tables: list[RenderableType] = [root, _stage_table(described)]
    if described.figures:
        tables.append(_figure_table(described))
    notes = [f"deviation: {text}" for text in recipe.deviations] + [f"assumed: {text}" for text in ASSUMPTIONS]
    return Group(*tables, Text("\n".join(notes), style="dim"))


def _stage_table(described: Description) -> Table:
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "trains", "trained", "frozen", "training FLOPs / sample", "memory", "as published"):
        table.add_column(name, overflow="fold")
    for view in described.stages:
        trains = ", ".join(part for part, (trained, _) in view.parts.items() if trained)
        table.add_row(
            view.name,
            trains,
            count(view.trained),
            count(view.frozen),
            count(view.cost.flops.training) if view.cost else "",
            size_of(view.cost.memory.total) if view.cost else "",
            view.stage.published,
        )
    return table


def _figure_table(described: Description) -> Table:
    table = Table(title="published figures", title_justify="left")
    for name in ("figure", "published", "ours", "tolerance", "holds", "source"):
        table.add_column(name, overflow="fold")
    for figure in described.figures:
        mark = Text("yes", "green") if figure.holds else Text("NO", "bold red")
        published, ours = (f"{number:,.10g}" for number in (figure.published, figure.ours))
        table.add_row(figure.name, published, ours, f"{figure.tolerance:.1%}", mark, figure.source)
    return table
