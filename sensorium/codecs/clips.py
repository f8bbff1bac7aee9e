"""Pictures and clips as codes, as the tokenizer that Emu3 was released with makes them (arXiv 2409.18869, section 2.2).

    pixels -- convolutions of frames -- causal convolutions in time -- codes -- the same back -- pixels

On the way back every norm is scaled and shifted by the vectors of the codes (MoVQ: Zheng et al. 2022, arXiv 2209.09002,
section 3.2), so that details which norms wipe out come back. `vq.VQ` with time is the plain design of the same kind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.codecs.base import Codec
from sensorium.codecs.conv import CellAttention, Convolutions, Down
from sensorium.codecs.vq import Quantized, Quantizer
from sensorium.encoders.transform import ImageTransform


class ClipVQ(Quantized):
    """Pixels -> codes -> pixels. A picture is a clip that stands still as long as frames become one."""

    class Config(Codec.Config):
        """conv  time_blocks stand on either side of the book, between convolutions in time
        quantizer  its width is that of the latents
        """

        transform: ImageTransform = ImageTransform(size=512, resize="area", multiple=8)
        conv: Convolutions = Convolutions(temporal=4, halving="end")
        quantizer: Quantizer.Config = Quantizer.Config(codes=32_768, width=4, learning="gradient", revive=0.0)

        @property
        def spatial(self) -> int:
            return self.conv.spatial

        @property
        def temporal(self) -> int:
            return self.conv.temporal

        @property
        def width(self) -> int:
            return 1

        @property
        def codes(self) -> int:
            return self.quantizer.codes

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, conv = config.quantizer.width, config.conv
        steps = conv.temporal.bit_length() - 1
        self.down = Down(conv.replace(temporal=1), width)
        self.halves = nn.ModuleList(CausalConv(width, (4, 3, 3), 2) for _ in range(steps))
        self.before = nn.ModuleList(TimeResidual(width) for _ in range(conv.time_blocks))
        self.enter = CausalConv(width, (3, 1, 1))
        self.quantizer: Quantizer = config.quantizer.build()
        self.leave = CausalConv(width, (3, 1, 1))
        self.behind = nn.ModuleList(TimeResidual(width) for _ in range(conv.time_blocks))
        self.doubles = nn.ModuleList(CausalConv(width, (3, 3, 3)) for _ in range(steps))
        self.up = UpByCodes(conv, width)

    def reference(self) -> Tensor:
        return self.quantizer.book

    def _vectors(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, f, rows, cols, width); the last frame stands still to fill up."""
        x = self.down(pixels)
        short = -x.shape[2] % self.config.temporal
        if short:
            x = F.pad(x, (0, 0, 0, 0, 0, short), mode="replicate")
        for conv in self.halves:
            x = F.silu(conv(x))
        for block in self.before:
            x = block(x)
        return self.enter(x).permute(0, 2, 3, 4, 1)

    def _pixels(self, vectors: Tensor, frames: int) -> Tensor:
        """vectors (N, f, rows, cols, width) -> (N, 3, frames, H, W)."""
        codes = vectors.permute(0, 4, 1, 2, 3)
        both = torch.cat([self.leave(codes), codes])  # codes go through the layers of time as latents do
        for block in self.behind:
            both = block(both)
        for conv in self.doubles:
            both = F.silu(conv(both.repeat_interleave(2, dim=2)))
        latents, codes = (part.transpose(1, 2).flatten(0, 1) for part in both[:, :, :frames].chunk(2))
        return self.up(latents, codes).unflatten(0, (len(vectors), -1)).transpose(1, 2)


class CausalConv(nn.Module):
    """A convolution over time and space in which no frame sees a later one."""

    def __init__(self, width: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.edge = kernel[1] // 2
        self.conv = nn.Conv3d(width, width, kernel, stride=(stride, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, F, H, W) -> (N, width, F / stride, H, W); two frames of zeros are before the first."""
        return self.conv(F.pad(x, (*(self.edge,) * 4, 2, 0)))


class Fixed(nn.Module):
    """Batch norm with the statistics that it was trained with (Ioffe and Szegedy 2015, arXiv 1502.03167)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, ...) -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class TimeResidual(nn.Module):
    """x + conv(conv(x)) over time and space, each behind norm and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(Fixed(width), nn.SiLU(), CausalConv(width, (3, 3, 3)))
        self.second = nn.Sequential(Fixed(width), nn.SiLU(), CausalConv(width, (3, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, F, H, W) -> the same shape."""
        return x + self.second(self.first(x))


class UpByCodes(nn.Module):
    """Latents and codes -> pixels, frame by frame."""

    def __init__(self, config: Convolutions, inward: int) -> None:
        """inward: channels of a latent, and of the vector of a code."""
        super().__init__()
        if not config.attention or config.patch > 1 or config.middle not in (None, 2):
            raise ValueError("this decoder has attention between two blocks in its middle, and folds no pixels")
        before, groups = config.widths[-1], config.groups

        def residual(after: int) -> ResidualByCodes:
            return ResidualByCodes(before, after, groups, inward)

        self.enter = nn.Conv2d(inward, before, 3, padding=1)
        self.middle = nn.ModuleList([residual(before), AttentionByCodes(before, groups, inward), residual(before)])
        layers: list[nn.Module] = []
        for level in range(len(config.widths) - 1, -1, -1):
            for _ in range(config.blocks + 1):
                layers.append(residual(config.widths[level]))
                before = config.widths[level]
                layers += [AttentionByCodes(before, groups, inward)] if level in config.attend else []
            if level:
                layers.append(Larger(before))
        self.levels = nn.ModuleList(layers)
        self.norm = ByCodes(before, groups, inward)
        self.leave = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, latents: Tensor, codes: Tensor) -> Tensor:
        """latents, codes (N, inward, rows, cols) -> pixels (N, 3, H, W)."""
        x = self.enter(latents)
        for layer in (*self.middle, *self.levels):
            x = layer(x, codes)
        return self.leave(F.silu(self.norm(x, codes)))


class ByCodes(nn.Module):
    """A group norm whose result is scaled and shifted by the codes, in their finest copy that fits the map."""

    def __init__(self, width: int, groups: int, inward: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.scale, self.shift = nn.Conv2d(inward, width, 1), nn.Conv2d(inward, width, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (N, width, H, W), codes (N, inward, rows, cols) -> the shape of x."""
        codes = F.interpolate(codes, size=x.shape[-2:], mode="nearest")
        return self.norm(x) * self.scale(codes) + self.shift(codes)


class ResidualByCodes(nn.Module):
    """x + conv(conv(x)), each behind a norm by codes and SiLU."""

    def __init__(self, before: int, after: int, groups: int, inward: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = ByCodes(before, groups, inward), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = ByCodes(after, groups, inward), nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (N, before, H, W) -> (N, after, H, W)."""
        y = self.conv1(F.silu(self.norm1(x, codes)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y, codes)))


class AttentionByCodes(CellAttention):
    """Attention among the cells of a map, behind a norm by codes."""

    def __init__(self, width: int, groups: int, inward: int) -> None:
        super().__init__(width, groups)
        self.norm = ByCodes(width, groups, inward)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]
        """x (N, width, H, W) -> the same shape."""
        return x + self.mixed(self.norm(x, codes))


class Larger(nn.Module):
    """A map doubled by repetition, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """x (N, width, H, W) -> (N, width, 2 H, 2 W); codes are not read."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
