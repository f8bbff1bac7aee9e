"""DiTPipeline of diffusers: DiT (Peebles and Xie 2022, arXiv 2212.09748) with its autoencoder and its scheduler.

The published classes keep the embeddings of time and class in every block. Where all blocks have the same ones, as
those of the paper's release, the model here has them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sensorium.codecs.vae import VAE
from sensorium.convert.autoencoder import CLASS as VAE_CLASS
from sensorium.convert.autoencoder import OLDER, autoencoder_rules, must_be_same, read_autoencoder, write_autoencoder
from sensorium.convert.files import Files, Written
from sensorium.convert.keys import SAME, Fit, Rule, Split, under
from sensorium.convert.labels import read_labels, write_labels
from sensorium.convert.layout import Family, Words
from sensorium.convert.scheduler import read_scheduler, write_scheduler
from sensorium.convert.settings import Settings
from sensorium.convert.stored import Stored
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import OtherKind, UserError
from sensorium.models.denoiser import Denoiser
from sensorium.models.wiring import Wiring
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import Backbone
from sensorium.nn.block import Block
from sensorium.nn.ffn import Activation, FeedForward
from sensorium.nn.modulation import Modulation
from sensorium.nn.norm import Norm
from sensorium.tokenizer import Tokenizer

CLASS, TRANSFORMER = "DiTPipeline", "DiTTransformer2DModel"
PARTS = ("transformer", "vae", "scheduler")
_PLAIN = Norm.Config(kind="layer", eps=1e-6, affine=False)
_FFN: dict[str, tuple[Activation, bool]] = {
    "gelu-approximate": ("gelu_tanh", False), "gelu": ("gelu", False), "geglu": ("gelu", True),
}  # fmt: skip
"""Published activations -> those here, and whether they gate."""
_UNSAID = {
    "norm_type": "ada_norm_zero", "upcast_attention": False, "cross_attention_dim": None, "num_vector_embeds": None,
    "only_cross_attention": False, "double_self_attention": False, "use_linear_projection": False,
    "attention_type": "default", "caption_channels": None, "interpolation_scale": None,
}  # fmt: skip
"""Fields, some of them of an older class, of which one value can be said here."""
_TIME = {"up": "linear_1", "down": "linear_2"}
_EMBED = "norm1.emb.timestep_embedder"
_TABLE = "norm1.emb.class_embedder.embedding_table.weight"


class Copies(Fit):
    """Published tensors that are one and the same here.

    inner  what happens to it
    """

    def __init__(self, count: int, inner: Fit = SAME) -> None:
        self.count, self.inner = count, inner

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        if not all(torch.equal(tensors[0], other) for other in tensors[1:]):
            raise ValueError("they differ, where all should be one")
        return self.inner.into(tensors[:1], shapes)

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return self.inner.back(tensors) * self.count


class Labels(Fit):
    """Tables of classes, whose last row stands for none: beside each other the rows here, and the last row.

    count  of tables
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        rows = torch.cat(tensors, dim=1)
        return [rows[:-1], rows[-1]]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(torch.cat([tensors[0], tensors[1][None]]).chunk(self.count, dim=1))


class Cells(Fit):
    """A convolution over patches (D, C, P, P) there, a linear layer over cells of channels (D, P P C) here."""

    def __init__(self, patch: int) -> None:
        self.patch = patch

    def into(self, tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        return [tensors[0].permute(0, 2, 3, 1).flatten(1)]

    def back(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].unflatten(1, (self.patch, self.patch, -1)).permute(0, 3, 1, 2)]


def _read(files: Files) -> Denoiser.Config:
    wrong = set(PARTS) ^ set(files.parts)
    if wrong:
        raise files.config.error(f"a {CLASS} has the parts {', '.join(PARTS)}; this one has "
                                 f"{', '.join(files.parts)}")  # fmt: skip
    transformer, vae, scheduler = (files.parts[name] for name in PARTS)
    transformer.only("_class_name", TRANSFORMER, "Transformer2DModel")  # the name in the paper's release
    vae.only("_class_name", VAE_CLASS)
    schedule, predictor, sampler = read_scheduler(scheduler)
    model = _read_transformer(transformer, read_autoencoder(vae))
    model = model.replace(schedule=schedule, predictor=predictor, sampler=sampler)
    return _widened(model) if _apart(files, model.backbone.depth) else model


