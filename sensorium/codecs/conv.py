"""Convolutions between pixels and a grid of latents, for every codec: 8 x 8 in space, 4 in time, or whatever is asked.

Frames are pictures to the spatial layers, which is all there is for a codec without time. Time is compressed where it
is cheap, between the smallest maps: Emu3's tokenizer adds its temporal layers to the codec of single pictures in the
same way (arXiv 2409.18869, section 2.2). A picture is a clip of one frame: that frame is repeated, and of the frames
that come back the first is the picture.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from sensorium.codecs.base import Codec
from sensorium.config import Config as Value
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError


class Convolutions(Value):
    """What the two directions of a codec share.

    channels     at the first level; level i has channels * multipliers[i], and each level but the last halves the map
    blocks       residual blocks of a level (the decoder has one more, as VQGAN's: arXiv 2012.09841)
    attention    attention among the cells of the smallest map
    attend       levels, 0 the largest map, where attention follows every residual block (VQGAN's attn_resolutions)
    middle       residual blocks there, the attention behind the first; None: two around an attention, otherwise one
    halving      what a convolution that halves a map finds beyond its edges: a row of zeros on both sides, or at its
                 end alone, below and on the right (VQGAN's, and latent diffusion's: arXiv 2112.10752)
    patch        pixels folded, patch x patch, before the first convolution, and unfolded after the last
    temporal     frames that become one: a power of two
    time_blocks  3-D residual blocks at the smallest map, of codecs with time
    groups       of the group norms; the largest common divisor with the channels is taken
    """

    channels: int = Field(default=128, gt=0)
    multipliers: tuple[int, ...] = Field(default=(1, 2, 2, 4), min_length=1)
    blocks: int = Field(default=2, ge=1)
    attention: bool = True
    attend: tuple[int, ...] = ()
    middle: int | None = Field(default=None, ge=1)
    halving: Literal["both", "end"] = "both"
    patch: int = Field(default=1, ge=1)
    temporal: int = Field(default=1, ge=1)
    time_blocks: int = Field(default=2, ge=0)
    groups: int = Field(default=32, ge=1)

    @field_validator("temporal")
    @classmethod
    def _power_of_two(cls, temporal: int) -> int:
        if temporal & (temporal - 1):
            raise ValueError(f"time is halved again and again: {temporal} is no power of two")
        return temporal

    @property
    def spatial(self) -> int:
        """Pixels on a side of what becomes one latent."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the largest map first."""
        return tuple(self.channels * factor for factor in self.multipliers)

    def latent(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(frames, rows, columns) of the latents of so many frames and pixels; the last frame is repeated to fill up.

        Raises ValueError when pixels are not a multiple of `spatial`.
        """
        if height % self.spatial or width % self.spatial:
            raise ValueError(f"{height} x {width} pixels cannot be cut into cells of {self.spatial} x {self.spatial}: "
                             "choose a transform whose sides are multiples")  # fmt: skip
        return -(-frames // self.temporal), height // self.spatial, width // self.spatial


class Down(nn.Module):
    """Pixels -> latents."""

    def __init__(self, config: Convolutions, out: int) -> None:
        """out: channels of a latent."""
        super().__init__()
        self.config = config
        widths, groups = config.widths, config.groups
        self.enter = nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        before = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                layers.append(Residual(before, width, groups))
                layers += [CellAttention(width, groups)] if level in config.attend else []
                before = width
            if level + 1 < len(widths):
                layers.append(Smaller(width) if config.halving == "end" else nn.Conv2d(width, width, 3, 2, padding=1))
        self.levels = nn.ModuleList(layers)
        self.middle = _middle(before, config)
        self.time = nn.ModuleList()
        for _ in range(config.temporal.bit_length() - 1):
            self.time.append(Halve(before))
        if config.temporal > 1:
            self.time.extend(Residual3d(before, groups) for _ in range(config.time_blocks))
        self.leave = nn.Sequential(_norm(before, groups), nn.SiLU(), nn.Conv2d(before, out, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, out, f, rows, cols); see `Convolutions.latent`."""
        count, _, frames = pixels.shape[:3]
        x = F.pixel_unshuffle(_flat(pixels), self.config.patch) if self.config.patch > 1 else _flat(pixels)
        x = self.enter(x)
        for layer in self.levels:
            x = layer(x)
        for layer in self.middle:
            x = layer(x)
        if self.config.temporal > 1:
            x = _clips(x, count)
            short = -frames % self.config.temporal
            if short:
                x = F.pad(x, (0, 0, 0, 0, 0, short), mode="replicate")
            for layer in self.time:
                x = layer(x)
            x = _flat(x)
        return _clips(self.leave(x), count)


class Up(nn.Module):
    """Latents -> pixels."""

    def __init__(self, config: Convolutions, inward: int) -> None:
        """inward: channels of a latent."""
        super().__init__()
        self.config = config
        widths, groups = config.widths[::-1], config.groups
        self.enter = nn.Conv2d(inward, widths[0], 3, padding=1)
        self.time = nn.ModuleList()
        if config.temporal > 1:
            self.time.extend(Residual3d(widths[0], groups) for _ in range(config.time_blocks))
        for _ in range(config.temporal.bit_length() - 1):
            self.time.append(Double(widths[0]))
        self.middle = _middle(widths[0], config)
        layers: list[nn.Module] = []
        before = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks + 1):
                layers.append(Residual(before, width, groups))
                layers += [CellAttention(width, groups)] if len(widths) - 1 - level in config.attend else []
                before = width
            if level + 1 < len(widths):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
        self.levels = nn.ModuleList(layers)
        self.leave = nn.Sequential(
            _norm(before, groups), nn.SiLU(), nn.Conv2d(before, 3 * config.patch**2, 3, padding=1)
        )

    def forward(self, latents: Tensor, frames: int) -> Tensor:
        """latents (N, inward, f, rows, cols) -> the first `frames` frames: (N, 3, frames, H, W)."""
        count = latents.shape[0]
        x = self.enter(_flat(latents))
        if self.config.temporal > 1:
            x = _clips(x, count)
            for layer in self.time:
                x = layer(x)
            x = _flat(x[:, :, :frames])
        for layer in self.middle:
            x = layer(x)
        for layer in self.levels:
            x = layer(x)
        x = self.leave(x)
        return _clips(F.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x, count)


class Smaller(nn.Conv2d):
    """A convolution that halves a map, whose zeros are below and on the right alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, input: Tensor) -> Tensor:
        """(N, width, H, W) of even sides -> (N, width, H / 2, W / 2)."""
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Residual(nn.Module):
    """x + conv(conv(x)), each behind norm and SiLU; x through a 1 x 1 convolution where the channels change."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(before, groups), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.second = nn.Sequential(_norm(after, groups), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, before, H, W) -> (N, after, H, W)."""
        return self.skip(x) + self.second(self.first(x))


class Residual3d(nn.Module):
    """The same over time and space; it begins as the identity, so that a codec of pictures learns time on top."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(width, groups), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1))
        last = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.second = nn.Sequential(_norm(width, groups), nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, F, H, W) -> the same shape."""
        return x + self.second(self.first(x))


class Halve(nn.Module):
    """Two frames become one; it begins as their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Conv3d(width, width, (2, 1, 1), stride=(2, 1, 1))
        _begin_as_identity(self.join, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, F, H, W) -> (N, width, F / 2, H, W)."""
        return self.join(x)


class Double(nn.Module):
    """One frame becomes two; it begins as their repetition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part = nn.ConvTranspose3d(width, width, (2, 1, 1), stride=(2, 1, 1))
        _begin_as_identity(self.part, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, F, H, W) -> (N, width, 2 F, H, W)."""
        return self.part(x)


class CellAttention(nn.Module):
    """One head of attention among the cells of a map, with its residual (VQGAN's non-local block)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, width, H, W) -> the same shape."""
        return x + self.mixed(self.norm(x))

    def mixed(self, normed: Tensor) -> Tensor:
        """What is added: (N, width, H, W) normalised -> the same shape."""
        q, k, v = self.qkv(normed).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).unflatten(2, normed.shape[2:]))


