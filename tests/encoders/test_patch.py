"""Fuyu's patches: any size and aspect ratio, through one linear layer."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sensorium.connectors.rows import Rows
from sensorium.encoders.patch import Patch
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid
from sensorium.sequence import Item

SIZES = ((12, 12), (8, 20), (20, 8), (5, 9), (3, 24))
"""(height, width) of pictures in five aspect ratios."""


def patch(**changes) -> Patch:
    torch.manual_seed(0)
    transform = ImageTransform(size=24, resize="keep", multiple=4)
    return Patch.Config(**{"transform": transform, "patch": 4, "dim": 16, **changes}).build()


def items(encoder: Patch) -> list[Item]:
    pictures = [Image.effect_noise((width, height), 90).convert("RGB") for height, width in SIZES]
    return [Item(encoder.preprocess(one), (one.height, one.width)) for one in pictures]


def test_every_picture_keeps_its_aspect_ratio_and_is_encoded_as_alone():
    encoder = patch()
    every = items(encoder)
    together = encoder(every)
    assert [(grid.rows, grid.cols) for grid in together.grids] == [(3, 3), (2, 5), (5, 2), (2, 3), (1, 6)]
    for item, values in zip(every, together.values.split(together.lengths)):
        torch.testing.assert_close(encoder([item]).values, values)


def test_a_feature_is_the_linear_layer_of_its_patch():
    encoder = patch()
    [item] = items(encoder)[1:2]
    assert item.data is not None
    cell = item.data[0, :, 4:8, 8:12].flatten()  # second row, third column
    torch.testing.assert_close(encoder([item]).values[5 + 2], encoder.linear(cell))


def test_large_pictures_are_scaled_down_and_small_ones_padded():
    transform = ImageTransform(size=24, resize="keep", multiple=4)
    assert transform.extent((48, 12)) == (24, 8)
    assert transform.extent((5, 9)) == (8, 12)
    view = transform.replace(pad_color=(255, 255, 255))(Image.new("RGB", (9, 5), "black"))
    assert view.shape == (1, 3, 8, 12)
    assert view[0, :, :5, :9].unique().tolist() == [-1.0]
    assert view[0, :, 5:].unique().tolist() == [1.0]


def test_fuyu_reads_a_screen_as_36_rows_of_64_patches():
    grid = Patch.Config(dim=8).grid((1080, 1920))
    assert (grid.rows, grid.cols) == (36, 64)
    assert Rows.Config().num_tokens(grid) == 36 * 65


def test_without_pictures_the_layer_still_has_a_gradient():
    encoder = patch()
    features = encoder([])
    assert features.values.shape == (0, 16)
    features.values.sum().backward()
    assert encoder.linear.weight.grad is not None


def test_features_made_earlier_stand_among_others_in_order():
    encoder = patch()
    every = items(encoder)
    plain = encoder(every)
    rows = plain.values.detach().split(plain.lengths)
    mixed = [Item(None, item.shape, features=made) if index % 2 else item
             for index, (item, made) in enumerate(zip(every, rows))]  # fmt: skip
    torch.testing.assert_close(encoder.prepare_inference()(mixed).values, plain.values.detach())
    with pytest.raises(ValueError, match="being trained"):
        encoder(mixed)


def test_encoders_of_square_views_refuse_to_keep_sizes():
    square = vit(width=16, depth=1, heads=2, patch=8, size=16)
    with pytest.raises(ValidationError, match="reads square views"):
        square.replace(transform=square.transform.replace(resize="keep"))


def test_rows_end_with_the_newline():
    rows = Rows.Config().build(2, 2)
    features = Features(torch.arange(20.0).view(10, 2), [Grid(2, 3), Grid(2, 2)])
    made = rows(features)
    ends = [3, 7, 10, 13]
    assert len(made) == 2 * 4 + 2 * 3
    assert all(torch.equal(made[at], rows.newline) for at in ends)
    kept = [at for at in range(14) if at not in ends]
    assert torch.equal(made[kept], features.values)
    made.sum().backward()
    assert rows.newline.grad is not None
    assert rows.newline.grad.tolist() == [4.0, 4.0]


def test_rows_refuse_tiles_and_another_width():
    with pytest.raises(UserError, match="no order of their own"):
        Rows.Config().num_tokens(Grid(2, 2, tiles=(1, 2)))
    with pytest.raises(ValueError, match="give the encoder that width"):
        Rows.Config().build(2, 4)
