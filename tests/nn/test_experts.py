"""Routes of another width: one attention, weights of their own, nothing beyond their columns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.mask import Layout, routes_of
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import llama
from sensorium.nn.block import Block, Expert
from sensorium.nn.ffn import FeedForward

WIDTH, NARROW = 16, 6
WHOLE = ("norm1", "attention", "norm2", "ffn", "final")


def block(**changes):
    parts = {
        "attention": Attention.Config(heads=4, kv_heads=2), "ffn": FeedForward.Config(hidden=24), "routes": 2,
        "routed": WHOLE, "experts": {1: Expert(width=NARROW, ffn=FeedForward.Config(hidden=10))},
    }  # fmt: skip
    return Block.Config(**{**parts, **changes})


def layout(route):
    count = len(route)
    position = torch.arange(count)[:, None].expand(-1, 3)
    made = Layout(torch.arange(count)[None], None, None, True, position, lengths=[count])
    made.routes = routes_of(torch.tensor(route))
    return made


def test_two_widths_share_one_attention():
    """Against both routes written out: each with its own products, all keys in one causal attention."""
    torch.manual_seed(0)
    made, route = block().build(WIDTH), [0, 1, 0, 1, 1]
    x = torch.randn(5, WIDTH)
    wide, narrow = torch.tensor([0, 2]), torch.tensor([1, 3, 4])
    x[narrow, NARROW:] = 0
    own, expert = x[wide], x[narrow, :NARROW]
    other = made.routes["1"]
    q, k, v = torch.zeros(5, 16), torch.zeros(5, 8), torch.zeros(5, 8)
    for to, name in ((q, "q"), (k, "k"), (v, "v")):
        to[wide] = getattr(made.attention, name)(made.norm1(own))
        to[narrow] = getattr(other["attention"], name)(other["norm1"](expert))
    heads = (part.view(5, -1, 4).transpose(0, 1) for part in (q, k, v))
    q, k, v = (part.repeat_interleave(4 // len(part), 0) for part in heads)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
    own, expert = own + made.attention.o(mixed[wide]), expert + other["attention"].o(mixed[narrow])
    own, expert = own + made.ffn(made.norm2(own)), expert + other["ffn"](other["norm2"](expert))
    found = made(x, layout(route))
    torch.testing.assert_close(found[wide], own)
    torch.testing.assert_close(found[narrow, :NARROW], expert)
    assert not found[narrow, NARROW:].any()


def test_an_expert_of_the_stream_s_width_is_a_plain_route():
    torch.manual_seed(1)
    expert = Expert(width=WIDTH, ffn=FeedForward.Config(hidden=24))
    one, two = block(experts={1: expert}).build(WIDTH), block(experts={}).build(WIDTH)
    two.load_state_dict(one.state_dict())
    x, seen = torch.randn(5, WIDTH), layout([1, 0, 1, 1, 0])
    assert torch.equal(one(x, seen), two(x, seen))


def test_the_final_norm_has_a_set_for_each_route():
    backbone = llama(vocab=0, width=WIDTH, depth=1, heads=4, hidden=24)
    made = backbone.replace(block=block()).build()
    assert made.routes["1"].weight.shape == (NARROW,)
    x = torch.randn(3, WIDTH)
    x[1, NARROW:] = 0
    seen = layout([0, 1, 0])
    with torch.no_grad():
        made.routes["1"].weight.mul_(3)
    scaled = made(x, seen)
    nn.init.ones_(made.routes["1"].weight)
    plain = made(x, seen)
    torch.testing.assert_close(scaled[1], 3 * plain[1])
    assert torch.equal(scaled[[0, 2]], plain[[0, 2]])
    with pytest.raises(ValueError, match="cannot start as copies"):
        made.start_routes()
    alike = backbone.replace(block=block(experts={})).build()
    nn.init.normal_(alike.norm.weight)
    alike.start_routes()
    assert torch.equal(alike.routes["1"].weight, alike.norm.weight)


def test_what_an_expert_cannot_have_is_refused():
    with pytest.raises(ValueError, match="route every slot"):
        block(routed=("attention", "ffn"))
    with pytest.raises(ValueError, match="experts are routes from 1 to 1"):
        block(experts={2: Expert(width=NARROW, ffn=FeedForward.Config(hidden=10))})
