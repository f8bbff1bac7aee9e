"""A ViT for pictures of any aspect ratio, and the sizes that they get."""

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sensorium.encoders.flex import FlexViT, apart
from sensorium.encoders.transform import ImageTransform, most_cells, within
from sensorium.encoders.vit import stack
from sensorium.errors import UserError
from sensorium.nn.part import Grid
from sensorium.nn.rope import Rope
from sensorium.sequence import Item

SIZES = ((12, 12), (8, 40), (40, 8), (5, 9), (1, 90))


def encoder(**changes) -> FlexViT:
    torch.manual_seed(0)
    transform = ImageTransform(size=64, resize="keep", multiple=4, cells=16, filter="bilinear")
    blocks = stack(width=16, depth=2, heads=2)
    made = FlexViT.Config(**{"transform": transform, "patch": 4, "backbone": blocks, "trained": 3, **changes}).build()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def items(made: FlexViT) -> list[Item]:
    pictures = [Image.effect_noise((width, height), 90).convert("RGB") for height, width in SIZES]
    return [Item(made.preprocess(one), (one.height, one.width)) for one in pictures]


def test_a_picture_becomes_as_many_cells_as_are_allowed():
    assert most_cells((100, 100), 4, 16) == (4, 4)
    assert most_cells((5, 5), 4, 16) == (4, 4)  # made larger
    assert most_cells((100, 400), 4, 16) == (2, 8)
    assert most_cells((400, 100), 4, 17) == (8, 2)
    assert most_cells((10, 11), 4, 16) == (4, 4)
    assert most_cells((1, 90), 4, 16) == (1, 16)
    assert most_cells((427, 640), 16, 256) == (13, 19)
    assert most_cells((1, 10_000_000), 16, 256) == (1, 254)  # the scale is found to 1e-5, which here are two columns


def test_cells_are_those_of_a_picture_that_keeps_its_aspect_ratio():
    transform = ImageTransform(size=64, resize="keep", multiple=4, cells=16)
    assert transform.extent((100, 400)) == (8, 32)
    assert transform(Image.new("RGB", (400, 100))).shape == (1, 3, 8, 32)
    for wrong in ({"resize": "squash"}, {"size": 60}):
        with pytest.raises(ValidationError, match="longest side, is then 64"):
            ImageTransform(**{"size": 64, "resize": "keep", "multiple": 4, "cells": 16, **wrong})


def test_every_picture_has_a_grid_of_its_own_and_is_encoded_as_alone():
    made = encoder()
    every = items(made)
    together = made(every)
    assert [(grid.rows, grid.cols) for grid in together.grids] == [(4, 4), (2, 8), (8, 2), (3, 5), (1, 16)]
    for item, values in zip(every, together.values.split(together.lengths), strict=True):
        torch.testing.assert_close(made([item]).values, values, rtol=1e-4, atol=1e-5)


def test_positions_are_resized_from_the_grid_that_they_were_learned_for():
    made = encoder()
    with torch.no_grad():
        made.place.zero_()
        made.place[:, 0] = torch.arange(9.0)  # 3 r + c
    assert torch.equal(made._positions(Grid(3, 3)), made.place)
    halves = made._positions(Grid(6, 3))[:, 0].view(6, 3)
    torch.testing.assert_close(halves[2], 0.75 * torch.tensor([3.0, 4, 5]) + 0.25 * torch.tensor([0.0, 1, 2]))
    one = made._positions(Grid(1, 1))[0, 0]  # antialiased: the middle counts 1, its neighbours 2/3 in each direction
    torch.testing.assert_close(one, torch.tensor(4.0))
    assert made._positions(Grid(3, 3, frames=2)).shape == (18, 16)


def test_no_picture_at_all_still_touches_every_parameter():
    made = encoder()
    made([]).values.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in made.parameters())
    assert made([]).values.shape == (0, 16)


def test_features_made_earlier_are_used_and_never_trained_through():
    made = encoder()
    every = items(made)[:2]
    run = made.prepare_inference()
    whole = run(every)
    ready = Item(None, every[0].shape, features=whole.values[:16])
    torch.testing.assert_close(run([ready, every[1]]).values, whole.values, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="features made earlier"):
        made([ready])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no vocabulary, 7 given"):
        encoder(backbone=stack(width=16, depth=1, heads=2).replace(vocab=7))
    with pytest.raises(ValueError, match="patches of 5"):
        encoder(patch=5)


# ---- what Qwen2-VL's eyes are made of


def paired(**changes) -> FlexViT:
    blocks = stack(width=16, depth=2, heads=2).replace(rope=Rope.Config(sections=(0, 2, 2), own=True))
    transform = ImageTransform(size=16, resize="area", multiple=4, area=(100, 256))
    more = {"trained": None, "patch_bias": False, "temporal": 2, "backbone": blocks, "transform": transform}
    return encoder(**{**more, **changes})


