"""Attention rules against a dense mask written down token by token, and packing against running alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sensorium.mask import AttentionRule, compile_layout, rows_of
from sensorium.models.wiring import Outputs
from sensorium.nn.backbone import llama
from sensorium.objectives.language import NextToken, log_likelihood
from sensorium.sequence import Item, Sequence, Span


def document(branches: list[int], spans: list[tuple[int, int]] = (), seed: int = 0, vocab: int = 50) -> Sequence:
    """branches: the branch of every token, trunk first. spans: (start, length) of pictures."""
    generator = torch.Generator().manual_seed(seed)
    branch = torch.tensor(branches)
    trunk = int((branch == 0).sum())
    place = [index if b == 0 else trunk + branches[:index].count(b) for index, b in enumerate(branches)]
    count = len(branches)
    weight = (torch.rand(count, generator=generator) < 0.6).float()
    weight[0] = 0
    return Sequence(
        ids=torch.randint(0, vocab, (count,), generator=generator),
        modality=torch.zeros(count, dtype=torch.uint8),
        position=torch.tensor(place)[:, None].expand(-1, 3).contiguous(),
        doc=torch.zeros(count, dtype=torch.long),
        branch=branch,
        weight=weight,
        spans=[Span("image", start, length, index) for index, (start, length) in enumerate(spans)],
        items={"image": [Item(None, (1, 1))] * len(spans)} if spans else {},
    )


def dense(sequence: Sequence, rule: AttentionRule, prefix=None) -> torch.Tensor:
    """(T, T) by the words of the rule, one pair at a time."""
    size = len(sequence)
    starts = {}
    for index, doc in enumerate(sequence.doc.tolist()):
        starts.setdefault(doc, index)
    span_of, hidden_in = {}, {}
    for number, span in enumerate(sequence.spans):
        for index in range(span.start, span.start + span.length):
            if span.kind in rule.bidirectional:
                span_of[index] = number
            if not span.visible:
                hidden_in[index] = number
    allowed = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            if sequence.doc[query] != sequence.doc[key]:
                continue
            if sequence.branch[key] not in (0, sequence.branch[query]):
                continue
            doc = int(sequence.doc[query])
            ok = rule.kind == "full" or key <= query
            if rule.kind == "prefix":
                ok = ok or max(query, key) - starts[doc] < int(prefix[doc])
            ok = ok or (query in span_of and span_of.get(query) == span_of.get(key))
            ok = ok and (key not in hidden_in or hidden_in.get(query) == hidden_in[key])
            allowed[query, key] = ok
    return allowed


def compiled(sequence: Sequence, rule: AttentionRule, prefix=None) -> torch.Tensor:
    """(T, T) that a kernel would get from the layout."""
    layout = compile_layout(sequence, rule, prefix)
    batch, length = layout.rows.shape
    mask = layout.mask
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool)
        mask = (mask.tril() if layout.causal else mask)[None, None]
    mask = mask.expand(batch, 1, length, length)[:, 0]
    assert mask.any(-1).all(), "a query that sees nothing gives NaN"
    counts = torch.tensor(layout.lengths)
    allowed = torch.zeros(len(sequence), len(sequence), dtype=torch.bool)
    for row in range(batch):
        members = layout.rows[row, : counts[row]]
        count = len(members)
        allowed[members[:, None], members[None, :]] = mask[row, :count, :count]
        if layout.mask is not None:  # real tokens never look at padding
            assert not mask[row, :count, count:].any()
    return allowed


@st.composite
def packed(draw):
    parts = []
    for seed in range(draw(st.integers(1, 3))):
        trunk = draw(st.integers(1, 7))
        branches = [0] * trunk
        for number in range(1, draw(st.integers(0, 3)) + 1):
            branches += [number] * draw(st.integers(1, 3))
        spans, place = [], 0
        while draw(st.booleans()) and place + 2 <= trunk:
            length = draw(st.integers(1, trunk - place))
            spans.append((place, length))
            place += length
        parts.append(document(branches, spans, seed))
    whole = Sequence.pack(parts)
    whole.spans = [replace(span, visible=draw(st.booleans())) for span in whole.spans]
    return whole


@settings(deadline=None, max_examples=150)
@given(sequence=packed(), kind=st.sampled_from(["causal", "full", "prefix"]), both=st.booleans(), data=st.data())
def test_rules_are_what_their_words_say(sequence, kind, both, data):
    rule = AttentionRule(kind, ("image",) if both else ())
    prefix = None
    if kind == "prefix":
        sizes = st.lists(st.integers(0, 9), min_size=sequence.documents, max_size=sequence.documents)
        prefix = torch.tensor(data.draw(sizes))
    assert torch.equal(compiled(sequence, rule, prefix), dense(sequence, rule, prefix))


def test_an_invisible_span_is_seen_by_itself_alone():
    """Of one picture a noised span (2, 3) and what it is learned from (4, 5): the words behind see the latter."""
    sequence = document([0] * 8, [(2, 2), (4, 2)])
    sequence.spans[0] = replace(sequence.spans[0], visible=False)
    seen = ["x.......", "xx......", "xxxx....", "xxxx....", "xx..xx..", "xx..xx..", "xx..xxx.", "xx..xxxx"]
    expected = torch.tensor([[mark == "x" for mark in row] for row in seen])
    assert torch.equal(compiled(sequence, AttentionRule(bidirectional=("image",))), expected)
    assert compile_layout(sequence).hidden.nonzero().flatten().tolist() == [2, 3]
    assert compile_layout(document([0] * 8, [(2, 2), (4, 2)])).hidden is None


def test_the_prefix_ends_where_a_span_of_some_kind_begins():
    rule = AttentionRule("prefix", bidirectional=("action",), until=("action",))
    one, two = document([0] * 5, [(3, 2)]), document([0] * 4, [(1, 2)])
    one.spans = [replace(one.spans[0], kind="action")]
    one.items = {"action": one.items["image"]}
    seen = ["xxx..", "xxx..", "xxx..", "xxxxx", "xxxxx"]
    expected = torch.ones(9, 9).bool() & False
    expected[:5, :5] = torch.tensor([[mark == "x" for mark in row] for row in seen])
    expected[5:, 5:] = True  # nothing ends the second document's prefix
    assert torch.equal(compiled(Sequence.pack([one, two]), rule), expected)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_padding_and_packing_are_inverse(lengths):
    sequence = Sequence.pack([document([0] * length) for length in lengths])
    layout = compile_layout(sequence)
    x = torch.randn(len(sequence), 2, 3)
    assert layout.pad(x).shape == (len(lengths), max(lengths), 2, 3)
    assert torch.equal(layout.pack(layout.pad(x)), x)
    assert layout.lengths == lengths
    assert (layout.inverse is None) == (len(set(lengths)) == 1)
    rows, _, counts = rows_of(sequence.doc, len(lengths))
    assert [rows[row, :count].tolist() for row, count in enumerate(counts)] == [
        list(range(sum(lengths[:row]), sum(lengths[: row + 1]))) for row in range(len(lengths))
    ]


def test_a_plain_causal_batch_needs_no_mask():
    layout = compile_layout(Sequence.pack([document([0] * 3), document([0] * 5)]))
    assert layout.causal
    assert layout.mask is None


def test_prefix_needs_its_lengths():
    with pytest.raises(ValueError, match="prefix length of every document"):
        compile_layout(document([0] * 3), AttentionRule("prefix"))


# ---- a model over packed documents

CAUSAL = AttentionRule()
RULES = [CAUSAL, AttentionRule(bidirectional=("image",)), AttentionRule("full")]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = llama(vocab=50, width=32, depth=2, heads=4, kv_heads=2, hidden=64, tied=True).build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def run(model, sequence, rule=CAUSAL, x=None) -> Outputs:
    x = model.embed_tokens(sequence.ids) if x is None else x
    hidden = model(x, compile_layout(sequence, rule))
    return Outputs(hidden, lambda index: model.logits(hidden[index]))


def documents():
    return [
        document([0] * 9, [(2, 4)], seed=1),
        document([0] * 4 + [1] * 3 + [2] * 2, seed=2),
        document([0] * 2, seed=3),
        document([0] * 12, [(0, 3), (6, 5)], seed=4),
    ]


def gradients(model, losses):
    model.zero_grad()
    for loss in losses:
        loss.sum.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rule", RULES, ids=["causal", "bidirectional pictures", "full"])
def test_packed_equals_separate_in_logits_loss_and_gradients(model, rule):
    parts = documents()
    whole = Sequence.pack(parts)
    outputs = run(model, whole, rule)
    joined = NextToken()(outputs, whole)
    alone = [run(model, part, rule) for part in parts]
    losses = [NextToken()(one, part) for one, part in zip(alone, parts)]
    expected = torch.cat([one.logits(torch.arange(len(part))) for one, part in zip(alone, parts)])
    torch.testing.assert_close(outputs.logits(torch.arange(len(whole))), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.sum, sum(loss.sum for loss in losses), atol=1e-4, rtol=1e-5)
    assert joined.count == sum(loss.count for loss in losses)
    together, apart = gradients(model, [joined]), gradients(model, losses)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("rule", RULES, ids=["causal", "bidirectional pictures", "full"])
def test_one_document_never_touches_another(model, rule):
    whole = Sequence.pack(documents())
    x = model.embed_tokens(whole.ids).detach().requires_grad_()
    hidden = run(model, whole, rule, x).hidden
    for doc in range(whole.documents):
        (gradient,) = torch.autograd.grad(hidden[whole.doc == doc].square().sum(), x, retain_graph=True)
        assert gradient[whole.doc != doc].abs().max() == 0
        assert gradient[whole.doc == doc].abs().max() > 0
    changed = x.detach().clone()
    changed[whole.doc == 1] += 1.0
    after = run(model, whole, rule, changed).hidden
    assert torch.equal(after[whole.doc != 1], hidden[whole.doc != 1])


def test_a_branch_equals_its_conversation_alone(model):
    branched = document([0] * 5 + [1] * 3 + [2] * 4 + [3], seed=5)
    sums, counts = (table.detach() for table in log_likelihood(run(model, branched), branched))
    logits = run(model, branched).logits(torch.arange(len(branched)))
    for number in (1, 2, 3):
        mine = (branched.branch == 0) | (branched.branch == number)
        names = ("ids", "modality", "position", "doc", "weight")
        alone = Sequence(**{name: getattr(branched, name)[mine] for name in names}, branch=torch.zeros(int(mine.sum())))
        outputs = run(model, alone)
        torch.testing.assert_close(logits[mine], outputs.logits(torch.arange(len(alone))), atol=1e-5, rtol=0)
        alone.weight[:5] = 0  # the branch's own tokens, its first one predicted from the trunk's last
        one, count = (table.detach() for table in log_likelihood(outputs, alone))
        assert float(sums[0, number]) == pytest.approx(float(one[0, 0]), abs=1e-4)
        assert counts[0, number] == count[0, 0]


def test_bfloat16_products_follow_the_same_masks(model):
    """On a CPU, short documents in bfloat16 take another path than SDPA."""
    whole = Sequence.pack(documents())
    half = llama(vocab=50, width=32, depth=2, heads=4, kv_heads=2, hidden=64, tied=True).build()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    for rule in RULES:
        exact, rough = run(model, whole, rule).hidden, run(half, whole, rule).hidden.float()
        assert (exact - rough).norm() / exact.norm() < 0.03
        x = half.embed_tokens(whole.ids).detach().requires_grad_()
        hidden = run(half, whole, rule, x).hidden.float()
        (gradient,) = torch.autograd.grad(hidden[whole.doc == 0].square().sum(), x)
        assert gradient[whole.doc != 0].abs().max() == 0
