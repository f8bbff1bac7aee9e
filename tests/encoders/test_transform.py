"""ImageTransform against numbers worked out by hand and against the published any-resolution rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from sensorium.codecs.base import to_pictures
from sensorium.config import from_json
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError

NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ISSUE = ((672, 672), (336, 1344), (1344, 336))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_values_are_normalised_channel_by_channel():
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    views = ImageTransform(size=8, mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2))(image)
    assert views.shape == (1, 3, 8, 8)
    assert views.dtype == torch.float32
    assert views.is_contiguous()
    assert views[0, :, 3, 4].tolist() == pytest.approx([1.0, -1.0, 0.5], abs=1e-6)


def test_a_picture_of_the_right_size_keeps_its_pixels_in_place():
    image = picture(8, 8)
    views = ImageTransform(size=8, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert torch.allclose(views[0].permute(1, 2, 0) * 255, torch.from_numpy(np.array(image)).float(), atol=1e-4)


def test_shortest_crops_the_centre_of_the_longer_side():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255  # the middle third is white: exactly what a centre crop keeps
    views = ImageTransform(size=8)(Image.fromarray(pixels))
    assert views.min() == 1.0


def test_pad_keeps_everything_and_fills_with_the_mean():
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    transform = ImageTransform(size=8, resize="pad", mean=(0.4, 0.4, 0.4), std=(0.5, 0.5, 0.5), filter="bilinear")
    views = transform(image)
    column = views[0, 0, :, 0]
    assert column[[0, 1, 6, 7]].abs().max() < 1e-6  # 0.4 * 255 = 102: the mean colour is zero
    assert column[2:6].tolist() == pytest.approx([1.2] * 4)
    assert transform.replace(pad_color=(0, 0, 0))(image)[0, 0, 0, 0].item() == pytest.approx(-0.8)


def test_squash_uses_the_whole_picture():
    pixels = np.zeros((8, 32, 3), np.uint8)
    pixels[:, :16] = 255
    views = ImageTransform(size=8, resize="squash")(Image.fromarray(pixels))
    assert views[0, 0, 0, 0] == 1.0
    assert views[0, 0, 0, 7] == -1.0


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["shortest", "squash", "pad"]))
def test_any_picture_becomes_one_square_view(height, width, resize):
    assert ImageTransform(size=7, resize=resize)(picture(height, width)).shape == (1, 3, 7, 7)


def test_tiles_are_the_picture_cut_row_by_row():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250)]
    pixels = np.zeros((16, 24, 3), np.uint8)
    for index, colour in enumerate(colours):
        row, col = divmod(index, 3)
        pixels[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = colour
    transform = ImageTransform(size=8, resize="squash", mean=(0, 0, 0), std=(1, 1, 1), tiles=((16, 24), (24, 16)))
    views = transform(Image.fromarray(pixels))
    assert transform.grid_tiles((16, 24)) == (2, 3)
    assert views.shape == (7, 3, 8, 8)
    for view, colour in zip(views[1:], colours):
        assert torch.allclose(view * 255, torch.tensor(colour).float()[:, None, None].expand(3, 8, 8), atol=1e-4)


SPLIT = ImageTransform(size=8, resize="squash", mean=(0, 0, 0), std=(1, 1, 1), first=24, split=True)


def test_a_split_picture_is_cut_row_by_row_and_the_whole_is_made_of_what_was_cut():
    image = picture(16, 24)
    views = SPLIT(image)
    assert views.shape == (7, 3, 8, 8)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    for row, col in ((0, 0), (0, 2), (1, 1)):
        tile = pixels[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        torch.testing.assert_close(views[1 + 3 * row + col], tile, rtol=0, atol=1e-6)
    assert torch.equal(views[:1], SPLIT.replace(first=None, split=False)(image))
    small = picture(9, 12)  # to 18 x 24, then to 24 x 24
    cut = small.resize((24, 18), Image.Resampling.BICUBIC).resize((24, 24), Image.Resampling.BICUBIC)
    assert torch.equal(SPLIT(small)[:1], SPLIT.replace(first=None, split=False)(cut))
    assert torch.equal(SPLIT(small), SPLIT.replace(first=None)(cut))


@pytest.mark.parametrize(
    ("changes", "shape", "tiles"),
    [
        ({}, (10, 24), (2, 3)),
        ({}, (24, 10), (3, 2)),
        ({}, (1, 300), (1, 3)),  # one pixel high becomes two, and those a view
        ({"first": 8}, (480, 640), None),
        ({"first": 20}, (480, 640), (3, 3)),  # 15 x 20, made even: 16 x 20; to 24 wide it is 19 high
        ({"first": 9}, (5, 5), (2, 2)),  # 10 x 9, for 9 is odd
        ({"first": None}, (8, 8), None),
        ({"first": None}, (8, 9), (2, 2)),  # 16 wide it is 14 high
        ({"split": False}, (10, 24), None),
    ],
)
def test_tiles_of_split_pictures_worked_out_by_hand(changes, shape, tiles):
    transform = SPLIT.replace(**changes)
    assert transform.grid_tiles(shape) == tiles
    assert len(transform(picture(*shape))) == transform.views(shape)


def test_a_tiled_picture_keeps_its_aspect_and_is_centred_on_the_pad_colour():
    # 10 x 30 (height, width) on a 16 x 16 canvas: 16 wide, ceil(10 * 16 / 30) = 6 high, 5 rows above and below
    transform = ImageTransform(
        size=8, resize="squash", mean=(0, 0, 0), std=(1, 1, 1), pad_color=(0, 0, 0), tiles=((16, 16),)
    )
    views = transform(Image.new("RGB", (30, 10), (255, 255, 255)))
    canvas = views[1:].reshape(2, 2, 3, 8, 8).permute(2, 0, 3, 1, 4).reshape(3, 16, 16)
    rows = canvas[0, :, 3].tolist()
    assert rows == [0.0] * 5 + [1.0] * 6 + [0.0] * 5
    assert views[0].min() == 1.0


def published_choice(height: int, width: int, candidates) -> tuple[int, int]:
    """The rule in words: most effective resolution (never more than the picture's own pixels), then least waste."""
    table = []
    for order, (rows, cols) in enumerate(candidates):
        scale = min(cols / width, rows / height)
        scaled_width, scaled_height = math.floor(width * scale), math.floor(height * scale)
        effective = min(scaled_width * scaled_height, width * height)
        table.append((-effective, rows * cols - effective, order, (rows, cols)))
    return sorted(table)[0][3]


SIZES = [
    (h, w) for h in (97, 200, 336, 480, 672, 1080, 1500, 4000) for w in (64, 250, 336, 500, 640, 672, 1344, 1920, 3000)
]


@pytest.mark.parametrize("candidates", [NEXT, ISSUE])
def test_tile_counts_follow_the_published_rule(candidates):
    assert len(SIZES) >= 50
    transform = ImageTransform(size=336, resize="squash", tiles=candidates)
    for height, width in SIZES:
        expected = published_choice(height, width, candidates)
        assert transform.grid_tiles((height, width)) == (expected[0] // 336, expected[1] // 336), (height, width)
        assert transform.views((height, width)) == 1 + expected[0] * expected[1] // 336**2


@pytest.mark.parametrize(
    ("shape", "tiles"),
    [((672, 672), (2, 2)), ((336, 672), (1, 2)), ((672, 336), (2, 1)), ((300, 1000), (1, 3)), ((1000, 300), (3, 1)),
     ((480, 640), (2, 2)), ((100, 100), (1, 2)), ((200, 400), (1, 2)), ((1080, 1920), (2, 2))],
)  # fmt: skip
def test_tile_counts_worked_out_by_hand(shape, tiles):
    assert ImageTransform(size=336, tiles=NEXT).grid_tiles(shape) == tiles


def test_one_view_without_candidates():
    assert ImageTransform().grid_tiles((480, 640)) is None
    assert ImageTransform().views((480, 640)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"std": (0, 1, 1)},
        {"pad_color": (0, 0, 256)},
        {"size": 100, "tiles": ((100, 150),)},
        {"resize": "crop"},
        {"width": 0},
        {"width": 32, "resize": "keep"},
        {"width": 32, "tiles": ((224, 448),)},
        {"scaled": (40, 40)},
        {"resize": "squash", "scaled": 40},
        {"resize": "centre", "scaled": 40},
        {"resize": "squash", "longest": 40},
        {"resize": "pad", "rounded": False},
        {"first": 40},
        {"resize": "pad", "split": True},
        {"resize": "squash", "split": True, "tiles": ((448, 448),)},
        {"resize": "squash", "split": True, "width": 32},
        {"resize": "squash", "split": True, "rounded": False},
        {"resize": "squash", "first": 40, "rounded": False},
        {"resize": "squash", "first": 0},
        {"filter": "lanczos", "rounded": False},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        ImageTransform(**wrong)


def test_other_modes_are_refused():
    with pytest.raises(UserError, match="RGBA"):
        ImageTransform()(Image.new("RGBA", (4, 4)))


def test_round_trips_through_json():
    transform = ImageTransform(size=336, tiles=NEXT, pad_color=(0, 0, 0))
    assert from_json(transform.to_json(), ImageTransform) == transform


def test_a_limit_scales_down_to_a_box_with_sides_rounded_down():
    transform = ImageTransform(size=60, limit=(36, 60), resize="keep", multiple=6)
    assert transform.extent((36, 60)) == (36, 60)
    assert transform.extent((20, 13)) == (24, 18)
    assert transform.extent((101, 37)) == (36, 18)  # 36 x 13.19 pixels
    assert transform.extent((20, 61)) == (24, 60)  # 19.67 x 60
    for limit in ((36, 48), (36, 59), (60, 0)):
        with pytest.raises(ValidationError, match="limit"):
            ImageTransform(size=60, limit=limit, resize="keep", multiple=6)
    with pytest.raises(ValidationError, match="limit"):
        ImageTransform(size=60, limit=(36, 60))


def test_values_of_pixels_are_scaled_by_a_factor_of_their_own():
    transform = ImageTransform(size=2, scale=0.0078, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 0.5))
    made = transform(Image.new("RGB", (2, 2), (0, 100, 255)))
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([-1.0, -0.22, (255 * 0.0078 - 1) / 0.5]))
    assert to_pictures(made[0][:, None], transform)[0].getpixel((1, 1)) == (0, 100, 255)


