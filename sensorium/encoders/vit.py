"""Vision Transformer: patches as tokens of the one Backbone (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sensorium.encoders.base import Encoder
from sensorium.encoders.head import Head
from sensorium.encoders.positions import sincos2d
from sensorium.encoders.transform import ImageTransform, Size
from sensorium.mask import Layout
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone, reading
from sensorium.nn.block import Block
from sensorium.nn.ffn import Activation, FeedForward
from sensorium.nn.norm import Norm

# of CLIP's training pictures (arXiv 2103.00020)
CLIP_TRANSFORM = ImageTransform(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


class ViT(Encoder):
    """Patches -> linear -> positions -> blocks -> features of the patches."""

    class Config(Encoder.Config):
        """How the stack is fed and read; the stack itself is `backbone`, without vocabulary.

        patch        side of a patch in pixels
        patch_bias   whether the linear layer over patches has a bias (CLIP's has none)
        class_token  a learned token before the patches
        registers    further learned tokens between it and the patches, which have no position (Darcet et al. 2023,
                     arXiv 2309.16588); None is as good as 0, and has no tensor for them
        class_feature  give its feature, and those of registers, before those of the patches of each view; otherwise
                     they are dropped
        mask_token   there is a token that stands for patches which training hides (BEiT, DINOv2). Nothing reads it here
        positions    `learned` for the grid of a view of `trained_size` pixels, or fixed `sincos2d`, or `none` beside
                     those that the backbone's attention knows
        trained_size  a side or (height, width); None: that of the view. Where it differs, learned positions are
                     interpolated (bicubic), with `antialias` as a picture is that becomes smaller
        place        what the backbone's rope turns by: the `order` of tokens, rows and columns of `cells`, or `centres`
                     of patches, from -2 pi to 2 pi along each side of the view (DINOv3, arXiv 2508.10104, section 3.2;
                     released code). What stands before the patches is not turned by `cells` and `centres`
        drop_last    how many of the last blocks do not count: 0 reads the last block (and the backbone's final norm),
                     1 the second last, LLaVA's `-2`. Those blocks stay part of the model, as in published checkpoints
        out_norm     one more norm on the features, whichever block they come from (BLIP-2's `ln_vision`)
        normed       whether the features of the last block are those behind the backbone's final norm; where not, that
                     norm stays part of the model, as in published checkpoints
        heads        what is read off the features of a view besides (a pooler, a classifier): see `readout`
        levels       blocks, counted from 1, whose outputs are given as well, in this order, behind the features and as
                     wide as they: a feature is then (1 + levels) * D wide (DeepStack, arXiv 2406.04334)
        cut          pixels right of and below the last whole patch are not seen, as by a convolution with strides;
                     otherwise there must be none
        """

        backbone: Backbone.Config
        patch: int = Field(default=14, ge=1)
        patch_bias: bool = True
        class_token: bool = True
        registers: int | None = Field(default=None, ge=0)
        class_feature: bool = False
        mask_token: bool = False
        positions: Literal["learned", "sincos2d", "none"] = "learned"
        trained_size: int | Size | None = None
        antialias: bool = False
        place: Literal["order", "cells", "centres"] = "order"
        drop_last: int = Field(default=0, ge=0)
        out_norm: bool = False
        normed: bool = True
        heads: dict[str, Head.Config] = {}
        levels: tuple[int, ...] = ()
        cut: bool = False

        @model_validator(mode="after")
        def _fits(self) -> Self:
            for name, sides in (("transform.size", self.transform.view), ("trained_size", self.trained_view)):
                for size in sides:
                    if size % self.patch and not self.cut:
                        raise ValueError(f"{name} {size} is no multiple of patch {self.patch}")
                    if size < self.patch:
                        raise ValueError(f"{name} {size} is less than one patch of {self.patch}")
            if self.drop_last >= self.backbone.depth:
                raise ValueError(f"drop_last {self.drop_last} leaves nothing of {self.backbone.depth} blocks")
            if any(not 1 <= level <= self.backbone.depth - self.drop_last for level in self.levels):
                raise ValueError(f"levels {self.levels} are no blocks of 1 to {self.backbone.depth - self.drop_last}")
            if self.class_feature and not self.class_token:
                raise ValueError("class_feature asks for the feature of the class token: set class_token")
            if self.heads and (self.levels or any(head.reads != "mean" and not self.class_token
                                                  for head in self.heads.values())):  # fmt: skip
                raise ValueError("heads read features of one level, those of a class token where there is one")
            if self.backbone.vocab:
                raise ValueError(f"a ViT reads patches: its backbone has no vocabulary, {self.backbone.vocab} given")
            return self

        @property
        def width(self) -> int:
            return self.backbone.width * (1 + len(self.levels))

        @property
        def cells(self) -> tuple[int, int]:
            height, width = self.transform.view
            return height // self.patch, width // self.patch

        @property
        def trained_view(self) -> Size:
            """(height, width) of the views that learned positions are for."""
            size = self.trained_size or self.transform.view
            return size if isinstance(size, tuple) else (size, size)

        @property
        def before(self) -> int:
            """Tokens before the patches."""
            return int(self.class_token) + (self.registers or 0)

        @property
        def extra(self) -> int:
            return self.before if self.class_feature else 0

        @property
        def oblong(self) -> bool:
            return True

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.side, self.cells = config.patch, config.cells
        width = config.backbone.width
        self.patch = nn.Linear(3 * config.patch**2, width, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.randn(width) * 0.02) if config.class_token else None
        self.registers = None if config.registers is None else nn.Parameter(torch.randn(config.registers, width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width)) if config.mask_token else None
        self.place: nn.Parameter | None = None
        height, across = config.trained_view
        self.trained = (height // config.patch, across // config.patch)
        if config.positions == "learned":
            count = self.trained[0] * self.trained[1] + config.class_token
            self.place = nn.Parameter(torch.randn(count, width) * 0.02)
        self.backbone: Backbone = config.backbone.build()
        self.depth = config.backbone.depth - config.drop_last
        self.norm = config.backbone.block.norm.build(width) if config.out_norm else None
        self.heads = nn.ModuleDict({name: head.build(width) for name, head in config.heads.items()})

    def encode(self, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> (V, extra + H / patch * W / patch, D)."""
        return self._encode(views)[:, self.config.before - self.config.extra :]

    def readout(self, name: str, views: Tensor) -> Tensor:
        """views: (V, 3, H, W) -> what the head of this name reads off each, (V, its width)."""
        return self.heads[name](self._encode(views), self.config.before)

    def _encode(self, views: Tensor) -> Tensor:
        """views -> features of all tokens."""
        x = self._tokens(views)
        count, length = x.shape[:2]
        layout = view_layout(count, length, x.device, self._places())
        seen: dict[int, list[Tensor]] = {level: [] for level in (*self.config.levels, self.depth)}
        between = {level: reading(states) for level, states in seen.items()}
        x = self.backbone(x.flatten(0, 1), layout, depth=self.depth, between=between)
        x = x if self.config.normed else seen[self.depth][0]
        x = self._touch_unused(x if self.norm is None else self.norm(x))
        x = torch.cat([x, *(seen[level][0] for level in self.config.levels)], dim=-1)
        return x.view(count, length, -1)

    def _tokens(self, views: Tensor) -> Tensor:
        """views -> (V, before + cells, D): what the backbone reads."""
        rows, cols = self.cells
        x = self.patch(patches(views[:, :, : rows * self.side, : cols * self.side], self.side))
        place, first = self.table(), 0 if self.class_token is None else 1
        if place is not None:
            x = x + place[first:].to(x.dtype)
        before = []
        if self.class_token is not None:
            before.append(self.class_token[None] if place is None else self.class_token + place[:1])
        if self.registers is not None:
            before.append(self.registers)
        if before:
            x = torch.cat([torch.cat(before).to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x

    def _places(self) -> Tensor | None:
        """(before + cells, 3) that the backbone's attention reads; None: the order of the tokens."""
        (rows, cols), kind = self.cells, self.config.place
        if kind == "order":
            return None
        axes = [torch.arange(extent, dtype=torch.float32) for extent in (rows, cols)]
        if kind == "centres":
            axes = [2 * math.pi * (2 * (axis + 0.5) / len(axis) - 1) for axis in axes]
        down, across = torch.meshgrid(*axes, indexing="ij")
        cells = torch.stack([torch.zeros_like(down), down, across], -1).flatten(0, 1)
        return F.pad(cells, (0, 0, self.config.before, 0))

    def table(self) -> Tensor | None:
        """(cells, D) for the grid of a view, the class token's before them where there is one (zero when fixed)."""
        rows, cols = self.cells
        first = 0 if self.class_token is None else 1
        if self.config.positions == "none":
            return None
        if self.place is None:
            fixed = sincos2d(rows, cols, self.patch.out_features).to(self.patch.weight.device)
            return F.pad(fixed, (0, 0, first, 0))
        if (rows, cols) == self.trained:
            return self.place
        table = self.place[first:].float().view(1, *self.trained, -1).permute(0, 3, 1, 2)
        antialias = self.config.antialias
        table = F.interpolate(table, (rows, cols), mode="bicubic", align_corners=False, antialias=antialias)
        return torch.cat([self.place[:first].float(), table.flatten(2)[0].T])

    def _touch_unused(self, x: Tensor) -> Tensor:
        """x unchanged; parameters that features do not depend on get a zero gradient while they learn."""
        unread = self.depth < len(self.backbone.blocks) or not self.config.normed
        if not (unread or self.heads or self.mask_token is not None) or not torch.is_grad_enabled():
            return x
        unused: list[nn.Module] = [self.heads]
        if unread:
            unused.extend(self.backbone.blocks[self.depth :])
        if unread and self.backbone.norm is not None:
            unused.append(self.backbone.norm)
        alone = [] if self.mask_token is None else [self.mask_token]
        learning = [p for p in (*alone, *(p for module in unused for p in module.parameters())) if p.requires_grad]
        return x + 0.0 * torch.stack([p.sum() for p in learning]).sum().to(x.dtype) if learning else x


def patches(views: Tensor, side: int) -> Tensor:
    """views: (V, C, H, W) -> (V, H / side * W / side, C * side * side), cells row-major, a patch channel by channel."""
    count, channels, height, width = views.shape
    cut = views.view(count, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, (height // side) * (width // side), channels * side * side)


def view_layout(count: int, length: int, device: torch.device, places: Tensor | None = None) -> Layout:
    """Full attention inside each of `count` views of `length` tokens. places (length, 3); None: their order."""
    rows = torch.arange(count * length, device=device).view(count, length)
    if places is not None:
        position = places.to(device).repeat(count, 1)
    else:
        position = torch.zeros(count * length, 3, dtype=torch.long, device=device)
        position[:, 0] = torch.arange(length, device=device).repeat(count)
    return Layout(rows, None, None, False, position, lengths=[length] * count)


def stack(
    width: int, depth: int, heads: int, hidden: int | None = None, activation: Activation = "gelu", eps: float = 1e-6,
    embed_norm: bool = False, final_norm: bool = True,
) -> Backbone.Config:  # fmt: skip
    """A ViT's blocks: pre-norm LayerNorm, biases everywhere, feed-forward 4 times as wide unless `hidden` is given."""
    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=True),
        ffn=FeedForward.Config(hidden=hidden or 4 * width, activation=activation, gated=False, bias=True),
        norm=Norm.Config(kind="layer", eps=eps),
    )
    return Backbone.Config(width=width, depth=depth, block=block, embed_norm=embed_norm, final_norm=final_norm)


def vit(width: int, depth: int, heads: int, patch: int = 16, size: int = 224) -> ViT.Config:
    """A plain ViT to train from scratch: fixed sin-cos positions, no class token (Beyer et al. 2022, 2205.01580)."""
    transform = ImageTransform(size=size)
    return ViT.Config(
        transform=transform, backbone=stack(width, depth, heads), patch=patch, class_token=False, positions="sincos2d"
    )


def clip_vit_l14(size: int = 224, drop_last: int = 1) -> ViT.Config:
    """OpenAI's CLIP ViT-L/14 (arXiv 2103.00020): 304 M parameters; at 336 px what LLaVA-1.5 looks through."""
    backbone = stack(1024, 24, 16, activation="quick_gelu", eps=1e-5, embed_norm=True)
    transform = CLIP_TRANSFORM.replace(size=size)
    return ViT.Config(transform=transform, backbone=backbone, patch_bias=False, drop_last=drop_last)


def clip_vit_h14(size: int = 448, drop_last: int = 1) -> ViT.Config:
    """OpenCLIP's ViT-H/14 (arXiv 2212.07143): 631 M parameters; Yi-VL's eyes, at 448 px."""
    backbone = stack(1280, 32, 16, eps=1e-5, embed_norm=True)
    transform = CLIP_TRANSFORM.replace(size=size)
    return ViT.Config(transform=transform, backbone=backbone, patch_bias=False, drop_last=drop_last)


def eva_vit_g14(size: int = 448, drop_last: int = 1) -> ViT.Config:
    """EVA ViT-g/14 (arXiv 2211.07636): 1.01 B parameters; MiniGPT-v2's eyes, read as BLIP-2 reads them.

    BLIP-2 leaves out the last block and normalises what the one before gives. Here keys have a bias, which the
    published model omits: softmax over keys cancels it.
    """
    backbone = stack(1408, 40, 16, hidden=6144, final_norm=False)
    transform = CLIP_TRANSFORM.replace(size=size, resize="squash")
    return ViT.Config(transform=transform, backbone=backbone, drop_last=drop_last, out_norm=True)


def eva2_clip_e(size: int = 490, drop_last: int = 1) -> ViT.Config:
    """EVA2-CLIP-E/14 (arXiv 2303.15389): 4.35 B parameters; CogVLM's eyes, without its last block."""
    backbone = stack(1792, 64, 16, hidden=15_360, final_norm=False)
    transform = CLIP_TRANSFORM.replace(size=size, resize="squash")
    return ViT.Config(transform=transform, backbone=backbone, drop_last=drop_last)
