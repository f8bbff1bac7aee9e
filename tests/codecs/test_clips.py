"""Pictures and clips as codes: sizes, time, and norms that read the codes."""

from __future__ import annotations

import pytest
import torch

from sensorium.codecs.clips import ByCodes, ClipVQ
from sensorium.codecs.conv import Convolutions
from sensorium.codecs.vq import Quantizer
from sensorium.encoders.transform import ImageTransform

CONV = Convolutions(channels=8, multipliers=(1, 2), blocks=1, groups=4, temporal=4, time_blocks=1, halving="end",
                    attend=(1,))  # fmt: skip


@pytest.fixture(scope="module")
def codec() -> ClipVQ:
    torch.manual_seed(0)
    return ClipVQ.Config(
        transform=ImageTransform(size=16, resize="area", multiple=2, area=(16, 4096)), conv=CONV,
        quantizer=Quantizer.Config(codes=9, width=3),
    ).build().eval()  # fmt: skip


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_frames_become_codes_and_codes_frames(codec, frames, latents):
    codes = codec.encode(torch.randn(2, 3, frames, 6, 10))
    assert codes.shape == (2, latents, 3, 5, 1)
    assert codec.decode(codes, frames).shape == (2, 3, frames, 6, 10)
    assert codec.config.grid((frames, 6, 10)).tokens == latents * 15


def test_a_picture_is_a_clip_that_stands_still_and_no_frame_sees_a_later_one(codec):
    picture = torch.randn(1, 3, 1, 6, 10)
    still, moving = picture.expand(-1, -1, 8, -1, -1).clone(), torch.randn(1, 3, 8, 6, 10)
    moving[:, :, :4] = picture
    torch.testing.assert_close(codec._vectors(picture)[:, 0], codec._vectors(still)[:, 0])
    torch.testing.assert_close(codec._vectors(moving)[:, 0], codec._vectors(still)[:, 0])
    assert not torch.allclose(codec._vectors(moving)[:, 1], codec._vectors(still)[:, 1])


def test_norms_are_scaled_and_shifted_by_the_code_of_their_cell():
    norm = ByCodes(4, 2, 1)
    for layer, value in ((norm.scale, 2.0), (norm.shift, 0.0)):
        torch.nn.init.zeros_(layer.bias)
        torch.nn.init.constant_(layer.weight, value)
    x, codes = torch.randn(1, 4, 4, 4), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    scale = torch.tensor([1.0, 1, 2, 2]).expand(2, 4).repeat(2, 1) + torch.tensor([0.0, 0, 2, 2])[:, None]
    torch.testing.assert_close(norm(x, codes), norm.norm(x) * 2 * scale)


def test_its_reconstruction_is_what_its_codes_decode_to_and_has_gradients(codec):
    pixels = torch.randn(1, 3, 4, 4, 6)
    made = codec(pixels)
    torch.testing.assert_close(made.pixels, codec.decode(codec.encode(pixels), 4))
    (made.pixels.square().mean() + made.losses["commitment"].sum()).backward()
    lost = [name for name, one in codec.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert lost == []
