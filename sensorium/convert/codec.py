"""Codecs that published models read pictures with: VQGAN's convolutions (Esser et al. 2021, arXiv 2012.09841) around a
book of codes, as Chameleon and Janus have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.convert.keys import Fit, Joined, Reshaped, Rule, under
from sensorium.convert.settings import Settings
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError


def read_codec(settings: Settings, transform: ImageTransform) -> VQ.Config:
    """The vq_config of Chameleon, whose published codec has no decoder."""
    settings.skip("dropout", "beta")
    settings.only("double_latent", False)
    settings.only("in_channels", 3)
    settings.only("model_type", "chameleon_vqgan")
    multipliers = settings.take("channel_multiplier", (list, tuple), (1, 1, 2, 2, 4))
    size, kind = settings.count("resolution", 512), settings.take("attn_type", str, "vanilla")
    sides = [size >> level for level in range(len(multipliers))]
    at = settings.take("attn_resolutions", list, [])
    attended = kind == "vanilla"
    conv = Convolutions(
        channels=settings.count("base_channels", 128), multipliers=tuple(multipliers), halving="end",
        blocks=settings.count("num_res_blocks", 2), attention=attended, middle=2,
        attend=tuple(level for level, side in enumerate(sides) if attended and side in at),
    )  # fmt: skip
    book = Quantizer.Config(
        codes=settings.count("num_embeddings", 8192), width=settings.count("embed_dim", 256), learning="gradient",
        revive=0.0, begin=False,
    )  # fmt: skip
    wide = settings.count("latent_channels", 256)
    settings.done()
    if transform.size % conv.spatial:
        raise settings.error(f"pictures of {transform.size} pixels are no multiple of the {conv.spatial} of a code")
    return VQ.Config(transform=transform, conv=conv, quantizer=book, wide=wide, decoder=False)


def write_codec(config: VQ.Config) -> dict[str, Any]:
    """The inverse. Raises UserError for a codec that Chameleon's is not."""
    conv, size = config.conv, config.transform.size
    fields = {
        "model_type": "chameleon_vqgan", "in_channels": 3, "double_latent": False, "resolution": size,
        "base_channels": conv.channels, "channel_multiplier": list(conv.multipliers), "num_res_blocks": conv.blocks,
        "attn_type": "vanilla" if conv.attention else "none", "latent_channels": config.wide,
        "attn_resolutions": [size >> level for level in conv.attend] or None,
        "num_embeddings": config.quantizer.codes, "embed_dim": config.quantizer.width,
    }  # fmt: skip
    again = read_codec(Settings(fields, "vq_config"), config.transform)
    # how its codes would be learned on, the layout does not say
    learns = {name: getattr(again.quantizer, name) for name in ("learning", "decay", "revive", "begin")}
    if again != config.replace(quantizer=config.quantizer.replace(**learns)) or config.quantizer.counts:
        raise UserError(f"the layout cannot say this codec: it is {config}, and {again} is what would be read")
    return fields


def codec_rules(config: VQ.Config) -> Sequence[Rule]:
    """Names of a codec's tensors, both sides."""
    book, wide = config.quantizer.width, config.wide
    return [
        Rule("quantize.embedding.weight", "quantizer.book"),
        *_point("quant_conv", "enter", book, wide),
        *_point("post_quant_conv", "leave", wide, book),
        *under(_down(config.conv), "encoder.", "down."),
        *under(_up(config.conv), "decoder.", "up."),
    ]


def _down(conv: Convolutions) -> Iterator[Rule]:
    """Pixels -> latents."""
    yield Rule("conv_in.*", "enter.*")
    yield from _ends()
    place = 0
    for level in range(len(conv.multipliers)):
        for block in range(conv.blocks):
            yield from _residual(f"down.{level}.block.{block}", f"levels.{place}")
            place += 1
            if level in conv.attend:
                yield from _attention(f"down.{level}.attn.{block}", f"levels.{place}")
                place += 1
        yield Rule(f"down.{level}.downsample.conv.*", f"levels.{place}.*")
        place += 1
    yield from _middle(conv)


def _up(conv: Convolutions) -> Iterator[Rule]:
    """Latents -> pixels; levels are counted from the smallest map."""
    yield Rule("conv_in.*", "enter.*")
    yield from _ends()
    place, last = 0, len(conv.multipliers) - 1
    for level in range(last + 1):
        for block in range(conv.blocks + 1):
            yield from _residual(f"up.{level}.block.{block}", f"levels.{place}")
            place += 1
            if last - level in conv.attend:
                yield from _attention(f"up.{level}.attn.{block}", f"levels.{place}")
                place += 1
        yield Rule(f"up.{level}.upsample.conv.*", f"levels.{place + 1}.*")  # behind what doubles the map
        place += 2
    yield from _middle(conv)


def _ends() -> Iterator[Rule]:
    yield Rule("norm_out.*", "leave.0.*")
    yield Rule("conv_out.*", "leave.2.*")


def _middle(conv: Convolutions) -> Iterator[Rule]:
    yield from _residual("mid.block_1", "middle.0")
    yield from _residual("mid.block_2", "middle.2" if conv.attention else "middle.1")
    if conv.attention:
        yield from _attention("mid.attn_1", "middle.1")


def _residual(theirs: str, ours: str) -> Iterator[Rule]:
    names = {"norm1": "first.0", "conv1": "first.2", "norm2": "second.0", "conv2": "second.2", "nin_shortcut": "skip"}
    return (Rule(f"{theirs}.{there}.*", f"{ours}.{here}.*") for there, here in names.items())


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.norm.*", f"{ours}.norm.*")
    yield Rule(f"{theirs}.proj_out.*", f"{ours}.out.*")
    for leaf in ("weight", "bias"):
        yield Rule(tuple(f"{theirs}.{part}.{leaf}" for part in "qkv"), f"{ours}.qkv.{leaf}", Joined(3))


def _point(theirs: str, ours: str, after: int, before: int) -> Iterator[Rule]:
    """A linear layer here, a 1 x 1 convolution there."""
    for leaf, fit in (("weight", Reshaped(after, before, 1, 1)), ("bias", Fit())):
        yield Rule(f"{theirs}.{leaf}", f"{ours}.{leaf}", fit)
