"""Layers against numbers worked out by hand, and settings of the one block against plain formulas."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.mask import AttentionRule, Layout, compile_layout
from sensorium.nn.attention import Attention, attend
from sensorium.nn.backbone import Backbone, bert, llama
from sensorium.nn.block import Block
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward, activate
from sensorium.nn.norm import Norm
from sensorium.nn.rope import Rope, rotate, signed
from sensorium.sequence import Sequence, Span


def packed(*lengths: int, vocab: int = 30) -> Sequence:
    count = sum(lengths)
    place = torch.cat([torch.arange(length) for length in lengths])
    zeros = torch.zeros(count, dtype=torch.long)
    return Sequence(
        ids=torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(count)),
        modality=zeros.to(torch.uint8),
        position=place[:, None].expand(-1, 3).contiguous(),
        doc=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        branch=zeros,
        weight=torch.zeros(count),
    )


def layout_of(sequence: Sequence, kind="causal") -> Layout:
    return compile_layout(sequence, AttentionRule(kind))


# ---- norm


def test_rms_norm_by_hand():
    norm = Norm.Config(eps=0.0).build(2)
    norm.weight.data = torch.tensor([1.0, 2.0])
    # mean square of (3, 4) is 12.5
    expected = torch.tensor([[3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]])
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), expected)


def test_layer_norm_by_hand():
    norm = Norm.Config(kind="layer", eps=0.0).build(2)
    norm.bias.data = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(norm(torch.tensor([[1.0, 3.0]])), torch.tensor([[-0.5, 1.5]]))


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16)])
def test_rms_norm_and_its_gradients_are_those_of_torch(shape):
    norm = Norm.Config(eps=1e-3).build(16)
    norm.weight.data.normal_()
    x, other = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    weight = norm.weight.detach().clone().requires_grad_()
    ours, theirs = norm(x), F.rms_norm(other, (16,), weight, 1e-3)
    torch.testing.assert_close(ours, theirs)
    pull = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours.backward(pull)
    theirs.backward(pull)
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.weight.grad, weight.grad, atol=1e-5, rtol=1e-4)


def test_rms_norm_of_large_bfloat16_values_is_summed_in_float32():
    norm = Norm.Config().build(512).to(torch.bfloat16)
    x = torch.full((1, 512), 300.0, dtype=torch.bfloat16)
    torch.testing.assert_close(norm(x), torch.ones(1, 512, dtype=torch.bfloat16), atol=0.01, rtol=0)


# ---- rotary positions


def test_rotation_by_hand():
    rope = Rope.Config(theta=100.0).build(4)  # frequencies 1 and 0.1; pairs are (0, 2) and (1, 3)
    cos, sin = rope(torch.tensor([[2, 0, 0]]))
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4)
    expected = torch.tensor([math.cos(2.0), math.cos(0.2), math.sin(2.0), math.sin(0.2)]).view(1, 1, 4)
    torch.testing.assert_close(rotate(x, cos, signed(sin)), expected)


def test_scores_depend_on_the_distance_alone():
    rope = Rope.Config().build(8)
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at, other):
        (cq, sq), (ck, sk) = (rope(torch.full((1, 3), place)) for place in (at, other))
        return float((rotate(q, cq, signed(sq)) * rotate(k, ck, signed(sk))).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-3)


def test_sections_turn_with_their_own_axis():
    rope = Rope.Config(sections=(1, 2, 1)).build(8)
    plain = Rope.Config().build(8)
    cos, _ = rope(torch.tensor([[5, 6, 7]]))
    axes = [plain(torch.full((1, 3), place))[0] for place in (5, 6, 7)]
    for pair, axis in enumerate((0, 1, 1, 2)):
        assert cos[0, pair] == cos[0, pair + 4] == axes[axis][0, pair]
    with pytest.raises(ValueError, match="must sum to head width / 2 = 4"):
        Rope.Config(sections=(1, 1, 1)).build(8)
    with pytest.raises(ValueError, match="even head width, got 7"):
        Rope.Config().build(7)


# ---- attention


def test_attention_by_hand():
    """One head of width 1, all projections 1: the second token mixes values 0 and ln 3 by scores 0 and (ln 3)^2."""
    attention = Attention.Config(heads=1).build(1)
    for parameter in attention.parameters():
        nn.init.ones_(parameter)
    value = math.log(3)
    out = attention(torch.tensor([[0.0], [value]]), layout_of(packed(2)))
    share = math.exp(value * value) / (1 + math.exp(value * value))
    torch.testing.assert_close(out, torch.tensor([[0.0], [share * value]]))


@pytest.mark.parametrize("kind", ["causal", "full"])
def test_grouped_heads_equal_repeated_ones(kind):
    grouped = Attention.Config(heads=6, kv_heads=2, head_width=4, bias=True).build(16)
    plain = Attention.Config(heads=6, head_width=4, bias=True).build(16)
    plain.load_state_dict(grouped.state_dict() | {
        f"{name}.{leaf}": getattr(getattr(grouped, name), leaf).view(2, 4, -1).repeat_interleave(3, 0).reshape(24, -1)
        .squeeze(-1) for name in ("k", "v") for leaf in ("weight", "bias")
    })  # fmt: skip
    sequence = packed(5, 3)
    x = torch.randn(8, 16)
    torch.testing.assert_close(grouped(x, layout_of(sequence, kind)), plain(x, layout_of(sequence, kind)))


@pytest.mark.parametrize("case", ["causal", "mask", "free"])
def test_attention_is_its_formula_in_both_kernels(case):
    q, k, v = (torch.randn(2, 6, heads, 4) for heads in (6, 3, 3))
    mask = None
    if case == "mask":
        mask = (torch.rand(2, 1, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool)
    wide = (k.repeat_interleave(2, 2), v.repeat_interleave(2, 2))
    scores = torch.einsum("blhw,bshw->bhls", q, wide[0]) / 2
    allowed = mask if mask is not None else torch.ones(6, 6, dtype=torch.bool)
    scores = scores.masked_fill(~(allowed.tril() if case == "causal" else allowed), -torch.inf)
    expected = torch.einsum("bhls,bshw->blhw", scores.softmax(-1), wide[1])
    torch.testing.assert_close(attend(q, k, v, mask, case == "causal"), expected, atol=1e-5, rtol=1e-4)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, case == "causal")
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def test_queries_and_keys_may_be_normalised():
    attention = Attention.Config(heads=2, qk_norm=True).build(8)
    sequence = packed(4)
    x = torch.randn(4, 8)
    before = attention(x, layout_of(sequence))
    attention.q.weight.data *= 50
    torch.testing.assert_close(attention(x, layout_of(sequence)), before, atol=1e-3, rtol=1e-3)


def test_head_counts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="6 heads cannot share 4"):
        Attention.Config(heads=6, kv_heads=4).build(12)
    with pytest.raises(ValueError, match="width 10 is not divisible by 4 heads"):
        Attention.Config(heads=4).build(10)


# ---- feed-forward


def test_feed_forward_by_hand():
    gated = FeedForward.Config(hidden=1, activation="relu").build(1)
    gated.gate.weight.data.fill_(2.0)
    gated.up.weight.data.fill_(3.0)
    gated.down.weight.data.fill_(0.5)
    torch.testing.assert_close(gated(torch.tensor([[2.0], [-1.0]])), torch.tensor([[12.0], [0.0]]))
    plain = FeedForward.Config(hidden=1, activation="relu", gated=False, bias=True).build(1)
    for layer, weight, bias in ((plain.up, 2.0, 1.0), (plain.down, 3.0, -1.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(bias)
    torch.testing.assert_close(plain(torch.tensor([[1.0], [-2.0]])), torch.tensor([[8.0], [-1.0]]))


@pytest.mark.parametrize(("kind", "at_one"), [
    ("silu", 0.731059), ("gelu", 0.841345), ("gelu_tanh", 0.841192), ("quick_gelu", 0.845796), ("relu", 1.0),
])  # fmt: skip
def test_activations_at_one(kind, at_one):
    assert float(activate(torch.tensor(1.0), kind)) == pytest.approx(at_one, abs=1e-5)


# ---- block and backbone


def test_where_the_norm_stands():
    sequence = packed(3)
    x = torch.randn(3, 8)
    for place in ("pre", "post"):
        block = Block.Config(
            attention=Attention.Config(heads=2), ffn=FeedForward.Config(hidden=4), norm=Norm.Config(), place=place
        ).build(8)
        layout = layout_of(sequence)
        if place == "pre":
            middle = x + block.attention(block.norm1(x), layout)
            expected = middle + block.ffn(block.norm2(middle))
        else:
            middle = block.norm1(x + block.attention(x, layout))
            expected = block.norm2(middle + block.ffn(middle))
        torch.testing.assert_close(block(x, layout), expected)


def test_parameter_names_and_counts_of_a_llama():
    model = llama(vocab=30, width=16, depth=2, heads=4, kv_heads=2, hidden=24).build()
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert names["blocks.1.attention.k.weight"] == (8, 16)
    assert names["blocks.1.ffn.gate.weight"] == (24, 16)
    assert {"embed.weight", "head.weight", "norm.weight", "blocks.0.norm2.weight"} <= set(names)
    block = 16 * 16 * 2 + 8 * 16 * 2 + 3 * 24 * 16 + 2 * 16
    assert sum(math.prod(shape) for shape in names.values()) == 2 * 30 * 16 + 2 * block + 16
    tied = llama(vocab=30, width=16, depth=2, heads=4, hidden=24, tied=True).build()
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(tied.logits(hidden), hidden @ tied.embed.weight.T)


def test_a_bert_sees_both_ways_and_knows_where_it_is():
    model = bert(vocab=30, width=16, depth=2, heads=2, hidden=24, positions=8).build()
    sequence = packed(5)
    layout = layout_of(sequence, "full")
    x = model.embed_tokens(sequence.ids).detach().requires_grad_()
    model(x, layout)[0].square().sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()
    same = model.embed_tokens(torch.full((5,), 3))
    hidden = model(same, layout)
    assert not torch.allclose(hidden[0], hidden[1], atol=1e-3)


def test_fewer_blocks_leave_out_the_final_norm():
    model = llama(vocab=30, width=16, depth=3, heads=2, hidden=24).build()
    sequence = packed(4)
    layout, x = layout_of(sequence), model.embed_tokens(sequence.ids)
    assert torch.equal(model(x, layout, depth=0), x)
    two = model(x, layout, depth=2)
    cos, sin = model.rope(layout.position)
    torch.testing.assert_close(model(x, layout), model.norm(model.blocks[2](two, layout, (cos, signed(sin)))))


def test_checkpointing_changes_no_gradient():
    model = llama(vocab=30, width=16, depth=2, heads=2, hidden=24).build()
    sequence = packed(4, 2)
    results = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(model.embed_tokens(sequence.ids), layout_of(sequence)).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(results[0]) == len(results[1]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_initial_weights_shrink_with_depth():
    torch.manual_seed(0)
    model = llama(vocab=30, width=64, depth=8, heads=2, hidden=256).build()
    assert float(model.blocks[3].ffn.up.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.blocks[3].ffn.down.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


def test_a_stack_without_vocabulary_says_so():
    block = Block.Config(attention=Attention.Config(heads=2), ffn=FeedForward.Config(hidden=8))
    model = Backbone.Config(width=8, depth=1, block=block).build()
    with pytest.raises(ValueError, match="reads embeddings"):
        model.embed_tokens(torch.tensor([1]))
    with pytest.raises(ValueError, match="no logits"):
        model.logits(torch.zeros(1, 8))


def test_attention_that_starts_copying_adds_the_mean_of_what_it_reads():
    """Values and output as the identity, whatever a backbone's own initialisation does; equal keys weigh equally."""
    copying = Cross.Config(attention=Attention.Config(heads=2, start="copy"), place="before", gated=True)
    plain = llama(vocab=20, width=8, depth=2, heads=2, hidden=16)
    stack = plain.replace(block=plain.block.replace(cross=copying), cross_every=2).build()
    cross = stack.blocks[0].cross
    assert stack.blocks[1].cross is None
    torch.nn.init.zeros_(cross.attention.k.weight)
    torch.nn.init.constant_(cross.gate, 0.5)
    memory, x = torch.randn(3, 8), torch.randn(2, 8)
    sequence = replace(packed(2), spans=[Span("image", 0, 3, 0, mode="memory")])
    layout = compile_layout(sequence, AttentionRule(memory="all"))
    expected = x + torch.tanh(torch.tensor(0.5)) * memory.mean(0)
    torch.testing.assert_close(cross(x, memory, layout), expected)


