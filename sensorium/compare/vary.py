"""One axis of one recipe: a part of a slot by its short name, or any value of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from sensorium.config import Config, override
from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP, GatedMLP
from sensorium.connectors.pool import AveragePool, PixelShuffle
from sensorium.connectors.qformer import QFormer
from sensorium.connectors.resampler import Resampler
from sensorium.errors import UserError, nearest
from sensorium.models.fused import Fused
from sensorium.train.recipe import Recipe

HEAD = 32
"""Width of an attention head in a connector that is made here, where the width allows."""


def _resampler(width: int, cells: int) -> Connector.Config:
    heads = max(1, width // HEAD)
    return Resampler.Config(latents=_queries(cells), depth=2, heads=heads, head_width=width // heads)


def _qformer(width: int, cells: int) -> Connector.Config:
    heads = max(1, width // HEAD)
    return QFormer.Config(
        queries=_queries(cells), norm=True, vocab=0, text_ffn=False, width=heads * (width // heads), depth=2,
        heads=heads, hidden=2 * width,
    )  # fmt: skip


def _queries(cells: int) -> int:
    """Of 576 features Perceiver resamplers and Q-Formers make 32 to 64; of fewer a quarter, at most 32."""
    return max(1, min(32, cells // 4))


CONNECTORS: dict[str, Callable[[int, int], Connector.Config]] = {
    "linear": lambda width, cells: MLP.Config(depth=1),
    "mlp": lambda width, cells: MLP.Config(depth=2),
    "gated_mlp": lambda width, cells: GatedMLP.Config(hidden=2 * width),
    "pool": lambda width, cells: AveragePool.Config(factor=2),
    "pixel_shuffle": lambda width, cells: PixelShuffle.Config(factor=2),
    "resampler": _resampler,
    "qformer": _qformer,
}
"""Short names of connectors -> one for features of a width, so many of a picture of the native size."""


def varied(recipe: Recipe, axis: str) -> list[tuple[str, Recipe]]:
    """(value as written, recipe with it) of `path=a,b,c`. Raises UserError for a path or a value that is none."""
    path, equals, text = axis.partition("=")
    if not equals or not text.strip():
        raise UserError(f"--vary {axis!r} is not of the form PATH=a,b,c, for example stages.align.lr=1e-3,5e-4")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise UserError(f"--vary {axis!r}: the values are not readable: {error}") from error
    found: dict[str, Recipe] = {}
    for value in values:
        name = str(value) if not isinstance(value, dict | list) else yaml.safe_dump(value, default_flow_style=True)
        name = name.strip().removesuffix("\n...")
        if name in found:
            raise UserError(f"--vary {axis!r} names {name!r} twice")
        found[name] = _with(recipe, path.strip(), value, name)
    if len(found) < 2:
        raise UserError(f"--vary {axis!r} compares nothing: give at least two values")
    return list(found.items())


def _with(recipe: Recipe, path: str, value: Any, name: str) -> Recipe:
    before = _at(recipe, path)
    if isinstance(before, Connector.Config) and isinstance(value, str):
        if value not in CONNECTORS:
            raise UserError(f"there is no connector {value!r}: {nearest(value, CONNECTORS)}")
        value = _connector(recipe, path, value).model_dump(mode="json")
    elif isinstance(before, Config) and isinstance(value, str):
        raise UserError(f"{path} is a {before.tag()}, of which no other has a short name: vary one of its fields, such "
                        f"as {path}.{next(iter(type(before).model_fields), 'name')}")  # fmt: skip
    return override(recipe, f"{path}={yaml.safe_dump(value, default_flow_style=True, width=1_000_000)}")


def _at(recipe: Recipe, path: str) -> Any:
    """The value at a path; None where the path does not lead to a part (`override` then says what is wrong)."""
    node: Any = recipe
    for step in path.split("."):
        if isinstance(node, Config):
            node = getattr(node, step, None)
        elif isinstance(node, dict):
            node = node.get(step)
        else:
            return None
    return node


def _connector(recipe: Recipe, path: str, name: str) -> Connector.Config:
    kind = path.rpartition(".")[2]
    model = recipe.model
    encoder = model.encoders.get(kind) if isinstance(model, Fused.Config) else None
    if encoder is None:
        raise UserError(f"{path}: {recipe.name} has no encoder {kind!r} whose features a {name} could connect")
    rows, cols = encoder.cells
    return CONNECTORS[name](encoder.width, rows * cols)
