"""Feature-level fusion: memory that cross-attention reads (Flamingo), weights by route (CogVLM)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sensorium.connectors.mlp import MLP
from sensorium.connectors.resampler import Resampler
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.mask import AttentionRule, compile_layout
from sensorium.models.fused import Fused
from sensorium.nn.attention import Attention
from sensorium.nn.backbone import llama
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.nn.norm import Norm
from sensorium.objectives.language import NextToken, log_likelihood
from sensorium.sequence import Item, Sequence, Span

PLAIN = llama(vocab=40, width=16, depth=3, heads=2, hidden=32, tied=True)
EYE = vit(width=12, depth=1, heads=2, patch=8, size=16)  # four features
READ = Cross.Config(
    attention=Attention.Config(heads=4, head_width=8), place="before", gated=True, norm=Norm.Config(kind="layer"),
    ffn=FeedForward.Config(hidden=24, activation="gelu", gated=False),
)  # fmt: skip


def strong(config, gates=0.7):
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        elif parameter.dim() == 0 and gates is not None:
            nn.init.constant_(parameter, gates)
    return model


def flamingo(reads="latest", gates=0.7, every=2):
    backbone = PLAIN.replace(block=PLAIN.block.replace(cross=READ), cross_every=every)
    rule = AttentionRule(memory=reads)
    parts = {"encoders": {"image": EYE}, "connectors": {"image": MLP.Config(depth=1)}, "backbone": backbone}
    return strong(Fused.Config(**parts, memory=("image",), rule=rule), gates)


def cogvlm():
    backbone = PLAIN.replace(block=PLAIN.block.replace(routes=2))
    parts = {"encoders": {"image": EYE}, "connectors": {"image": MLP.Config(depth=1)}, "backbone": backbone}
    return strong(Fused.Config(**parts, routes={"image": 1}, together=("image",)))


def picture(seed):
    return Item(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), (16, 16), str(seed))


def document(length, spans=(), pictures=(), branch=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.rand(length, generator=generator) < 0.7).float()
    weight[0] = 0
    return Sequence(
        ids=torch.randint(0, 40, (length,), generator=generator),
        modality=torch.zeros(length, dtype=torch.uint8),
        position=torch.arange(length)[:, None].expand(-1, 3).contiguous(),
        doc=torch.zeros(length, dtype=torch.long),
        branch=torch.zeros(length, dtype=torch.long) if branch is None else torch.tensor(branch),
        weight=weight,
        spans=list(spans),
        items={"image": [picture(number) for number in pictures]} if pictures else {},
    )


def beside(start, item):
    return Span("image", start, 4, item, mode="memory")


def inside(start, item):
    return Span("image", start, 4, item, route=1)


@st.composite
def packs(draw):
    """Documents with pictures beside some tokens, branches, and documents without any."""
    parts = []
    for number in range(draw(st.integers(1, 4))):
        trunk = draw(st.integers(1, 6))
        branches = [0] * trunk
        for branch in range(1, draw(st.integers(1, 3))):
            branches += [branch] * draw(st.integers(1, 3))
        at = sorted(draw(st.lists(st.integers(0, len(branches) - 1), max_size=3)))
        spans = [beside(start, index) for index, start in enumerate(at)]
        parts.append(document(len(branches), spans, range(len(at)), branches, seed=number))
    return parts


def dense(sequence, reads):
    """(T, spans) which spans a token reads, by the words of the rule, one pair at a time."""
    table = torch.zeros(len(sequence), len(sequence.spans), dtype=torch.bool)
    for token in range(len(sequence)):
        found = []
        for number, span in enumerate(sequence.spans):
            same = sequence.doc[span.start] == sequence.doc[token]
            trunk_or_own = sequence.branch[span.start] in (0, sequence.branch[token])
            if same and trunk_or_own and (reads == "all" or span.start <= token):
                found.append(number)
        for number in found[-1:] if reads == "latest" else found:
            table[token, number] = True
    return table


@settings(max_examples=60, deadline=None)
@given(parts=packs(), reads=st.sampled_from(["all", "before", "latest"]))
def test_who_reads_what_is_what_the_rule_says(parts, reads):
    sequence = Sequence.pack(parts)
    memory = compile_layout(sequence, AttentionRule(memory=reads)).memory
    expected = dense(sequence, reads)
    if memory is None:
        assert not sequence.spans
        return
    number = torch.arange(len(sequence.spans)).repeat_interleave(4)
    found = torch.zeros_like(expected)
    sees = torch.ones(len(sequence), dtype=torch.bool) if memory.sees is None else memory.sees
    counts = torch.bincount(sequence.doc).tolist()
    token = 0
    for doc, count in enumerate(counts):
        for place in range(count):
            if sees[token]:
                found[token, number[memory.rows[doc][memory.mask[doc, 0, place]]]] = True
            token += 1
    assert torch.equal(found, expected)


@settings(max_examples=25, deadline=None)
@given(parts=packs(), reads=st.sampled_from(["all", "before", "latest"]))
def test_packed_memory_is_memory_alone(parts, reads):
    model, objective = flamingo(reads), NextToken()
    together = Sequence.pack(parts)
    packed = model(together)
    alone = [model(part).hidden for part in parts]
    torch.testing.assert_close(packed.hidden, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert [len(part.spans) for part in together.unpack()] == [len(part.spans) for part in parts]
    if float(together.weight.sum()) > 0:
        total = objective(packed, together).sum
        each = sum(objective(model(part), part).sum for part in parts)
        torch.testing.assert_close(total, each, rtol=1e-4, atol=1e-4)


def test_gradients_of_packed_memory_are_the_sum_of_those_alone():
    model, objective = flamingo(), NextToken()
    parts = [document(7, [beside(1, 0), beside(4, 1)], (0, 1)), document(5, seed=1), document(6, [beside(2, 0)], (2,))]
    gradients = []
    for group in ([Sequence.pack(parts)], parts):
        model.zero_grad()
        for part in group:
            objective(model(part), part).sum.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_before_training_the_language_model_is_what_it_was_to_the_last_bit():
    """Flamingo section 2.2: tanh of a gate at zero adds nothing, pictures or not."""
    model = flamingo(gates=None)
    bare = strong(PLAIN, None)
    bare.load_state_dict({name: value for name, value in model.backbone.state_dict().items() if ".cross." not in name})
    for text in (document(9), document(9, [beside(2, 0), beside(5, 1)], (0, 1))):
        alone = bare(bare.embed_tokens(text.ids), compile_layout(document(9)))
        outputs = model(text)
        assert torch.equal(outputs.hidden, alone)
        assert torch.equal(outputs.logits(torch.arange(9)), bare.logits(alone))


def test_text_alone_never_meets_the_new_layers_of_flamingo():
    """Gates wide open: a document without pictures, and what stands before the first one, is the language model's."""
    model = flamingo(gates=0.9)
    bare = strong(PLAIN, None)
    bare.load_state_dict({name: value for name, value in model.backbone.state_dict().items() if ".cross." not in name})
    text = document(9)
    alone = bare(bare.embed_tokens(text.ids), compile_layout(text))
    assert torch.equal(model(text).hidden, alone)
    mixed = model(document(9, [beside(4, 0)], (0,))).hidden
    torch.testing.assert_close(mixed[:4], alone[:4], rtol=1e-6, atol=1e-6)
    assert (mixed[4:] - alone[4:]).abs().amax(1).min() > 1e-3