def test_a_token_that_reads_nothing_may_pass_the_cross_attention_by():
    """Post-norm, of two documents one with a memory: the other is what it was, norm and all."""
    torch.manual_seed(0)
    config = Cross.Config(attention=Attention.Config(heads=2, bias=True), passes=True)
    cross, plain = config.build(8, post=True), config.replace(passes=False).build(8, post=True)
    plain.load_state_dict(cross.state_dict())
    memory, x = torch.randn(3, 8), torch.randn(5, 8)
    sequence = replace(packed(2, 3), spans=[Span("image", 0, 3, 0, mode="memory")])
    layout = compile_layout(sequence, AttentionRule(memory="all"))
    read = cross(x, memory, layout)
    assert torch.equal(read[:2], plain(x, memory, layout)[:2])
    assert torch.equal(read[2:], x[2:])
    assert (plain(x, memory, layout)[2:] - x[2:]).abs().max() > 0.01
    alone = compile_layout(packed(5), AttentionRule(memory="all"))
    assert torch.equal(cross(x, memory[:0], alone), x)
    routed = config.replace(route=1).build(8, post=True)
    routed.load_state_dict(cross.state_dict())
    spans = [*sequence.spans, Span("image", 1, 1, 0, route=1), Span("image", 3, 1, 0, route=1)]
    layout = compile_layout(replace(sequence, spans=spans), AttentionRule(memory="all"))
    expected = x.clone()
    expected[1] = read[1]
    torch.testing.assert_close(routed(x, memory, layout), expected)


