"""Codes beside a vocabulary: their embeddings and their head."""

import pytest
import torch
import torch.nn.functional as F
from tiny_fused import TinyEye

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vq import VQ, Quantizer
from sensorium.connectors.mlp import MLP
from sensorium.encoders.transform import ImageTransform
from sensorium.models.code_head import CodeHead
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama

BACKBONE = llama(vocab=40, width=16, depth=1, heads=2, hidden=16)
CODEC = VQ.Config(transform=ImageTransform(size=8), conv=Convolutions(channels=8, multipliers=(1, 1), groups=4),
                  quantizer=Quantizer.Config(codes=9, width=3), wide=6)  # fmt: skip


def fused(codes: int) -> Fused.Config:
    return Fused.Config(
        encoders={"image": TinyEye.Config()}, connectors={"image": MLP.Config()}, codecs={"image": CODEC},
        codes={"image": CodeHead.Config(codes=codes, width=3)}, backbone=BACKBONE,
    )  # fmt: skip


def test_layers_with_gelu_between_them():
    torch.manual_seed(0)
    head: CodeHead = CodeHead.Config(codes=9, width=3, depth=2, hidden=5).build(16)
    first, second = head.enter
    codes, hidden = torch.tensor([4, 0]), torch.randn(2, 16)
    torch.testing.assert_close(head.embed(codes), second(F.gelu(first(head.embedding.weight[codes]))))
    torch.testing.assert_close(head(hidden), head.leave[1](F.gelu(head.leave[0](hidden))))
    assert head(hidden).shape == (2, 9)


def test_they_need_a_codec_that_makes_as_many_and_leave_the_words_alone():
    model = fused(9).build()
    assert model.codes["image"].embedding.num_embeddings == 9
    assert model.config.formats == {}
    with pytest.raises(ValueError, match="as many"):
        fused(8)