def _read_transformer(settings: Settings, vae: VAE.Config) -> Denoiser.Config:
    for name, value in _UNSAID.items():
        settings.only(name, value)
    settings.skip("norm_num_groups")  # of another kind of input
    heads, patch = settings.count("num_attention_heads", 16), settings.count("patch_size", 2)
    width, side = heads * settings.count("attention_head_dim", 72), settings.count("sample_size", 32)
    channels = settings.count("in_channels", 4)
    out = settings.count("out_channels", channels)
    if channels != vae.channels:
        raise settings.error(f"in_channels is {channels}, and the latents of the vae have {vae.channels}")
    if out not in (channels, 2 * channels):
        raise settings.error(f"out_channels is {out}, expected {channels} or, with a variance, {2 * channels}")
    if vae.shift:
        raise settings.error(f"the vae has a shift_factor of {vae.shift}, which the published pipeline leaves out: "
                             "none can be said here")  # fmt: skip
    if side % patch or width % 4:
        raise settings.error(f"sample_size {side} is no multiple of patch_size {patch}, or the width {width} none of 4")
    activation, gated = settings.choose("activation_fn", _FFN, "gelu-approximate")
    bias = settings.take("attention_bias", bool, True)
    norm2 = Norm.Config(kind="layer", eps=settings.take("norm_eps", float, 1e-5),
                        affine=settings.take("norm_elementwise_affine", bool, False))  # fmt: skip
    block = Block.Config(
        attention=Attention.Config(heads=heads, bias=bias, out_bias=None if bias else True),
        ffn=FeedForward.Config(hidden=4 * width, activation=activation, gated=gated, bias=True),
        norm=_PLAIN, norm2=None if norm2 == _PLAIN else norm2, modulation=Modulation.Config(),
    )  # fmt: skip
    transform = ImageTransform(size=side * vae.spatial)
    return Denoiser.Config(
        codecs={"image": vae.replace(transform=transform)},
        backbone=Backbone.Config(width=width, depth=settings.count("num_layers", 28), block=block),
        text=_table(settings.count("num_embeds_ada_norm", 1000), width), patch=(1, patch, patch),
        sections=(0, width // 2, width // 2), columns_first=True, stretch=side // patch, closed=True,
        variance=out != channels, project=False,
    )  # fmt: skip


def _table(classes: int, width: int) -> Backbone.Config:
    """A stack of no blocks that reads labels."""
    block = Block.Config(attention=Attention.Config(heads=1), ffn=FeedForward.Config(hidden=1))
    return Backbone.Config(vocab=classes, width=width, depth=0, block=block, final_norm=False)


def _widened(model: Denoiser.Config) -> Denoiser.Config:
    """The same with embeddings of every block's own."""
    depth = model.backbone.depth
    return model.replace(apart=True, text=_table(model.text.vocab, depth * model.backbone.width))


def _apart(files: Files, depth: int) -> bool:
    """Whether blocks have embeddings of their own, which no config says: some differ."""
    names = [_TABLE, *(f"{_EMBED}.{layer}.{kind}" for layer in _TIME.values() for kind in ("weight", "bias"))]
    with Stored(files.folder, DIT.stem, PARTS[:1]) as stored:
        for name in names:
            every = [f"transformer.transformer_blocks.{block}.{name}" for block in range(depth)]
            if any(one not in stored.where for one in every):
                continue  # said when the model is filled
            first = stored.read(every[0])
            if not all(torch.equal(first, stored.read(one)) for one in every[1:]):
                return True
    return False


def _write(model: Wiring.Config) -> Written:
    if not isinstance(model, Denoiser.Config) or list(model.kinds) != ["image"]:
        raise OtherKind(f"the layout of {CLASS} holds a denoiser of pictures, this model is a {model.tag()} of "
                        f"{sorted(model.kinds)}")  # fmt: skip
    vae = model.codecs["image"]
    if not isinstance(vae, VAE.Config):
        raise UserError(f"the layout of {CLASS} has a VAE for its pictures, this model a {vae.tag()}")
    scheduler = write_scheduler(model.schedule, model.predictor, model.sampler)
    block, width, patch = model.backbone.block, model.backbone.width, model.patch[1]
    kinds = {kind: name for name, kind in _FFN.items()}
    kind = (block.ffn.activation, block.ffn.gated)
    if kind not in kinds:
        raise UserError(f"the layout of {CLASS} cannot say a {'gated ' * kind[1]}feed-forward with {kind[0]}")
    if width % block.attention.heads:
        raise UserError(f"the layout of {CLASS} cannot say {block.attention.heads} heads in a width of {width}")
    norm2 = block.norm2 or block.norm
    transformer = {
        "num_attention_heads": block.attention.heads, "attention_head_dim": width // block.attention.heads,
        "in_channels": vae.channels, "out_channels": vae.channels * (2 if model.variance else 1),
        "num_layers": model.backbone.depth, "attention_bias": block.attention.bias, "patch_size": patch,
        "sample_size": vae.transform.size // vae.spatial, "activation_fn": kinds[kind],
        "num_embeds_ada_norm": model.text.vocab, "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": norm2.affine, "norm_eps": norm2.eps,
    }  # fmt: skip
    again = _read_transformer(Settings(transformer), vae)
    again = _widened(again) if model.apart else again
    must_be_same(CLASS, _comparable(model, again), again)
    library = {"transformer": TRANSFORMER, "vae": VAE_CLASS, "scheduler": scheduler["_class_name"]}
    return Written(
        {part: ["diffusers", name] for part, name in library.items()},
        parts={"transformer": {"_class_name": TRANSFORMER, **transformer},
               "vae": {"_class_name": VAE_CLASS, **write_autoencoder(vae)}, "scheduler": scheduler},
    )  # fmt: skip


def _comparable(model: Denoiser.Config, again: Denoiser.Config) -> Denoiser.Config:
    """A model with what no number depends on, and what other files say, as it is read."""
    block, attention = model.backbone.block, model.backbone.block.attention
    bias = attention.bias if attention.out_bias is None else attention.out_bias
    attention = attention.replace(
        kv_heads=None if attention.kv_heads == attention.heads else attention.kv_heads,
        head_width=None if attention.width_of_head(model.backbone.width) * attention.heads == model.backbone.width
        else attention.head_width, out_bias=None if bias == attention.bias else bias,
    )  # fmt: skip
    norm2 = None if block.norm2 == block.norm else block.norm2
    backbone = model.backbone.replace(block=block.replace(attention=attention, norm2=norm2), tied=again.backbone.tied)
    text = model.text.replace(block=again.text.block, tied=again.text.tied) if not model.text.depth else model.text
    return model.replace(
        codecs=again.codecs, backbone=backbone, text=text, rule=again.rule, pool=again.pool, drop=again.drop,
        schedule=again.schedule, predictor=again.predictor, sampler=again.sampler,
    )  # fmt: skip


def _rules(model: Wiring.Config) -> Sequence[Rule]:
    assert isinstance(model, Denoiser.Config)
    vae = model.codecs["image"]
    assert isinstance(vae, VAE.Config)
    rules = [
        Rule("pos_embed.proj.weight", "enter.weight", Cells(model.patch[1])),
        Rule("pos_embed.proj.bias", "enter.bias"),
        Rule("proj_out_1.*", "backbone.modulation.linear.*"),
        Rule("proj_out_2.*", "leave.*"),
        *under(_block(model.backbone.block.ffn.gated), "transformer_blocks.{}.", "backbone.blocks.{}."),
        *_embeddings(model.backbone.depth, model.apart),
    ]
    return [*under(rules, "transformer."), *under(autoencoder_rules(vae), "vae.", "codecs.image.")]


def _block(gated: bool) -> Iterator[Rule]:
    names = {"norm1.linear": "modulation.linear", "norm3": "norm2", "attn1.to_out.0": "attention.o",
             **{f"attn1.to_{one}": f"attention.{one}" for one in "qkv"}, "ff.net.2": "ffn.down"}  # fmt: skip
    for theirs, ours in names.items():
        yield Rule(f"{theirs}.*", f"{ours}.*")
    if gated:
        yield Rule("ff.net.0.proj.*", ("ffn.up.*", "ffn.gate.*"), Split())
    else:
        yield Rule("ff.net.0.proj.*", "ffn.up.*")


def _embeddings(depth: int, apart: bool) -> Iterator[Rule]:
    """Of the time and of the class, which every block has there."""
    tables = tuple(f"transformer_blocks.{block}.{_TABLE}" for block in range(depth))
    yield Rule(tables, ("text.embed.weight", "prompt.nothing"), Labels(depth) if apart else Copies(depth, Labels()))
    for ours, theirs in _TIME.items():
        every = tuple(f"transformer_blocks.{block}.{_EMBED}.{theirs}.*" for block in range(depth))
        if apart:
            here = [f"time.{ours}.*", *(f"times.{block}.{ours}.*" for block in range(depth - 1))]
            yield from map(Rule, every, here)
        else:
            for kind in ("weight", "bias"):
                yield Rule(tuple(one.replace("*", kind) for one in every), f"time.{ours}.{kind}", Copies(depth))


def _words(files: Files, model: Wiring.Config) -> Tokenizer:
    return read_labels(files.config, model.stack.vocab)


DIT = Family(
    "dit", (CLASS,), CLASS, _read, _write, _rules, library="diffusers", parts=PARTS[:2],
    spare=("transformer.pos_embed.pos_embed",), older=tuple((f"vae.{old}", f"vae.{new}") for old, new in OLDER),
    words=Words(_words, write_labels),
)  # fmt: skip