def test_norms_behind_normalise_what_is_added():
    torch.manual_seed(0)
    config = Block.Config(attention=Attention.Config(heads=2), ffn=FeedForward.Config(hidden=12), place="behind")
    block: Block = config.build(8)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    sequence = packed(5)
    layout, x = layout_of(sequence), torch.randn(5, 8)
    attended = x + block.norm1(block.attention(x, layout))
    torch.testing.assert_close(block(x, layout), attended + block.norm2(block.ffn(attended)))
    with pytest.raises(ValueError, match="cross-attention has its norm"):
        config.replace(cross=Cross.Config(attention=Attention.Config(heads=2)))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_each_head_may_have_weights_of_its_own_for_queries_and_keys(kind):
    torch.manual_seed(0)
    norm = Norm.Config(kind=kind, eps=1e-5)
    attention = Attention.Config(heads=4, kv_heads=2, qk_norm=norm, qk_norm_by_head=True).build(12)
    assert attention.q_norm.weight.shape == (4, 3)
    assert attention.k_norm.weight.shape == (2, 3)
    nn.init.normal_(attention.q_norm.weight)
    q = torch.randn(5, 4, 3)
    for head in range(4):
        alone = norm.build(3)
        alone.weight.data = attention.q_norm.weight[head].detach()
        torch.testing.assert_close(attention.q_norm(q)[:, head], alone(q[:, head]))


