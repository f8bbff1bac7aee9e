"""What is done to a connector before gradient descent. No published model starts like this: recipes that do say so.

RidgeStart    a linear layer is fitted by ridge regression so that a picture's tokens come as near as they can to the
              mean word embedding of its caption, in the language model's own input space. A language model that has
              never seen a picture then reads pictures as vague words from the first step on, and concepts that no
              caption named land near their neighbours. That a linear map carries so far is known from DeViSE (Frome et
              al. 2013) and LiMBeR (Merullo et al. 2023)
CentredStart  what all features have in common is taken away: features of a convnet are positive, and two thirds of
              their power says nothing about a picture. Statistics of data for the first layer are known from
              data-dependent initialisation (Krähenbühl et al. 2016, arXiv 1511.06856)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sensorium.config import Config
from sensorium.connectors.base import Connector
from sensorium.data.source import RowError, SourceConfig
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError
from sensorium.models.wiring import Wiring
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features
from sensorium.sequence import Item, MediaError, Sample
from sensorium.tokenizer import Tokenizer
from sensorium.train.features import FrozenEncoder

Affine = nn.Linear | nn.LayerNorm | Norm


class Start(Config):
    """Of `connectors.<kind>`, before a stage begins that trains it and not the encoder.

    layer  name of the layer that is set; "": see there
    batch  items encoded at a time
    """

    kind: str = "image"
    layer: str = ""
    batch: int = 32
    done: ClassVar[str]
    """What has been done, in words."""

    @property
    def fitted_to(self) -> SourceConfig | None:
        """The rows that it reads, where they are not the stage's."""
        return None

    @property
    def sets(self) -> str:
        """What it sets, by the prefix of its parameters: all of the connector where no layer is named."""
        return ".".join(filter(None, ("connectors", self.kind, self.layer)))

    def fit(self, model: Wiring, tokenizer: Tokenizer, frozen: FrozenEncoder, data: SourceConfig) -> None:
        """Set the layer; data: of the stage. Raises UserError when the connector or the data do not bear it."""
        raise NotImplementedError(f"{self.tag()} says not what it does")


class RidgeStart(Start):
    """Fit `connectors.<kind>` on picture-caption pairs.

    data   pairs: samples with one item of `kind`, and a text that is said about it, an answer or a plain caption; of a
           mixture every row counts once
    tokens all: every token of a picture is fitted to the caption; last: its last one alone, and what the others become
           follows from it
    ridge  regularisation relative to the mean variance of a feature
    gain   factor on the fitted slope
    layer  a linear one, which reads equally many rows of every item (a resampler's `enter`, a Q-Former's `out`); "":
           the connector's only one
    centre leave out the mean of all captions, so that what the layer makes of pictures has mean zero
    words  a phrase for each row of a parameter of the connector, {"place": ("top left", ...)}: the rows start as the
           phrases' mean word embeddings, less the mean of them all
    """

    data: SourceConfig
    tokens: Literal["all", "last"] = "all"
    ridge: float = 0.1
    gain: float = 1.0
    centre: bool = False
    words: dict[str, tuple[str, ...]] = {}
    done: ClassVar[str] = "fitted in closed form"

    @property
    def fitted_to(self) -> SourceConfig:
        return self.data

    def fit(self, model: Wiring, tokenizer: Tokenizer, frozen: FrozenEncoder, data: SourceConfig) -> None:
        ridge_start(self, model, tokenizer, frozen)


class CentredStart(Start):
    """Make what the first layer says of a picture vary around zero, with standard deviation one over all its numbers.

    layer  a linear one or a LayerNorm, with a bias; "": the first that reads features
    count  rows of the stage's data, spread evenly, whose items are looked at
    """

    count: int = 256
    done: ClassVar[str] = "centred on the features"

    def fit(self, model: Wiring, tokenizer: Tokenizer, frozen: FrozenEncoder, data: SourceConfig) -> None:
        centred_start(self, model, frozen, data)


