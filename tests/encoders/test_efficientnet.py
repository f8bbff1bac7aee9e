"""EfficientNet-Lite0 and what it inherits from Encoder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from sensorium.config import from_json
from sensorium.encoders.base import Encoder
from sensorium.encoders.efficientnet import (
    TRANSFORM,
    ConvNorm,
    EfficientNetLite0,
    FoldedConv,
    OneDNNConv,
    Shape,
    _names,
    load_published,
    onednn_computes,
)
from sensorium.errors import UserError
from sensorium.sequence import Item

SMALL = EfficientNetLite0.Config(transform=TRANSFORM.replace(size=64))
FORMS = [FoldedConv, *([OneDNNConv] if onednn_computes(torch.float32) else [])]
SHAPES = [Shape(3, 8, 3, 2), Shape(8, 8, 5, 2, groups=8), Shape(8, 8, 3, 1, groups=8), Shape(8, 16, relu6=False)]


def make(config=SMALL, seed=0) -> EfficientNetLite0:
    """A network with statistics that are not trivial, so that folding has something to fold."""
    torch.manual_seed(seed)
    encoder = config.build()
    for module in encoder.modules():
        if isinstance(module, ConvNorm):
            randomise(module)
    return encoder


def randomise(conv: ConvNorm) -> ConvNorm:
    with torch.no_grad():
        conv.mean.normal_(0, 0.2)
        conv.variance.uniform_(0.5, 1.5)
        conv.gain.uniform_(0.8, 1.2)
        conv.shift.normal_(0, 0.2)
    return conv


def items(count: int, size: int = 64, seed: int = 1) -> list[Item]:
    torch.manual_seed(seed)
    return [Item(torch.randn(1, 3, size, size), (size, size)) for _ in range(count)]


def same_convolution(x: torch.Tensor, conv: ConvNorm) -> torch.Tensor:
    """TensorFlow's SAME convolution, then torch's own batch norm with fixed statistics: an independent statement."""
    shape = conv.shape
    out = -(-x.shape[-1] // shape.stride)
    total = max((out - 1) * shape.stride + shape.kernel - x.shape[-1], 0)
    x = F.pad(x, (total // 2, total - total // 2) * 2)
    y = F.conv2d(x, conv.weight, None, shape.stride, 0, 1, shape.groups)
    y = F.batch_norm(y, conv.mean, conv.variance, conv.gain, conv.shift, training=False, eps=1e-3)
    return y.clamp(0, 6) if shape.relu6 else y


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_norm_in_all_three_forms(shape):
    torch.manual_seed(0)
    conv = randomise(ConvNorm(shape))
    x = torch.randn(2, shape.width_in, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = same_convolution(x, conv)
    assert torch.allclose(conv(x), expected, atol=1e-5)
    with torch.no_grad():
        for form in FORMS:
            assert torch.allclose(form(conv, torch.float32)(x), expected, atol=1e-5)


def test_residual_is_added_by_both_inference_forms():
    torch.manual_seed(0)
    conv = randomise(ConvNorm(Shape(8, 8, relu6=False)))
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = same_convolution(x, conv) + x
        for form in FORMS:
            assert torch.allclose(form(conv, torch.float32)(x, x), expected, atol=1e-5)


def test_parameters_and_layout():
    config = EfficientNetLite0.Config()
    with torch.device("meta"):
        encoder = config.build()
    # 4,652,008 published parameters (4.69 M with the running statistics), of which 1,281,000 are the classifier
    assert sum(p.numel() for p in encoder.parameters()) == 4_652_008 - 1_281_000
    assert config.width == 1280
    assert config.grid((300, 400)).tokens == 49
    assert from_json(config.to_json(), Encoder.Config) == config


def test_prepared_inference_equals_the_plain_network():
    encoder, batch = make(), items(3)
    with torch.no_grad():
        plain = encoder(batch)
    folded = encoder.prepare_inference(torch.float32)(batch)
    assert plain.grids == folded.grids
    assert plain.values.shape == (3 * 4, 1280)
    assert plain.values.std() > 0.1
    assert torch.allclose(plain.values, folded.values, atol=1e-4)
    low = encoder.prepare_inference(torch.bfloat16)(batch).values
    assert low.dtype == torch.float32
    assert (low - plain.values).norm() < 0.1 * plain.values.norm()


def test_prepared_inference_is_batched_and_needs_no_gradient():
    encoder, batch = make(), items(19)  # more than one batch of 8, the last one short
    run = encoder.prepare_inference(torch.float32)
    values = run(batch).values
    assert not values.requires_grad
    assert torch.allclose(values[-4:], run(batch[-1:]).values, atol=1e-5)
    assert run([]).values.shape == (0, 1280)


def test_packed_equals_separate():
    encoder, batch = make(), items(3)
    together = encoder(batch).values
    apart = torch.cat([encoder([item]).values for item in batch])
    assert torch.allclose(together, apart, atol=1e-5)


def test_training_changes_weights_but_never_statistics():
    encoder = make().train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(items(2)).values.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


def test_nothing_to_encode_still_touches_every_parameter():
    encoder = make()
    features = encoder([])
    assert features.values.shape == (0, 1280)
    assert features.grids == []
    features.values.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in encoder.parameters())


def test_features_made_earlier_are_used_in_their_place():
    encoder, batch = make().requires_grad_(False), items(3)
    whole = encoder(batch).values
    made = Item(None, (64, 64), features=whole[4:8].half())
    mixed = encoder([batch[0], made, batch[2]]).values
    assert torch.allclose(mixed[:4], whole[:4], atol=1e-5)
    assert torch.equal(mixed[4:8], whole[4:8].half().float())
    assert torch.allclose(mixed[8:], whole[8:], atol=1e-5)


def test_an_encoder_that_learns_refuses_features_made_earlier():
    with pytest.raises(ValueError, match="being trained"):
        make()([Item(None, (64, 64), features=torch.zeros(4, 1280))])


@pytest.mark.parametrize(
    "item",
    [Item(torch.zeros(1, 3, 32, 32), (64, 64)), Item(torch.zeros(2, 3, 64, 64), (64, 64)), Item(None, (64, 64)),
     Item(None, (64, 64), features=torch.zeros(5, 1280))],
)  # fmt: skip
def test_items_of_another_layout_are_refused_with_both_numbers(item):
    with pytest.raises(ValueError, match="expected"):
        make().requires_grad_(False)([item])


def test_positions_option():
    located = SMALL.replace(positions="sincos2d")
    plain, placed = make()(items(2)).values, make(located)(items(2)).values
    added = (placed - plain).view(2, 4, 1280)
    assert torch.allclose(added.square().mean((1, 2)), plain.view(2, 4, 1280).square().mean((1, 2)), rtol=1e-3)
    fast = make(located).prepare_inference(torch.float32)(items(2)).values
    assert torch.allclose(fast, placed, atol=1e-4)


def test_tiles_are_views():
    config = EfficientNetLite0.Config(transform=TRANSFORM.replace(size=32, tiles=((32, 64), (64, 32))))
    encoder = make(config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 70, 3), dtype=np.uint8))
    views = encoder.preprocess(image)
    features = encoder([Item(views, (30, 70))])
    assert views.shape == (3, 3, 32, 32)
    assert features.grids[0].tiles == (1, 2)
    assert features.grids[0].size == (30, 70)
    assert features.values.shape == (3, 1280)


def test_size_must_be_a_multiple_of_the_stride():
    with pytest.raises(ValidationError, match="multiple of 32"):
        EfficientNetLite0.Config(transform=TRANSFORM.replace(size=200))


def published(encoder: EfficientNetLite0) -> dict[str, torch.Tensor]:
    """The encoder's weights under the published names, with the classifier."""
    theirs = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    ours = encoder.state_dict()
    for name, conv, norm in _names():
        theirs[f"{conv}.weight"] = ours[f"{name}.weight"]
        for part, there in (
            ("gain", "weight"),
            ("shift", "bias"),
            ("mean", "running_mean"),
            ("variance", "running_var"),
        ):
            theirs[f"{norm}.{there}"] = ours[f"{name}.{part}"]
        theirs[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return theirs


def test_published_names_load(tmp_path):
    source, target = make(seed=1), make(seed=2)
    torch.save(published(source), tmp_path / "weights.pth")
    target.load_state_dict(load_published(tmp_path / "weights.pth"))
    assert torch.equal(source(items(1)).values, target(items(1)).values)


def test_another_checkpoint_is_refused(tmp_path):
    tensors = published(make())
    torch.save({**tensors, "_blocks.3._se_reduce.weight": torch.zeros(1)}, tmp_path / "extra.pth")
    with pytest.raises(UserError, match="_se_reduce"):
        load_published(tmp_path / "extra.pth")
    del tensors["_conv_head.weight"]
    torch.save(tensors, tmp_path / "less.pth")
    with pytest.raises(UserError, match="_conv_head"):
        load_published(tmp_path / "less.pth")
