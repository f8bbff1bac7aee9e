"""ViT as settings of the one Backbone."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from sensorium.config import from_json
from sensorium.encoders.base import Encoder
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import ViT, clip_vit_h14, clip_vit_l14, eva_vit_g14, patches, stack, vit
from sensorium.sequence import Item


def small(size: int = 24, drop_last: int = 0, **changes) -> ViT.Config:
    backbone = stack(16, 3, 2, embed_norm=True)
    transform = ImageTransform(size=size)
    return ViT.Config(transform=transform, backbone=backbone, patch=8, drop_last=drop_last, **changes)


def make(config: ViT.Config, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return config.build()


def items(count: int, size: int = 24) -> list[Item]:
    torch.manual_seed(1)
    return [Item(torch.randn(1, 3, size, size), (size, size)) for _ in range(count)]


def parameters(config: ViT.Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_published_parameter_counts():
    assert parameters(clip_vit_l14(336)) == 303_507_456  # the vision tower of openai/clip-vit-large-patch14-336
    assert parameters(clip_vit_l14(224)) == 303_179_776
    # ViT-H/14 at 224 px has 630,766,080; at 448 px 768 more positions
    assert parameters(clip_vit_h14(448)) == 630_766_080 + (1024 - 256) * 1280
    assert parameters(clip_vit_h14(224)) == 630_766_080
    assert parameters(eva_vit_g14(224)) == pytest.approx(1.011e9, rel=0.01)


@pytest.mark.parametrize(
    ("config", "tokens", "width"),
    [(clip_vit_l14(224), 256, 1024), (clip_vit_l14(336), 576, 1024), (eva_vit_g14(448), 1024, 1408),
     (clip_vit_h14(), 1024, 1280)],
)  # fmt: skip
def test_tokens_per_picture(config, tokens, width):
    grid = config.grid((480, 640))
    assert grid.tokens == tokens
    assert grid.rows == grid.cols
    assert config.width == width
    assert from_json(config.to_json(), Encoder.Config) == config


def test_patches_are_what_a_strided_convolution_sees():
    torch.manual_seed(0)
    views, weight = torch.randn(2, 3, 24, 16), torch.randn(5, 3, 8, 8)
    convolved = F.conv2d(views, weight, stride=8)  # (2, 5, 3, 2)
    assert torch.allclose(patches(views, 8) @ weight.flatten(1).T, convolved.flatten(2).transpose(1, 2), atol=1e-4)


def reference(encoder: ViT, view: torch.Tensor, depth: int) -> torch.Tensor:
    """The forward pass of one view written out: convolution, class token, pre-norm blocks of plain attention."""
    weight = encoder.patch.weight.view(-1, 3, 8, 8)
    x = F.conv2d(view[None], weight, encoder.patch.bias, stride=8).flatten(2).transpose(1, 2)[0]
    x = torch.cat([encoder.class_token[None], x]) + encoder.place
    norm = lambda part, y: F.layer_norm(y, (16,), part.weight, part.bias, 1e-6)  # noqa: E731
    x = norm(encoder.backbone.embed_norm, x)
    for block in encoder.backbone.blocks[:depth]:
        y, a = norm(block.norm1, x), block.attention
        q, k, v = (part(y).view(-1, 2, 8).transpose(0, 1) for part in (a.q, a.k, a.v))
        mixed = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
        x = x + a.o(mixed.transpose(0, 1).flatten(1))
        x = x + block.ffn.down(F.gelu(block.ffn.up(norm(block.norm2, x))))
    return x[1:]


@pytest.mark.parametrize("drop_last", [1, 2])
def test_the_features_are_those_of_the_block_asked_for(drop_last):
    encoder, batch = make(small(drop_last=drop_last)), items(2)
    values = encoder(batch).values.view(2, 9, 16)
    for item, made in zip(batch, values):
        assert torch.allclose(made, reference(encoder, item.data[0], 3 - drop_last), atol=1e-5)


def test_last_block_is_followed_by_the_final_norm_and_out_norm_by_any():
    full = make(small())
    last = reference(full, items(1)[0].data[0], 3)
    assert torch.allclose(full(items(1)).values, F.layer_norm(last, (16,), eps=1e-6), atol=1e-5)
    normed, plain = make(small(drop_last=1, out_norm=True)), make(small(drop_last=1))
    normed.load_state_dict(plain.state_dict(), strict=False)
    expected = F.layer_norm(plain(items(1)).values, (16,), eps=1e-6)
    assert torch.allclose(normed(items(1)).values, expected, atol=1e-5)


def test_packed_equals_separate():
    encoder, batch = make(small()), items(3)
    apart = torch.cat([encoder([item]).values for item in batch])
    assert torch.allclose(encoder(batch).values, apart, atol=1e-5)


@pytest.mark.parametrize("drop_last", [0, 1])
@pytest.mark.parametrize("count", [0, 2])
def test_every_parameter_has_a_gradient(count, drop_last):
    encoder = make(small(drop_last=drop_last, out_norm=True))
    features = encoder(items(count))
    assert features.values.shape == (9 * count, 16)
    features.values.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_learned_positions_are_interpolated_to_another_grid():
    config = small(size=48, trained_size=24, class_token=True)
    encoder = make(config)
    assert encoder.place.shape == (10, 16)
    with torch.no_grad():
        rows = torch.arange(3.0).repeat_interleave(3)
        encoder.place[1:] = rows[:, None]  # position = row number: interpolation must stay constant along a row
    place = encoder.table()
    assert place.shape == (37, 16)
    assert torch.equal(place[0], encoder.place[0])
    grid = place[1:, 0].view(6, 6)
    assert torch.allclose(grid, grid[:, :1].expand(6, 6), atol=1e-5)
    assert (grid[1:, 0] > grid[:-1, 0]).all()
    assert torch.allclose(grid[:, 0] + grid[:, 0].flip(0), torch.full((6,), 2.0), atol=1e-5)
    assert encoder(items(1, 48)).values.shape == (36, 16)


def test_without_positions_the_order_of_patches_would_not_matter_with_them_it_does():
    encoder = make(vit(16, 2, 2, patch=8, size=24))
    view = items(1)[0].data
    flipped = view.unflatten(3, (3, 8)).flip(3).flatten(3)  # columns of patches in reverse order
    plain = encoder([Item(view, (24, 24))]).values.view(3, 3, 16)
    moved = encoder([Item(flipped, (24, 24))]).values.view(3, 3, 16).flip(1)
    assert (plain - moved).abs().max() > 1e-2
    encoder.table = lambda: torch.zeros(9, 16)
    plain = encoder([Item(view, (24, 24))]).values.view(3, 3, 16)
    moved = encoder([Item(flipped, (24, 24))]).values.view(3, 3, 16).flip(1)
    assert torch.allclose(plain, moved, atol=1e-5)


def test_prepared_inference_equals_the_plain_network():
    encoder, batch = make(small()), items(19)
    with torch.no_grad():
        plain = encoder(batch).values
    assert torch.allclose(encoder.prepare_inference(torch.float32)(batch).values, plain, atol=1e-5)
    low = encoder.prepare_inference(torch.bfloat16)(batch).values
    assert low.dtype == torch.float32
    assert 0 < (low - plain).norm() < 0.05 * plain.norm()


def test_tiles_are_encoded_like_pictures():
    transform = ImageTransform(size=24, resize="squash", tiles=((24, 48), (48, 24)))
    config = small().replace(transform=transform)
    encoder = make(config)
    views = torch.randn(3, 3, 24, 24)
    tiled = encoder([Item(views, (20, 90))])
    alone = make(small())([Item(view[None], (24, 24)) for view in views])
    assert tiled.grids[0].tiles == (1, 2)
    assert torch.allclose(tiled.values, alone.values, atol=1e-5)


@pytest.mark.parametrize("changes", [{"size": 20}, {"drop_last": 3}, {"trained_size": 20}])
def test_wrong_values_are_refused(changes):
    with pytest.raises(ValidationError):
        small(**changes)


def test_frames_of_clips_are_prepared_in_a_way_of_their_own():
    clips = ImageTransform(size=24, resize="squash", mean=(0.1,) * 3)
    made = make(small(clips=clips))
    frames = [Image.new("RGB", (30, 40), (10 * at, 50, 90)) for at in range(3)]
    views = made.preprocess(frames)
    assert torch.equal(views, torch.cat([clips(frame) for frame in frames]))
    assert not torch.equal(made.preprocess(frames[0])[0], views[0])
    assert made([Item(views, (3, 40, 30))]).values.shape[0] == 3 * made.config.cells[0] * made.config.cells[1]
    for other, reason in ((clips.replace(size=48), r"views of \(48, 48\), and pictures of \(24, 24\)"),
                          (clips.replace(split=True), "not cut into tiles")):  # fmt: skip
        with pytest.raises(ValidationError, match=reason):
            small(clips=other)
