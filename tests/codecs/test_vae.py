"""Continuous latents and pixels as they are: shapes, scale, divergence, and a denoiser over them."""

import pytest
import torch
from tiny_denoiser import awake, config, document
from torch.testing import assert_close

from sensorium.codecs.conv import Convolutions
from sensorium.codecs.pixels import Pixels
from sensorium.codecs.vae import VAE
from sensorium.encoders.transform import ImageTransform
from sensorium.sequence import Item, Sequence

CONV = Convolutions(channels=8, multipliers=(1, 2), blocks=1, attention=False, groups=4)


def vae(**changes):
    torch.manual_seed(0)
    return VAE.Config(
        **{"transform": ImageTransform(size=16, resize="keep", multiple=8), "conv": CONV, **changes}
    ).build()


def test_shapes_and_scale():
    plain, scaled = vae().eval(), vae(scale=0.25).eval()
    pixels = torch.randn(2, 3, 1, 16, 8)
    latents = plain.encode(pixels)
    assert latents.shape == (2, 1, 8, 4, 4)
    assert_close(scaled.encode(pixels), latents * 0.25)
    assert_close(scaled.decode(latents * 0.25), plain.decode(latents))
    assert plain.decode(latents).shape == pixels.shape
    clip = vae(conv=CONV.replace(temporal=2)).encode(torch.randn(1, 3, 6, 8, 8))
    assert clip.shape == (1, 3, 4, 4, 4)


def test_latents_are_shifted_before_they_are_scaled_and_need_no_layer_of_their_own():
    plain, shifted = vae().eval(), vae(shift=0.5, scale=2.0).eval()
    pixels = torch.randn(2, 3, 1, 16, 8)
    latents = plain.encode(pixels)
    assert_close(shifted.encode(pixels), (latents - 0.5) * 2.0)
    assert_close(shifted.decode((latents - 0.5) * 2.0), plain.decode(latents))
    bare = vae(leave=False, enter=False).eval()
    assert {name.split(".")[0] for name in bare.state_dict()} == {"down", "up"}
    assert_close(bare.encode(pixels), bare.latents(pixels)[..., :4])
    assert_close(bare.decode(latents), bare.pixels(latents, 1))


def test_divergence_is_that_of_normal_distributions():
    model = vae()
    pixels = torch.randn(3, 3, 1, 8, 8)
    mean, log_variance = model.moments(pixels)
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    nats = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    coded = model(pixels)
    assert_close(coded.losses["divergence"], nats / (3 * 64))
    assert coded.pixels.shape == pixels.shape
    torch.manual_seed(1)
    one = model(pixels).pixels
    assert not torch.equal(one, model(pixels).pixels)  # drawn from the distribution


def test_pixels_are_their_own_latents():
    codec = Pixels.Config(transform=ImageTransform(size=8)).build()
    pixels = torch.randn(2, 3, 4, 8, 8)
    assert_close(codec.decode(codec.encode(pixels), 4), pixels)
    assert codec.config.grid((4, 8, 8)).tokens == 4 * 64
    assert not list(codec.parameters())


@pytest.mark.parametrize("temporal", [1, 2])
def test_a_denoiser_over_latents_packs_like_one_over_pixels(temporal):
    codec = VAE.Config(
        transform=ImageTransform(size=16, resize="keep", multiple=8), conv=CONV.replace(temporal=temporal)
    )
    made = config(codecs={"image": codec}, patch=(1, 2, 2))
    model = awake(made.build())
    parts = [document(shape, words, seed, made) for seed, (shape, words) in enumerate([((16, 8), 3), ((4, 8, 8), 5)])]
    features = [model.codec(kind).prepare_inference()(items) for part in parts for kind, items in part.items.items()]
    assert [len(one.values) for one in features] == [8 * 4, 4 // temporal * 16]
    for part, one in zip(parts, features):  # what a frozen codec made earlier is taken as it is
        [(kind, [item])] = part.items.items()
        part.items[kind] = [Item(None, item.shape, item.key, features=one.values)]
    packed = Sequence.pack(parts)
    noise = torch.randn(len(model.locate(packed)), 16)
    with torch.no_grad():
        together = model(packed, noise, torch.tensor([200.0, 600.0]))
        first = model(parts[0], noise[:8], torch.tensor([200.0]))
    assert_close(together.output[:8], first.output, rtol=1e-5, atol=1e-5)
