"""AnyRes against numbers worked out by hand and an independent statement of the published unpad rule."""

import pytest
import torch

from sensorium.connectors.anyres import AnyRes, unpadded
from sensorium.connectors.mlp import MLP
from sensorium.connectors.resampler import Resampler
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import clip_vit_l14
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid

NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def published_unpad(rows: int, cols: int, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) kept: `scale = cols / width; new = int(height * scale); padding = (rows - new) // 2`, or across."""
    height, width = size
    if width / height > cols / rows:
        new = int(round(height * (cols / width), 7))
        return rows - 2 * ((rows - new) // 2), cols
    new = int(round(width * (rows / height), 7))
    return rows, cols - 2 * ((cols - new) // 2)


def test_unpadding_follows_the_published_rule():
    sizes = [(h, w) for h in (50, 97, 336, 480, 640, 1000, 1080) for w in (60, 251, 336, 640, 672, 1300, 1920)]
    for rows, cols in ((48, 48), (24, 48), (48, 24), (72, 24), (24, 72), (7, 14)):
        for size in sizes:
            down, across = unpadded(rows, cols, size)
            assert (down.extent, across.extent) == published_unpad(rows, cols, size), (rows, cols, size)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((672, 672), 576 + 48 * 49),  # 2 x 2 tiles of 24 x 24, nothing to cut
        ((336, 672), 576 + 24 * 49),  # 1 x 2
        ((1000, 300), 576 + 72 * (22 + 1)),  # 3 x 1: 300 * 72 // 1000 = 21 of 24 columns, (24 - 21) // 2 = 1 cut twice
        ((480, 640), 576 + 36 * 49),  # 2 x 2: 480 * 48 // 640 = 36 of 48 rows
    ],
)
def test_tokens_of_llava_next_worked_out_by_hand(shape, tokens):
    encoder = clip_vit_l14(336)
    encoder = encoder.replace(transform=encoder.transform.replace(resize="squash", tiles=NEXT))
    assert AnyRes.Config().num_tokens(encoder.grid(shape)) == tokens


def test_tiles_become_one_grid_with_newlines():
    connector = AnyRes.Config(inner=MLP.Config(depth=1, bias=False)).build(1, 1)
    with torch.no_grad():
        connector.inner.layers[0].weight.fill_(1.0)
        connector.newline.fill_(-1.0)
    # thumbnail 0-3; two tiles side by side: 4 5 / 6 7 and 8 9 / 10 11
    values = torch.arange(12.0)[:, None]
    full = connector(Features(values, [Grid(2, 2, tiles=(1, 2), size=(100, 200))]))
    assert full.flatten().tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    # 200 x 200 on the same canvas: 200 * 2 // 200 = 2 of 4 columns stay, one is cut left and right
    square = connector(Features(values, [Grid(2, 2, tiles=(1, 2), size=(200, 200))]))
    assert square.flatten().tolist() == [0, 1, 2, 3, 5, 8, -1, 7, 10, -1]


def test_what_remains_is_where_the_picture_is():
    """A white picture on black padding: the cells that unpadding keeps are those the transform filled."""
    import numpy as np
    from PIL import Image

    transform = ImageTransform(size=64, resize="squash", mean=(0, 0, 0), std=(1, 1, 1), pad_color=(0, 0, 0),
                               tiles=((64, 128), (128, 64), (128, 128)))  # fmt: skip
    cell = 8
    for height, width in ((50, 200), (200, 70), (160, 200), (90, 90)):
        views = transform(Image.fromarray(np.full((height, width, 3), 255, np.uint8)))
        rows, cols = transform.grid_tiles((height, width))
        canvas = views[1:, 0].view(rows, cols, 64, 64).transpose(1, 2).reshape(rows * 64, cols * 64)
        white = canvas.unflatten(1, (-1, cell)).unflatten(0, (-1, cell)).mean((1, 3))
        down, across = unpadded(*white.shape, (height, width))
        assert white[down.span, across.span].min() > 0  # no kept cell is padding alone
        white[down.span, across.span] = 0
        assert white.max() < 1  # no cell that is all picture is cut


def test_an_inner_connector_without_a_grid_is_refused():
    config = AnyRes.Config(inner=Resampler.Config())
    with pytest.raises(UserError, match="resampler"):
        config.num_tokens(Grid(2, 2, tiles=(1, 1), size=(4, 4)))
    assert config.num_tokens(Grid(2, 2)) == 64
