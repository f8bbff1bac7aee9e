"""NFNet: a residual convolutional network without normalisation (Brock et al. 2021, arXiv 2102.06171)."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.encoders.base import Encoder
from sensorium.encoders.transform import ImageTransform

DEPTHS = (1, 2, 6, 3)  # of F0; F1, F2 ... have twice, three times ... as many blocks
WIDTHS = (256, 512, 1536, 1536)
GROUP = 128  # channels of a group in a grouped convolution
STRIDE = 32
ALPHA = 0.2  # scale of a residual branch
GELU_GAIN = 1.7015  # keeps the variance of a GELU's output at one (appendix D)


class NFNet(Encoder):
    """Views -> features of the last convolution, before pooling: size / 32 cells on a side, twice as wide as the last
    stage.

    F6 is the eye of Flamingo (arXiv 2204.14198, section 3.1.1): 435 M parameters without its classifier.
    """

    class Config(Encoder.Config):
        """variant: 0 to 7, how many times F0's blocks less one. widths: of the four stages."""

        transform: ImageTransform = ImageTransform(size=288)
        variant: int = Field(default=0, ge=0)
        widths: tuple[int, int, int, int] = WIDTHS
        group: int = Field(default=GROUP, ge=1)

        @model_validator(mode="after")
        def _strides_divide(self) -> Self:
            if self.transform.size % STRIDE:
                raise ValueError(f"transform.size {self.transform.size} is no multiple of {STRIDE}, the stride")
            return self

        @property
        def width(self) -> int:
            return 2 * self.widths[-1]

        @property
        def cells(self) -> tuple[int, int]:
            return self.transform.size // STRIDE, self.transform.size // STRIDE

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.stem = nn.ModuleList(
            ScaledConv(before, after, 3, stride) for before, after, stride in ((3, 16, 2), (16, 32, 1), (32, 64, 1))
        )
        self.stem.append(ScaledConv(64, 128, 3, 2))
        blocks: list[nn.Module] = []
        before, expected = 128, 1.0
        for stage, (depth, width) in enumerate(zip(DEPTHS, config.widths)):
            for index in range(depth * (config.variant + 1)):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(Residual(before, width, stride, config.group, expected**0.5, index == 0))
                expected = 1.0 + ALPHA**2 if index == 0 else expected + ALPHA**2
                before = width
        self.blocks = nn.ModuleList(blocks)
        self.head = ScaledConv(before, config.width, 1)

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> (V, H / 32 * W / 32, D)."""
        x = views.contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.stem):
            x = conv(x if index == 0 else activated(x))
        for block in self.blocks:
            x = block(x)
        return activated(self.head(x)).flatten(2).transpose(1, 2)


def activated(x: Tensor) -> Tensor:
    return F.gelu(x) * GELU_GAIN


class ScaledConv(nn.Module):
    """A convolution whose weights are standardised over their fan-in each time (section 3)."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride, self.groups, self.padding = stride, groups, kernel // 2
        self.weight = nn.Parameter(torch.empty(out, width // groups, kernel, kernel))
        self.gain, self.bias = nn.Parameter(torch.ones(out)), nn.Parameter(torch.zeros(out))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """x: (V, in, H, W) -> (V, out, H / stride, W / stride)."""
        flat = self.weight.flatten(1)
        variance, mean = torch.var_mean(flat, dim=1, keepdim=True, correction=0)
        scale = torch.rsqrt((variance * flat.shape[1]).clamp(min=1e-4)) * self.gain[:, None]
        weight = ((flat - mean) * scale).view_as(self.weight)
        return F.conv2d(x, weight.to(x.dtype), self.bias.to(x.dtype), self.stride, self.padding, 1, self.groups)


class Residual(nn.Module):
    """Narrow, two grouped 3 x 3 convolutions, widen, squeeze-and-excite; added with a learned gain from zero.

    before  scale that the input is expected to have, divided out first
    """

    def __init__(self, width: int, out: int, stride: int, group: int, before: float, moves: bool) -> None:
        super().__init__()
        inner = out // 2
        groups = max(1, inner // group)
        self.before, self.stride = before, stride
        self.narrow = ScaledConv(width, inner, 1)
        self.spatial = nn.ModuleList(
            [ScaledConv(inner, inner, 3, stride, groups), ScaledConv(inner, inner, 3, groups=groups)]
        )
        self.widen = ScaledConv(inner, out, 1)
        self.shortcut = ScaledConv(width, out, 1) if moves else None
        self.squeeze, self.excite = nn.Linear(out, out // 2), nn.Linear(out // 2, out)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x: (V, in, H, W) -> (V, out, H / stride, W / stride)."""
        y = activated(x) / self.before
        kept = x
        if self.shortcut is not None:
            kept = self.shortcut(F.avg_pool2d(y, 2, 2) if self.stride == 2 else y)
        y = self.narrow(y)
        for conv in self.spatial:
            y = conv(activated(y))
        y = self.widen(activated(y))
        seen = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return kept + y * (2 * seen[:, :, None, None]) * (ALPHA * self.gain.to(y.dtype))


def nfnet_f6(size: int = 288) -> NFNet.Config:
    """NFNet-F6 at 288 px: 81 features of 3,072."""
    return NFNet.Config(transform=ImageTransform(size=size, resize="squash"), variant=6)
