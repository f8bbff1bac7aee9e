"""A ViT for pictures of any aspect ratio, and the sizes that they get."""

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sensorium.encoders.flex import FlexViT
from sensorium.encoders.transform import ImageTransform, most_cells
from sensorium.encoders.vit import stack
from sensorium.nn.part import Grid
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