def test_area_brings_both_sides_to_multiples_and_their_product_into_bounds():
    transform = ImageTransform(resize="area", multiple=8, area=(64 * 64, 128 * 128))
    assert transform.extent((70, 90)) == (72, 88)
    assert transform.extent((427, 640)) == (104, 152)  # divided by sqrt(427 * 640 / 128**2), rounded down
    assert transform.extent((10, 30)) == (40, 112)  # times sqrt(64**2 / 300), rounded up
    assert transform(picture(70, 90)).shape == (1, 3, 72, 88)
    with pytest.raises(UserError, match="200 times"):
        transform.extent((1, 300))


def test_fit_makes_the_longer_side_as_long_as_a_view_and_centres_it():
    transform = ImageTransform(size=8, resize="fit", least=3, pad_color=(255, 255, 255))
    made = transform(Image.new("RGB", (32, 16), (0, 0, 0)))[0, 0]
    assert [bool(row) for row in (made < 0).all(1)] == [False] * 2 + [True] * 4 + [False] * 2
    thin = transform(Image.new("RGB", (1, 64), (0, 0, 0)))[0, 0]
    assert [bool(column) for column in (thin < 0).all(0)] == [False] * 2 + [True] * 3 + [False] * 3
    assert transform.extent((64, 1)) == (8, 8)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
def test_torch_resizes_almost_as_pillow_does(filter):
    """Smooth values: the two round differently, and by no more than a level."""
    image = picture(5, 7).resize((70, 50), Image.Resampling.BICUBIC)
    transform = ImageTransform(size=16, resize="squash", filter=filter, mean=(0.0,) * 3, std=(1.0,) * 3)
    ours, theirs = (transform.replace(backend=name)(image) for name in ("torch", "pillow"))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() * 255 < 1.01
    assert transform.replace(backend="torch", size=8)(picture(8, 8)).equal(transform.replace(size=8)(picture(8, 8)))


@pytest.mark.parametrize("changes", [{"filter": "box"}, {"filter": "hamming"}, {"rounded": False}])
def test_torch_has_no_more_filters_and_rounds(changes):
    with pytest.raises(ValidationError, match="torch resizes 8-bit values by"):
        ImageTransform(resize="squash", backend="torch", **changes)
