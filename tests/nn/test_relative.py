"""Relative positions: buckets by hand, and reading on from a cache gives what reading everything gives."""

import pytest
import torch

from sensorium.infer.cache import Cache
from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.backbone import t5
from sensorium.nn.relative import LinearBias, RelativeBias
from sensorium.sequence import Sequence, Span


def test_buckets_by_hand():
    both = RelativeBias.Config(buckets=8, distance=16).build(1)
    # 4 buckets a side: distances 0 and 1 alone, then 2..5 and the rest (2 x 8^(1/2) = 5.66)
    offsets = torch.tensor([0, -1, -2, -5, -6, -100, 1, 2, 5, 6, 100])
    assert both.bucket(offsets).tolist() == [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7]
    back = RelativeBias.Config(buckets=8, distance=16, both=False).build(1)
    assert back.bucket(torch.tensor([3, 0, -1, -3, -4, -5, -6, -16, -90])).tolist() == [0, 0, 1, 3, 4, 4, 5, 7, 7]


def test_a_bias_holds_the_mask():
    bias = RelativeBias.Config(both=False).build(2)
    place = torch.arange(3)[None]
    made = bias(place, place, None, True)
    assert made.shape == (1, 2, 3, 3)
    assert (made[0, 0] == float("-inf")).tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert torch.equal(made[0, :, 2, 1], bias.table.weight[1])


def packed(lengths, spans=(), seed=0, begin=0):
    ids = torch.randint(0, 30, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    place = torch.cat([torch.arange(begin, begin + length) for length in lengths])
    zeros = torch.zeros(len(ids), dtype=torch.long)
    doc = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = place[:, None].expand(-1, 3).contiguous()
    return Sequence(ids, zeros.to(torch.uint8), position, doc, zeros, torch.zeros(len(ids)), list(spans))


@torch.no_grad()
@pytest.mark.parametrize("relative", [RelativeBias.Config(buckets=8, distance=6, both=False), LinearBias.Config()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_on_equals_reading_everything(dtype, relative):
    config = t5(vocab=30, width=16, depth=2, heads=4, hidden=24, head_width=4, decoder=True)
    model = config.replace(relative=relative).build().eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    model = model.to(dtype)
    spans = [Span("text", 0, 5, 0, "memory"), Span("text", 9, 2, 1, "memory")]
    whole, rule, memory = packed([9, 7], spans), AttentionRule(memory="all"), torch.randn(7, 16).to(dtype)
    expected = model(model.embed_tokens(whole.ids), compile_layout(whole, rule), memory=memory)
    first, second = expected[:9], expected[9:]
    ids, others = whole.ids[:9], whole.ids[9:]
    cache = Cache.of(model, 2, 4)
    cache.reserve(12)

    def read(parts, begin, spans=(), memory=None):
        sequence = packed([len(part) for part in parts], spans)
        starts = torch.cat([torch.arange(start, start + len(part)) for start, part in zip(begin, parts)])
        sequence.position = starts[:, None].expand(-1, 3).contiguous()
        layout = compile_layout(sequence, rule)
        with cache.step([0, 1], layout):
            return model(model.embed_tokens(torch.cat(parts)), layout, cache, memory=memory)

    steps = [([ids[:4], others[:2]], (0, 0)), ([ids[4:7], others[2:5]], (4, 2)), ([ids[7:8], others[5:6]], (7, 5))]
    beside = [Span("text", 0, 5, 0, "memory"), Span("text", 4, 2, 1, "memory")]
    found = [[], []]
    for number, (parts, begin) in enumerate(steps):
        made = read(parts, begin, beside if number == 0 else (), memory if number == 0 else None)
        for rows, part in zip(found, made.split([len(part) for part in parts])):
            rows.append(part)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    torch.testing.assert_close(torch.cat(found[0]), first[:8], **close)
    torch.testing.assert_close(torch.cat(found[1]), second[:6], **close)


@pytest.mark.parametrize(("heads", "slopes"), [
    (4, [2**-2, 2**-4, 2**-6, 2**-8]), (1, [2**-8]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
])  # fmt: skip
def test_a_linear_bias_falls_by_the_slope_of_each_head(heads, slopes):
    bias = LinearBias.Config().build(heads)
    found = bias(torch.tensor([[3, 4]]), torch.tensor([[0, 3, 4]]), None, False)
    for head, slope in enumerate(slopes):
        assert found[0, head].tolist() == [[-3 * slope, 0, -slope], [-4 * slope, -slope, 0]]
    masked = bias(torch.arange(2)[None], torch.arange(2)[None], None, True)
    assert masked[0, :, 0, 1].tolist() == [float("-inf")] * heads
    assert not list(bias.parameters())