def frames(count: int) -> list[Image.Image]:
    return [Image.effect_noise((16, 8), 60 + 20 * number).convert("RGB") for number in range(count)]


def test_pictures_go_to_the_nearest_squares_within_an_area():
    assert within((100, 50), 10, (100, 10_000)) == (100, 50)
    assert within((96, 44), 10, (100, 10_000)) == (100, 40)
    assert within((100, 50), 10, (100, 1000)) == (40, 20)  # 44.7 x 22.4, of which whole squares are filled
    assert within((10, 5), 10, (800, 1000)) == (40, 20)  # 40 x 20
    assert within((9, 5), 10, (800, 1000)) == (40, 30)  # 37.9 x 21.1, for which squares are needed
    assert within((600, 3), 10, (100, 400)) == (150, 10)  # narrower than half a square: made larger
    assert within((600, 6), 10, (100, 400)) == (200, 10)  # a third as large, and still one square wide
    assert within((4, 4), 10, (1, 400)) == (10, 10)
    with pytest.raises(UserError, match="more than 200 times as long"):
        within((201, 1), 10, (100, 400))


def test_a_picture_is_brought_into_an_area():
    transform = ImageTransform(size=16, resize="area", multiple=4, area=(100, 256))
    assert transform(Image.new("RGB", (100, 50))).shape == (1, 3, 8, 20)
    assert transform(Image.new("RGB", (3, 3))).shape == (1, 3, 12, 12)
    with pytest.raises(ValidationError, match="in this order"):
        ImageTransform(size=16, resize="area", multiple=4, area=(257, 256))


def test_a_patch_spans_frames_and_the_last_one_is_repeated():
    made = paired()
    clip, picture = made.preprocess(frames(3)), made.preprocess(frames(1)[0])
    assert made.config.grid((3, 8, 16)) == Grid(2, 4, frames=2, size=(8, 16))
    assert made.config.grid((8, 16)) == Grid(2, 4, size=(8, 16))
    rows = made.rows(torch.cat([clip, clip[-1:]]))
    assert rows.shape == (16, 3 * 2 * 16)
    one = rows[8 + 5].view(3, 2, 4, 4)  # of the second pair the cell in row 1, column 1
    assert torch.equal(one, clip[2, :, None, 4:8, 4:8].expand(3, 2, 4, 4))
    first = rows[1].view(3, 2, 4, 4)
    assert torch.equal(first, torch.stack([clip[0, :, :4, 4:8], clip[1, :, :4, 4:8]], dim=1))
    alone = made([Item(picture, (8, 16))]).values
    torch.testing.assert_close(made([Item(torch.cat([picture] * 2), (2, 8, 16))]).values, alone)
    pairs = [made([Item(clip[at], (len(clip[at]), 8, 16))]).values for at in (slice(0, 2), slice(2, 3))]
    torch.testing.assert_close(made([Item(clip, (3, 8, 16))]).values, torch.cat(pairs), rtol=1e-4, atol=1e-5)


def test_places_turn_by_row_and_column():
    """Scores of two cells depend on how many rows and columns lie between them, and on nothing else."""
    made = paired()
    layout = apart([Grid(2, 3), Grid(1, 2, frames=2)], torch.device("cpu"))
    places = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), *[(0, 0, 0), (0, 0, 1)] * 2]
    assert layout.position.tolist() == [list(place) for place in places]
    assert layout.lengths == [6, 2, 2]
    rope = made.backbone.rope
    cos, sin = rope(layout.position)
    torch.testing.assert_close(cos[4], cos[3] * 0 + torch.tensor([1.0, 0.01] * 4).cos())
    torch.testing.assert_close(sin[2], torch.tensor([0.0, 0.0, 2.0, 0.02] * 2).sin())


def test_frames_of_clips_have_sizes_of_their_own():
    clips = ImageTransform(size=8, resize="area", multiple=4, area=(16, 64))
    made = paired(clips=clips)
    assert made.config.view((8, 16)) == (3, 8, 16)
    assert made.config.view((3, 8, 16)) == (3, 4, 8)
    assert made.preprocess(frames(3)).shape == (3, 3, 4, 8)
    assert made([Item(made.preprocess(frames(3)), (3, 8, 16))]).grids == [Grid(1, 2, frames=2, size=(8, 16))]
    with pytest.raises(ValueError, match=r"expected views \(3, 3, 4, 8\)"):
        made([Item(torch.zeros(3, 3, 8, 16), (3, 8, 16))])
    with pytest.raises(ValidationError, match="clips keep their aspect ratio"):
        paired(clips=clips.replace(multiple=2, size=32))


def test_without_learned_positions_no_picture_still_touches_every_parameter():
    made = paired()
    assert made.place is None
    assert made.linear.bias is None
    made([]).values.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in made.parameters())


def test_costs_are_counted_on_tensors_without_numbers():
    made, picture = paired().to("meta"), torch.empty(1, 3, 8, 16, device="meta")
    assert made([Item(picture, (8, 16))]).values.shape == (8, 16)