def test_a_picture_changes_nothing_before_it():
    model = flamingo("before")
    one = model(document(9, [beside(4, 0)], (0,))).hidden
    two = model(document(9, [beside(4, 0)], (1,))).hidden
    assert torch.equal(one[:4], two[:4])
    assert (one[4:] != two[4:]).any(1).all()


def test_with_the_latest_alone_an_earlier_picture_is_not_read_again():
    """One block: what is left of the first picture reaches later tokens through self-attention of later blocks only."""
    backbone = PLAIN.replace(block=PLAIN.block.replace(cross=READ), depth=1)
    model = strong(flamingo().config.replace(backbone=backbone))
    memory = torch.randn(8, 16)
    x = torch.randn(9, 16)
    text = document(9, [beside(1, 0), beside(5, 1)], (0, 1))
    layout = compile_layout(text, AttentionRule(memory="latest"))
    cross = model.backbone.blocks[0].cross
    one = cross(x, memory, layout)
    memory[:4] += 1
    two = cross(x, memory, layout)
    assert [bool((a != b).any()) for a, b in zip(one, two)] == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_only_every_so_manieth_block_reads():
    model = flamingo(every=2)
    assert [block.cross is not None for block in model.backbone.blocks] == [True, False, True]


def test_memory_without_cross_attention_is_an_error():
    with pytest.raises(ValueError, match=r"\['image'\] are memory, and no block of the backbone has cross-attention"):
        flamingo().config.replace(backbone=PLAIN)


def test_a_route_the_blocks_do_not_have_is_an_error():
    with pytest.raises(ValueError, match=r"route 1 is taken, the blocks have 1 routes"):
        cogvlm().config.replace(backbone=PLAIN)


# ---- routes