@torch.no_grad()
def ridge_start(
    start: RidgeStart,
    model: Wiring,
    tokenizer: Tokenizer,
    frozen: FrozenEncoder,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Set the weight and bias of the connector's linear layer. Raises UserError when it has not exactly one layer."""
    connector = model.connectors[start.kind]
    assert isinstance(connector, Connector)
    layer, others = _fitted(start, connector)
    if model.stack.embed is None:
        raise UserError("a ridge start needs a backbone with word embeddings")
    table = model.stack.embed.weight
    words = model.stack.embed_tokens(torch.arange(len(table), device=table.device)).float().cpu()
    if layer.out_features != words.shape[1]:
        raise UserError(f"a ridge start fits word embeddings of width {words.shape[1]}; the {start.kind} connector's "
                        f"layer makes {layer.out_features}")  # fmt: skip
    source = start.data.build()
    fit = Ridge(layer.in_features, words.shape[1])
    for first in range(0, len(source), start.batch):
        samples = [source[index] for index in range(first, min(first + start.batch, len(source)))]
        features = _features(samples, start.kind, frozen)
        names = torch.stack([words[tokenizer.encode(" " + _caption(sample))].mean(0) for sample in samples])
        inputs = _inputs(connector, layer, features).float().cpu()
        lengths = _rows_of_each(start, connector, features, len(inputs))
        if start.tokens == "last":
            inputs, lengths = inputs[lengths.cumsum(0) - 1], torch.ones_like(lengths)
        fit.add(inputs, names.repeat_interleave(lengths, 0))
        if progress is not None:
            progress(first + len(samples), len(source))
    slope, intercept = fit.solve(start.ridge, start.gain, start.centre)
    layer.weight.copy_(slope.T)
    if layer.bias is not None:
        layer.bias.copy_(intercept)
    for name, phrases in start.words.items():
        param = others.get(name)
        if param is None or param.shape != (len(phrases), words.shape[1]):
            had = {other: tuple(value.shape) for other, value in others.items()}
            raise UserError(f"a ridge start has {len(phrases)} phrases for {name!r} of width {words.shape[1]}; "
                            f"the {start.kind} connector has {had}")  # fmt: skip
        vectors = torch.stack([words[tokenizer.encode(" " + phrase)].mean(0) for phrase in phrases])
        param.copy_(vectors - vectors.mean(0))


@torch.no_grad()
def centred_start(start: CentredStart, model: Wiring, frozen: FrozenEncoder, data: SourceConfig) -> None:
    """Set weight and bias of the layer. Raises UserError when there is none, or the data has no items of the kind."""
    connector = model.connectors[start.kind]
    assert isinstance(connector, Connector)
    items, rows = _spread(start, data, frozen)
    if len(items) < 2:
        raise UserError(f"a centred start wants some {start.kind}s; {rows} rows of the stage's data have {len(items)}")
    said: list[Tensor] = []
    layer = None
    for first in range(0, len(items), start.batch):
        features = _encoded(items[first : first + start.batch], frozen)
        layer = layer or _first(start, connector, features)
        said.append(layer(_inputs(connector, layer, features)).float())
    assert layer is not None
    values = torch.cat(said)
    mean = values.mean(0)
    variance = (values - mean).square().mean()
    if not 1e-12 < float(variance) < float("inf"):
        raise UserError(f"a centred start wants {start.kind}s that differ; what the connector's first layer says of "
                        f"{len(items)} of them has variance {float(variance):g}")  # fmt: skip
    scale = variance.rsqrt()
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    weight.mul_(scale)
    bias.sub_(mean.to(bias.dtype)).mul_(scale)


def _spread(start: CentredStart, data: SourceConfig, frozen: FrozenEncoder) -> tuple[list[Item], int]:
    """The items of some rows, without those that cannot be read, which training skips too; how many rows were read."""
    source = data.build()
    rows = torch.linspace(0, len(source) - 1, min(start.count, len(source))).long().unique().tolist()
    items: list[Item] = []
    for row in rows:
        try:
            items += [frozen.load(one.data) for one in source[row].segments if one.kind == start.kind]
        except (RowError, MediaError):
            continue
    return items, len(rows)


def _first(start: CentredStart, connector: Connector, features: Features) -> Affine:
    """The layer that is named, or the first with weight and bias whose input depends on the features."""
    layers = {
        name: part for name, part in connector.named_modules()
        if isinstance(part, Affine) and getattr(part, "bias", None) is not None
    }  # fmt: skip
    if start.layer:
        if start.layer not in layers:
            raise UserError(
                f"the {start.kind} connector has no layer {start.layer!r} with a bias: one of {list(layers)}"
            )
        return layers[start.layer]
    reached: list[str] = []

    def reads(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            reached.append(name)

    hooks = [part.register_forward_pre_hook(partial(reads, name)) for name, part in layers.items()]
    learned = [param for param in connector.parameters() if param.requires_grad]
    try:
        connector.requires_grad_(False)  # so that the features alone make an input depend on something
        with torch.enable_grad():
            values = features.values.detach().to(next(connector.parameters()).dtype).requires_grad_()
            connector(Features(values, features.grids))
    finally:
        for param in learned:
            param.requires_grad_()
        for hook in hooks:
            hook.remove()
    if not reached:
        raise UserError(f"no layer of the {start.kind} connector that reads features has a bias: it has {list(layers)}")
    return layers[reached[0]]


def _fitted(start: RidgeStart, connector: Connector) -> tuple[nn.Linear, dict[str, nn.Parameter]]:
    """The layer that is fitted, and the connector's other parameters. Raises UserError when the choice is not clear."""
    named = {name: part for name, part in connector.named_modules() if isinstance(part, nn.Linear)}
    layer = named.get(start.layer) if start.layer else next(iter(named.values()), None)
    if layer is None or (start.layer == "" and len(named) != 1):
        raise UserError(f"a ridge start fits one linear layer; the {start.kind} connector {connector.config} has "
                        f"{sorted(named)}: name it with `layer`")  # fmt: skip
    own = {id(param) for param in layer.parameters()}
    others = {name: param for name, param in connector.named_parameters() if id(param) not in own}
    if not start.layer and any(param.any() for name, param in others.items() if name not in start.words):
        raise UserError(f"a ridge start fits one linear layer; the {start.kind} connector is {connector.config}")
    return layer, others


def _rows_of_each(start: RidgeStart, connector: Connector, features: Features, rows: int) -> Tensor:
    """(items) how many of the rows that the layer read are of each item."""
    if not start.layer:
        return torch.tensor([connector.config.num_tokens(grid) for grid in features.grids])
    items = len(features.grids)
    if rows % items:
        raise UserError(f"{start.layer!r} of the {start.kind} connector read {rows} rows of {items} items: a ridge "
                        "start needs equally many of each")  # fmt: skip
    return torch.full((items,), rows // items)


def _inputs(connector: Connector, layer: nn.Module, features: Features) -> Tensor:
    """(N, in) what the layer reads when the connector gets these features."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    try:
        connector(Features(features.values.to(next(layer.parameters()).dtype), features.grids))
    finally:
        hook.remove()
    return torch.cat(seen)


class Ridge:
    """Least squares with a penalty on the slope, from sums over batches of rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.x, self.y = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.xx, self.xy = torch.zeros(inputs, inputs), torch.zeros(inputs, outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (N, inputs), y (N, outputs) float32."""
        self.rows += len(x)
        self.x += x.double().sum(0)
        self.y += y.double().sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def solve(self, strength: float, gain: float = 1.0, centre: bool = False) -> tuple[Tensor, Tensor]:
        """Slope (inputs, outputs) and intercept (outputs); `strength` is relative to the mean variance of an input.

        centre  the intercept makes the mean output zero, not the mean of y
        """
        x, y = self.x / self.rows, self.y / self.rows
        covariance = self.xx.double() / self.rows - torch.outer(x, x)
        cross = self.xy.double() / self.rows - torch.outer(x, y)
        penalty = strength * covariance.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
        slope = gain * torch.linalg.solve(covariance + penalty, cross)
        return slope.float(), ((0 if centre else y) - x @ slope).float()


def _features(samples: list[Sample], kind: str, frozen: FrozenEncoder) -> Features:
    items = []
    for sample in samples:
        media = [segment.data for segment in sample.segments if segment.kind == kind]
        if len(media) != 1:
            raise UserError(f"a ridge start wants one {kind} a sample, {sample.id or 'a sample'} has {len(media)}")
        items.append(frozen.load(media[0]))
    return _encoded(items, frozen)


def _encoded(items: list[Item], frozen: FrozenEncoder) -> Features:
    encoder = frozen.encoder
    assert isinstance(encoder, Encoder)
    return encoder(frozen.complete(items))


def _caption(sample: Sample) -> str:
    """What is said about the item: the words without a role, or the assistant's."""
    said = [part for part in sample.segments if part.kind == "text" and part.role in (None, "assistant")]
    return " ".join(str(part.data) for part in said)
