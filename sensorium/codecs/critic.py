"""Who tells pictures from their reconstructions, piece by piece: an option of a codec's training stage."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from sensorium.config import Config as Value
from sensorium.nn.part import Part


class Critic(Part):
    """Strided convolutions to one number for each piece of a picture (PatchGAN, Isola et al. 2017, arXiv 1611.07004,
    section 3.2; so VQGAN, arXiv 2012.09841, section 3.1). Frames are judged one by one."""

    class Config(Value):
        """channels: of the first layer, doubled with every further one of the `depth` that halve the map."""

        channels: int = Field(default=64, ge=1)
        depth: int = Field(default=3, ge=1)

    def __init__(self, config: Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for level in range(config.depth):
            width = config.channels * 2**level
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(1, width)] if level else []
            layers += [nn.LeakyReLU(0.2)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, pieces), larger where a piece looks real."""
        frames = pixels.transpose(1, 2).flatten(0, 1)
        return self.layers(frames).view(len(pixels), -1)


def as_it_is(critic: Critic, pixels: Tensor) -> Tensor:
    """The same judgement with gradients to the pixels alone: what a codec learns from it does not move the critic."""
    fixed = {name: tensor.detach() for name, tensor in critic.named_parameters()}
    return torch.func.functional_call(critic, fixed, (pixels,))
