"""Chameleon: words and pictures in any order from the first token on, and what keeps such training stable."""

from __future__ import annotations

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.tokens import CodeTokens
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.encoders.transform import ImageTransform
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.nn.norm import Norm
from sensorium.recipes.unified import FAMILY, SMALLER, codec_for, fields_for, language_for, stages_for, tokens_for
from sensorium.render import Template
from sensorium.train.recipe import Figure, Recipe, Size

TEMPLATE = Template(
    chat="{% for m in messages %}{{ m['content'] + ('<reserved08706>' if m['role'] == 'user' else eos_token) }}"
    "{% endfor %}",
    begin="<s>", plain="</s>", stop="</s>",
)  # fmt: skip
TOKENS = CodeTokens(first=57_342, codes=8192, open=65_534, close=65_535)


def image_tokenizer() -> VQ.Config:
    """Make-A-Scene's, as Chameleon trained it: 16 x 16 pixels a code, 8,192 codes (arXiv 2405.09818, section 2.1)."""
    conv = Convolutions(channels=128, multipliers=(1, 1, 2, 2, 4))
    book = Quantizer.Config(codes=8192, width=256, learning="gradient", revive=0.0)
    return VQ.Config(transform=ImageTransform(size=512), conv=conv, quantizer=book, wide=256)


def chameleon(size: Size = "tiny") -> Recipe:
    """Chameleon: Mixed-Modal Early-Fusion Foundation Models (Chameleon Team 2024, arXiv 2405.09818).

    New in it: one vocabulary and one decoder from the start, over documents in which words and pictures stand in any
    order. Such training diverges late, since words and codes compete in one softmax; normalised queries and keys and a
    loss on log Z keep the norms from growing (section 2.3).
    """
    codec = codec_for(size, image_tokenizer())
    backbone = llama(vocab=65_536, width=4096, depth=32, heads=32, hidden=11_008)
    attention = backbone.block.attention.replace(qk_norm=Norm.Config(kind="layer"))
    backbone = backbone.replace(block=backbone.block.replace(attention=attention))
    model = Fused.Config(
        codecs={"image": codec}, tokens={"image": tokens_for(size, TOKENS)}, backbone=language_for(size, backbone)
    )
    decay = {"weight_decay": 0.1, "warmup": 0.01}
    instructions = "instructions of text, code, pictures and mixed documents; lr 1e-5"
    stages = stages_for(size, model, {
        "codec": {"lr": 1e-4, "published": "licensed pictures, faces twice as often (Make-A-Scene's losses)"},
        "pretrain": {"lr": 1e-4, "published": "2.9 T text, 1.5 T pairs, 0.4 T interleaved; z-loss 1e-5", **decay},
        "finetune": {"lr": 1e-5, "published": instructions, **decay},
    }, z=1e-5)  # fmt: skip
    figures = (
        Figure(name="features.image", published=1024, tolerance=0.0, source="arXiv 2405.09818, section 2.1"),
        Figure(name="codes.image", published=8192, tolerance=0.0, source="arXiv 2405.09818, section 2.1"),
        Figure(name="vocab", published=65_536, tolerance=0.0, source="arXiv 2405.09818, section 2.1"),
        Figure(name="parameters.backbone", published=7.04e9, tolerance=0.01, source="released 7B, without its codec"),
        Figure(name="width", published=4096, tolerance=0.0, source="Llama-2 7B; arXiv 2405.09818, table 1"),
        Figure(name="depth", published=32, tolerance=0.0, source="Llama-2 7B; arXiv 2405.09818, table 1"),
        Figure(name="lr.pretrain", published=1e-4, tolerance=0.0, source="arXiv 2405.09818, table 1"),
        Figure(name="lr.finetune", published=1e-5, tolerance=0.0, source="arXiv 2405.09818, section 3.2"),
    )
    return Recipe(
        name="chameleon", title="Chameleon 7B", paper="arXiv 2405.09818", family=FAMILY, size=size, model=model,
        template=TEMPLATE if size == "paper" else Template(), stages=stages, figures=figures if size == "paper" else (),
        deviations=(
            *SMALLER,
            "the codes are the last ids of the vocabulary, with their marks; the released one has them near its start",
            "the norms of queries and keys have one weight for all heads (the released model: one each); no dropout",
        ),
        **fields_for(size),
    )  # fmt: skip