def routed_by_hand(model, text):
    """Hidden states with every token projected one by one by the weights of its route."""
    from sensorium.nn.rope import signed

    x = model.backbone.embed_tokens(text.ids)
    tokens = model.connect("image", text, x.dtype)
    route = [0] * len(text)
    for span in text.spans:
        x = torch.cat([x[: span.start], tokens[4 * span.item : 4 * span.item + 4], x[span.start + 4 :]])
        route[span.start : span.start + 4] = [1] * 4
    cos, sin = model.backbone.rope(text.position)
    sin = signed(sin)
    for block in model.backbone.blocks:
        other = block.routes["1"]
        pick = [block.attention if r == 0 else other["attention"] for r in route]
        normed = block.norm1(x)
        q, k, v = (
            torch.stack([getattr(part, name)(row) for part, row in zip(pick, normed)]).view(-1, 2, 8) for name in "qkv"
        )
        q, k = (t * cos[:, None] + torch.roll(t, 4, -1) * sin[:, None] for t in (q, k))
        scores = torch.einsum("thd,shd->hts", q, k) / 8**0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf")).softmax(-1)
        mixed = torch.einsum("hts,shd->thd", scores, v).flatten(1)
        x = x + torch.stack([part.o(row) for part, row in zip(pick, mixed)])
        ffn = [block.ffn if r == 0 else other["ffn"] for r in route]
        x = x + torch.stack([part(row) for part, row in zip(ffn, block.norm2(x))])
    return model.backbone.norm(x)


def test_a_token_takes_the_weights_of_its_route_and_all_attend_jointly():
    model = cogvlm()
    text = document(12, [inside(2, 1), inside(7, 0)], (0, 1))
    torch.testing.assert_close(model(text).hidden, routed_by_hand(model, text), rtol=1e-4, atol=1e-4)


def test_text_alone_never_meets_the_expert():
    model = cogvlm()
    text = document(9)
    before = model(text).hidden
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".routes." in name or name.startswith(("encoders", "connectors")):
                parameter.add_(1.0)
    assert torch.equal(model(text).hidden, before)


def test_the_expert_starts_as_a_copy_and_then_changes_nothing():
    model = cogvlm()
    model.backbone.start_routes()
    text = document(12, [inside(3, 0)], (0,))
    plain = replace(text, spans=[replace(span, route=None) for span in text.spans])
    torch.testing.assert_close(model(text).hidden, model(plain).hidden, rtol=1e-5, atol=1e-5)
    for name, parameter in model.backbone.named_parameters():
        if ".routes.1." in name:
            assert torch.equal(parameter, model.backbone.get_parameter(name.replace("routes.1.", "")))


def test_packed_routes_are_routes_alone():
    model = cogvlm()
    parts = [document(12, [inside(2, 1), inside(7, 0)], (0, 1)), document(5, seed=1), document(6, [inside(1, 0)], (2,))]
    packed = Sequence.pack(parts)
    torch.testing.assert_close(
        model(packed).hidden, torch.cat([model(part).hidden for part in parts]), rtol=1e-4, atol=1e-4
    )
    sums, _ = log_likelihood(model(packed), packed)
    alone = torch.cat([log_likelihood(model(part), part)[0] for part in parts])
    torch.testing.assert_close(sums, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [flamingo, cogvlm])
def test_text_alone_gives_every_parameter_a_gradient(make):
    """So that on several machines every rank joins every collective."""
    model = make()
    model(document(6)).hidden.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("make", [flamingo, cogvlm])
def test_checkpointing_changes_no_gradient(make):
    model = make()
    span = beside if make is flamingo else inside
    text = document(12, [span(3, 0)], (0,))
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.backbone.checkpointing = checkpointing
        model(text).hidden.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*gradients):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_frames_of_a_clip_are_one_item_in_their_order():
    """A resampler with time embeddings: the same frames in another order are another clip, a picture is one frame."""
    base = flamingo().config
    resampler = Resampler.Config(latents=3, depth=1, heads=2, head_width=8, frames=4)
    model = strong(base.replace(connectors={"image": resampler}, memory=("image", "video"), share={"video": "image"}))
    plan = model.config.plan("video", (4, 16, 16))
    assert (plan.tokens, plan.mode) == (3, "memory")
    frames = [picture(seed).data for seed in range(4)]

    def told(kind, views):
        shape = (len(views), 16, 16) if kind == "video" else (16, 16)
        text = document(6, [Span(kind, 1, 3, 0, mode="memory")])
        return model(replace(text, items={kind: [Item(torch.cat(views), shape)]})).hidden

    assert torch.equal(told("video", frames), told("video", frames))
    assert not torch.equal(told("video", frames), told("video", frames[::-1]))
    torch.testing.assert_close(told("video", frames[:1]), told("image", frames[:1]))
    with pytest.raises(UserError, match="an item has 5 frames, the resampler has 4 time embeddings"):
        model.config.plan("video", (5, 16, 16))


def test_a_kind_that_is_not_read_is_an_error():
    with pytest.raises(UserError, match=r"the model reads \['image'\], not audio"):
        flamingo().config.plan("audio", (1, 2))
