"""AutoencoderKL of diffusers: the autoencoder of latent diffusion (Rombach et al. 2021, arXiv 2112.10752)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vae import VAE
from sensorium.config import Config
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import Fit, Joined, Reshaped, Rule, under
from sensorium.convert.layout import Family
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import OtherKind, UserError
from sensorium.models.wiring import Wiring

CLASS = "AutoencoderKL"
OLDER = tuple(
    (f"{side}.mid_block.attentions.0.{old}.", f"{side}.mid_block.attentions.0.{new}.")
    for side in ("encoder", "decoder")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
"""What names begin with in files that were written before diffusers 0.17, and what they do today."""
_ROOT = "codecs.image."


def _read_alone(files: Files) -> Wiring.Config:
    """An autoencoder by itself: a wiring that has nothing but a codec of pictures."""
    return Wiring.Config(codecs={"image": read_autoencoder(files.config)})


def _write_alone(model: Wiring.Config) -> Written:
    """Raises UserError for a model that is more, or has another codec."""
    codec = model.codecs.get("image")
    if type(model) is not Wiring.Config or list(model.kinds) != ["image"] or not isinstance(codec, VAE.Config):
        raise OtherKind(f"the layout of {CLASS} holds a VAE of pictures alone, this model is a {model.tag()} of "
                        f"{sorted(model.kinds)}")  # fmt: skip
    return Written(write_autoencoder(codec))


def _alone(model: Wiring.Config) -> Sequence[Rule]:
    """Names of the tensors of both sides."""
    codec = model.codecs["image"]
    assert isinstance(codec, VAE.Config)
    return under(autoencoder_rules(codec), ours=_ROOT)


def read_autoencoder(settings: Settings) -> VAE.Config:
    """The fields of an AutoencoderKL's config."""
    settings.skip("force_upcast")  # of half precision
    widths = _sizes(settings, "block_out_channels", [64])
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        settings.only(name, [kind] * len(widths))
    for name, value in (("in_channels", 3), ("out_channels", 3), ("act_fn", "silu"), ("latents_mean", None),
                        ("latents_std", None)):  # fmt: skip
        settings.only(name, value)
    base, groups = math.gcd(*widths), settings.count("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise settings.error(f"norm_num_groups {groups} does not divide all of block_out_channels {widths}")
    attention = settings.take("mid_block_add_attention", bool, True)
    conv = Convolutions(
        channels=base, multipliers=tuple(width // base for width in widths), groups=groups, attention=attention,
        blocks=settings.count("layers_per_block", 1), middle=None if attention else 2, halving="end",
    )  # fmt: skip
    size = -(-max(_sizes(settings, "sample_size", [32])) // conv.spatial) * conv.spatial
    return VAE.Config(
        transform=ImageTransform(size=size, resize="keep", multiple=conv.spatial), conv=conv,
        channels=settings.count("latent_channels", 4), scale=settings.take("scaling_factor", float, 0.18215),
        shift=settings.take("shift_factor", float, 0.0), leave=settings.take("use_quant_conv", bool, True),
        enter=settings.take("use_post_quant_conv", bool, True),
    )  # fmt: skip


def _sizes(settings: Settings, name: str, default: list[int]) -> list[int]:
    found = settings.take(name, (list, tuple, int), default)
    sizes = [found] if isinstance(found, int) else list(found)
    if not sizes or not all(isinstance(one, int) and one > 0 for one in sizes):
        raise settings.error(f"{name} is {found!r}, expected sizes above 0")
    return sizes


def write_autoencoder(config: VAE.Config) -> dict[str, Any]:
    """The inverse. Raises UserError for a codec that an AutoencoderKL is not."""
    conv = config.conv
    fields = {
        "in_channels": 3, "out_channels": 3, "block_out_channels": list(conv.widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(conv.widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(conv.widths),
        "layers_per_block": conv.blocks, "act_fn": "silu", "latent_channels": config.channels,
        "norm_num_groups": conv.groups, "sample_size": config.transform.size, "scaling_factor": config.scale,
        "shift_factor": config.shift or None, "use_quant_conv": config.leave, "use_post_quant_conv": config.enter,
        "mid_block_add_attention": conv.attention,
    }  # fmt: skip
    again = read_autoencoder(Settings(fields))
    mine = config.replace(transform=again.transform, conv=_plain(conv))
    must_be_same(CLASS, mine, again.replace(conv=_plain(again.conv)))
    return fields


def must_be_same(layout: str, mine: Config, read: Config, path: str = "") -> None:
    """Raises UserError with the first field of a value that is read otherwise than it was written."""
    for name in type(mine).model_fields:
        first, second = getattr(mine, name), getattr(read, name)
        if isinstance(first, Config) and type(first) is type(second):
            must_be_same(layout, first, second, f"{path}{name}.")
        elif first != second:
            raise UserError(f"the layout of {layout} cannot say this model: its {path}{name} is {first!r}, and "
                            f"{second!r} is what would be read")  # fmt: skip


def _plain(conv: Convolutions) -> Convolutions:
    """Fields that follow from others written out, and one of equal ways to say the same."""
    base = math.gcd(*conv.widths)
    return conv.replace(
        channels=base, multipliers=tuple(width // base for width in conv.widths), time_blocks=0,
        middle=conv.middle or (2 if conv.attention else 1),
    )  # fmt: skip


def autoencoder_rules(config: VAE.Config) -> Sequence[Rule]:
    """Names of the tensors of both sides."""
    conv, channels = config.conv, config.channels
    levels, last = len(conv.widths), conv.widths[-1]

    def point(theirs: str, ours: str, width: int) -> Iterator[Rule]:
        """A linear layer here, a 1 x 1 convolution there."""
        yield Rule(f"{theirs}.weight", f"{ours}.weight", Reshaped(width, width, 1, 1))
        yield Rule(f"{theirs}.bias", f"{ours}.bias")

    rules = [*point("quant_conv", "leave", 2 * channels), *point("post_quant_conv", "enter", channels)]
    for theirs, ours, count, kind, sampler in (
        ("encoder", "down", conv.blocks, "down_blocks", "downsamplers.0.conv"),
        ("decoder", "up", conv.blocks + 1, "up_blocks", "upsamplers.0.conv"),
    ):  # fmt: skip
        side, place = list[Rule](_outside(last)), 0
        for level in range(levels):
            for block in range(count):
                side += _residual(f"{kind}.{level}.resnets.{block}", f"levels.{place}")
                place += 1
            if level + 1 < levels:
                place += ours == "up"  # the map is doubled by a layer of its own, which has no tensors
                side.append(Rule(f"{kind}.{level}.{sampler}.*", f"levels.{place}.*"))
                place += 1
        middle = [0, 2] if conv.attention else [0, 1]
        for block, at in enumerate(middle):
            side += _residual(f"mid_block.resnets.{block}", f"middle.{at}")
        rules += under(side, f"{theirs}.", f"{ours}.")
    return rules


def _residual(theirs: str, ours: str) -> Iterator[Rule]:
    names = {"norm1": "first.0", "conv1": "first.2", "norm2": "second.0", "conv2": "second.2", "conv_shortcut": "skip"}
    return (Rule(f"{theirs}.{there}.*", f"{ours}.{here}.*") for there, here in names.items())


def _outside(width: int) -> Iterator[Rule]:
    """Of one side: its ends, and the attention in its middle, whose layers are linear there."""
    for there, here in (("conv_in", "enter"), ("conv_norm_out", "leave.0"), ("conv_out", "leave.2")):
        yield Rule(f"{there}.*", f"{here}.*")
    attention, here = "mid_block.attentions.0", "middle.1"
    yield Rule(f"{attention}.group_norm.*", f"{here}.norm.*")
    parts = tuple(f"{attention}.to_{part}" for part in "qkv")
    for name, fit in (("weight", Reshaped(width, width)), ("bias", Fit())):
        yield Rule(tuple(f"{part}.{name}" for part in parts), f"{here}.qkv.{name}", Joined(3, fit))
        yield Rule(f"{attention}.to_out.0.{name}", f"{here}.out.{name}", fit)


AUTOENCODER = Family(
    "autoencoder-kl", (CLASS,), CLASS, _read_alone, _write_alone, _alone, older=OLDER, library="diffusers"
)  # fmt: skip