def _middle(width: int, config: Convolutions) -> nn.ModuleList:
    count = config.middle or (2 if config.attention else 1)
    layers: list[nn.Module] = [Residual(width, width, config.groups) for _ in range(count)]
    if config.attention:
        layers.insert(1, CellAttention(width, config.groups))
    return nn.ModuleList(layers)


def _norm(width: int, groups: int) -> nn.GroupNorm:
    """Group norm with the largest number of groups up to `groups` that divides the channels."""
    return nn.GroupNorm(next(count for count in range(min(groups, width), 0, -1) if width % count == 0), width, 1e-6)


def _begin_as_identity(layer: nn.Conv3d | nn.ConvTranspose3d, scale: float) -> None:
    nn.init.zeros_(layer.weight)
    for channel in range(layer.weight.shape[0]):
        nn.init.constant_(layer.weight[channel, channel], scale)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _flat(clips: Tensor) -> Tensor:
    """(N, C, F, H, W) -> (N * F, C, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, count: int) -> Tensor:
    """(count * F, C, H, W) -> (count, C, F, H, W)."""
    return frames.unflatten(0, (count, -1)).transpose(1, 2)


class Convolutional(Codec):
    """A codec whose latents lie between these convolutions, positions last; a subclass says what is done to them."""

    class Config(Codec.Config):
        transform: ImageTransform = ImageTransform(size=256)
        conv: Convolutions = Convolutions()

        @property
        def spatial(self) -> int:
            return self.conv.spatial

        @property
        def temporal(self) -> int:
            return self.conv.temporal

    def __init__(self, config: Config, down: int, up: int | None) -> None:
        """down: channels that come of pixels. up: channels that pixels are made of; None: it makes none."""
        super().__init__(config)
        self.down, self.up = Down(config.conv, down), None if up is None else Up(config.conv, up)

    def latents(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, F, H, W) -> (N, f, rows, cols, channels)."""
        return self.down(pixels).permute(0, 2, 3, 4, 1)

    def pixels(self, latents: Tensor, frames: int) -> Tensor:
        """latents (N, f, rows, cols, channels) -> (N, 3, frames, H, W). Raises UserError where it has no decoder."""
        if self.up is None:
            raise UserError("this codec has no decoder: pictures become codes, and no codes become pictures (the "
                            "checkpoint was published without one)")  # fmt: skip
        return self.up(latents.permute(0, 4, 1, 2, 3), frames)
