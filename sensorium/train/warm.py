"""A closed-form start for a linear connector.

Before gradient descent, the connector is fitted by ridge regression so that every token of a picture is as near as it
can be to the mean word embedding of the caption, in the language model's own input space. A language model that has never seen a picture
then reads pictures as vague words from the first step on, and concepts that no caption named land near their
neighbours (linear zero-shot maps: Frome et al. 2013, DeViSE; Merullo et al. 2023, LiMBeR, show that a linear map
suffices). No published LLaVA does this; recipes that use it say so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sensorium.config import Config
from sensorium.connectors.mlp import MLP
from sensorium.data.source import SourceConfig
from sensorium.encoders.base import Encoder
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.part import Features
from sensorium.sequence import Sample
from sensorium.tokenizer import Tokenizer
from sensorium.train.features import FrozenEncoder


class RidgeStart(Config):
    """Fit `connectors.<kind>` on picture-caption pairs before a stage begins.

    data   pairs: samples with one item of `kind`, and text
    ridge  regularisation relative to the mean variance of a feature
    gain   factor on the fitted slope
    batch  items encoded at a time
    """

    data: SourceConfig
    kind: str = "image"
    ridge: float = 0.1
    gain: float = 1.0
    batch: int = 32


@torch.no_grad()
def ridge_start(
    start: RidgeStart,
    model: Fused,
    tokenizer: Tokenizer,
    frozen: FrozenEncoder,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Set the connector's weight and bias. Raises UserError for a connector that is not one linear layer."""
    connector = model.connectors[start.kind]
    if not isinstance(connector, MLP) or len(connector.layers) != 1 or len(connector.norms):
        raise UserError(f"a ridge start fits one linear layer; the {start.kind} connector is {connector.config}")
    if model.backbone.embed is None:
        raise UserError("a ridge start needs a backbone with word embeddings")
    words = model.backbone.embed.weight.float().cpu()
    source = start.data.build()
    fit = Ridge(connector.in_width, words.shape[1])
    for first in range(0, len(source), start.batch):
        samples = [source[index] for index in range(first, min(first + start.batch, len(source)))]
        features = _features(samples, start.kind, frozen)
        names = torch.stack([words[tokenizer.encode(" " + _caption(sample))].mean(0) for sample in samples])
        fit.add(features.values.float().cpu(), names.repeat_interleave(torch.tensor(features.lengths), 0))
        if progress is not None:
            progress(first + len(samples), len(source))
    slope, intercept = fit.solve(start.ridge, start.gain)
    layer = connector.layers[0]
    layer.weight.copy_(slope.T)
    if layer.bias is not None:
        layer.bias.copy_(intercept)


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

    def solve(self, strength: float, gain: float = 1.0) -> tuple[Tensor, Tensor]:
        """Slope (inputs, outputs) and intercept (outputs); `strength` is relative to the mean variance of an input."""
        x, y = self.x / self.rows, self.y / self.rows
        covariance = self.xx.double() / self.rows - torch.outer(x, x)
        cross = self.xy.double() / self.rows - torch.outer(x, y)
        penalty = strength * covariance.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
        slope = gain * torch.linalg.solve(covariance + penalty, cross)
        return slope.float(), (y - x @ slope).float()


def _features(samples: list[Sample], kind: str, frozen: FrozenEncoder) -> Features:
    items = []
    for sample in samples:
        media = [segment.data for segment in sample.segments if segment.kind == kind]
        if len(media) != 1:
            raise UserError(f"a ridge start wants one {kind} a sample, {sample.id or 'a sample'} has {len(media)}")
        items.append(frozen.load(media[0]))
    encoder = frozen.encoder
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        return encoder(frozen.complete(items))


def _caption(sample: Sample) -> str:
    return " ".join(str(segment.data) for segment in sample.segments if segment.kind == "text")