def test_gates_may_be_of_each_channel_and_the_feed_forward_may_act_on_tokens_that_read_nothing():
    """x + tanh(gate) attention, then x + tanh(gate) ffn(norm(x)), as Idefics has it; the first token reads nothing."""
    torch.manual_seed(0)
    ffn = FeedForward.Config(hidden=12, activation="relu", gated=False)
    config = Cross.Config(
        attention=Attention.Config(heads=2), memory=6, place="before", gated=True, gate="channel", ffn=ffn, ffn_on="all"
    )
    cross, quiet = config.build(8), config.replace(ffn_on="readers").build(8)
    with torch.no_grad():
        cross.gate.normal_()
        cross.ffn_gate.normal_()
    quiet.load_state_dict(cross.state_dict())
    memory, x = torch.randn(3, 6), torch.randn(4, 8)
    sequence = replace(packed(4), spans=[Span("image", 1, 3, 0, mode="memory")])
    layout = compile_layout(sequence, AttentionRule(memory="latest"))
    read = cross.attention.read(cross.norm(x), memory, layout)
    assert read[0].abs().max() == 0
    assert read[1:].abs().min() > 0
    mixed = x + cross.gate.tanh() * read
    more = cross.ffn_gate.tanh() * cross.ffn(cross.ffn_norm(mixed))
    torch.testing.assert_close(cross(x, memory, layout), mixed + more)
    assert more[0].abs().max() > 1e-3
    assert torch.equal(quiet(x, memory, layout)[0], x[0])
    torch.testing.assert_close(quiet(x, memory, layout)[1:], (mixed + more)[1:])
    assert torch.equal(quiet(x, memory[:0], layout_of(packed(4))), x)
    torch.testing.assert_close(
        cross(x, memory[:0], layout_of(packed(4))), x + cross.ffn_gate.tanh() * cross.ffn(cross.ffn_norm(x))
    )
