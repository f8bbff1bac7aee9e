"""Convolutions between pixels and latents: sizes, frames, and how time begins."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sensorium.codecs.conv import Convolutions, Down, Up


def tiny(**changes) -> Convolutions:
    return Convolutions(**{"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "groups": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "frames", "latent"),
    [
        ({}, 1, (1, 4, 6)),
        ({"patch": 2}, 3, (3, 2, 3)),
        ({"temporal": 4}, 1, (1, 4, 6)),
        ({"temporal": 4}, 9, (3, 4, 6)),
    ],
)
def test_latents_and_pixels_have_the_planned_sizes(changes, frames, latent):
    config = tiny(**changes)
    pixels = torch.randn(2, 3, frames, 16, 24)
    made = Down(config, out=5)(pixels)
    assert config.latent(frames, 16, 24) == latent
    assert tuple(made.shape) == (2, 5, *latent)
    assert Up(config, inward=5)(made, frames).shape == pixels.shape


def test_8_pixels_and_4_frames_become_one_latent_at_the_published_size():
    config = Convolutions(temporal=4)
    assert (config.spatial, config.temporal) == (8, 4)
    assert config.latent(4, 512, 512) == (1, 64, 64)
    assert config.latent(1, 512, 512) == (1, 64, 64)


def test_a_map_that_is_halved_has_its_zeros_on_both_sides_or_at_its_end():
    """Weights of one on a map of ones: a sum counts the cells that it saw."""
    sums = {}
    for halving in ("both", "end"):
        layer = Down(tiny(halving=halving), out=5).levels[1]
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        sums[halving] = layer(torch.ones(1, 8, 4, 6))[0, 0] / 8
    assert sums["both"].tolist() == [[4, 6, 6], [6, 9, 9]]
    assert sums["end"].tolist() == [[9, 9, 6], [6, 6, 4]]


def test_the_middle_has_as_many_residual_blocks_as_are_asked_for():
    for changes, names in [
        ({}, ["Residual", "CellAttention", "Residual"]),
        ({"attention": False}, ["Residual"]),
        ({"attention": False, "middle": 2}, ["Residual", "Residual"]),
        ({"middle": 3}, ["Residual", "CellAttention", "Residual", "Residual"]),
    ]:
        for side in (Down(tiny(**changes), out=5), Up(tiny(**changes), inward=5)):
            assert [type(part).__name__ for part in side.middle] == names


def test_frames_never_meet_without_time():
    torch.manual_seed(0)
    down = Down(tiny(), out=5)
    pixels = torch.randn(1, 3, 3, 16, 16)
    apart = torch.cat([down(pixels[:, :, frame : frame + 1]) for frame in range(3)], dim=2)
    torch.testing.assert_close(down(pixels), apart)


def test_time_begins_as_mean_and_repetition_so_that_a_picture_is_coded_as_without_time():
    torch.manual_seed(0)
    plain, timed = Down(tiny(), out=5), Down(tiny(temporal=4), out=5)
    timed.load_state_dict(plain.state_dict(), strict=False)
    back, timed_back = Up(tiny(), inward=5), Up(tiny(temporal=4), inward=5)
    timed_back.load_state_dict(back.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 1, 16, 16)
    torch.testing.assert_close(timed(pixels), plain(pixels))
    torch.testing.assert_close(timed_back(timed(pixels), 1), back(plain(pixels), 1))


def test_sizes_that_do_not_fit_are_refused_with_what_to_change():
    with pytest.raises(ValueError, match="18 x 16 pixels cannot be cut into cells of 4 x 4"):
        tiny().latent(1, 18, 16)
    with pytest.raises(ValidationError, match="3 is no power of two"):
        tiny(temporal=3)


def test_attention_follows_the_residual_blocks_of_the_levels_that_are_asked_for():
    names = [type(layer).__name__ for layer in Down(tiny(attend=(0, 2), blocks=2), out=3).levels]
    near = ["Residual", "CellAttention"] * 2
    assert names == [*near, "Conv2d", "Residual", "Residual", "Conv2d", *near]
    names = [type(layer).__name__ for layer in Up(tiny(attend=(2,)), inward=3).levels]
    assert names == [*near, "Upsample", "Conv2d", *["Residual"] * 2, "Upsample", "Conv2d", *["Residual"] * 2]
    assert Up(tiny(attend=(2,)), inward=3)(torch.randn(1, 3, 1, 2, 2), 1).shape == (1, 3, 1, 8, 8)
