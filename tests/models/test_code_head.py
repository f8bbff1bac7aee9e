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
from sensorium.models.marks import Marks
from sensorium.models.streams import Streams
from sensorium.nn.backbone import llama

BACKBONE = llama(vocab=40, width=16, depth=1, heads=2, hidden=16)
CODEC = VQ.Config(transform=ImageTransform(size=8), conv=Convolutions(channels=8, multipliers=(1, 1), groups=4),
                  quantizer=Quantizer.Config(codes=9, width=3), wide=6)  # fmt: skip


def fused(codes: int, **more) -> Fused.Config:
    return Fused.Config(
        encoders={"image": TinyEye.Config()}, connectors={"image": MLP.Config()}, codecs={"image": CODEC},
        codes={"image": CodeHead.Config(codes=codes, width=3)}, backbone=BACKBONE, **more,
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
    assert model.config.formats == {}  # nothing says what would open one
    with pytest.raises(ValueError, match="as many"):
        fused(8)


def test_ids_behind_the_vocabulary_are_codes():
    torch.manual_seed(0)
    model = fused(9, marks={"image": Marks(open=(3,), close=(4,), filler=5)}).build()
    tokens = model.config.formats["image"]
    assert (tokens.first, tokens.codes, tokens.open, tokens.close) == (40, 9, 3, 4)
    head, hidden = model.codes["image"], torch.randn(3, 16)
    ids = torch.tensor([3, 40, 48, 4])
    found = model.embed(ids)
    torch.testing.assert_close(found[[0, 3]], model.backbone.embed_tokens(ids[[0, 3]]))
    torch.testing.assert_close(found[1:3], head.embed(torch.tensor([0, 8])))
    torch.testing.assert_close(model.aside(hidden), head(hidden))
    found.sum().backward()
    assert head.embedding.weight.grad[[0, 8]].abs().min() > 0


def test_marks_are_words_and_streams_have_no_codes_beside_them():
    with pytest.raises(ValueError, match="the vocabulary has 40"):
        fused(9, marks={"image": Marks(open=(3,), close=(49,), filler=5)})
    streams = Streams.Config(codes=(9,), delays=(0,), says=1, depth=BACKBONE.replace(vocab=0))
    with pytest.raises(ValueError, match="leave out either"):
        fused(9, streams=streams)
