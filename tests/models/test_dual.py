"""The contrastive wiring: what stands for an item and a text, who belongs to whom, and that every part takes part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from noise_pictures import Picture, load
from torch import nn

from sensorium.connectors.pool import AveragePool
from sensorium.encoders.vit import stack, vit
from sensorium.errors import UserError
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual, paired, pairs_of, pick
from sensorium.nn.attention import Attention
from sensorium.nn.cross import Cross
from sensorium.objectives.language import NextToken
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer

EYE = vit(width=16, depth=1, heads=2, patch=8, size=16)
WORDS = stack(16, 2, 2, hidden=32).replace(vocab=259, positions=32)


def config(**changes) -> Dual.Config:
    connector = AveragePool.Config(factor=2)
    parts = {"encoders": {"image": EYE}, "connectors": {"image": connector}, "backbone": WORDS, "width": 8}
    return Dual.Config(**{**parts, **changes})


def build(**changes) -> Dual:
    torch.manual_seed(0)
    model = config(**changes).build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def document(*pieces: str | int, model: Dual.Config | None = None) -> Sequence:
    """Text for a str, the picture of that seed for an int."""
    renderer = Renderer(Tokenizer.bytes(), Template(), (model or config()).plan, load)
    segments = tuple(
        Segment("text", piece) if isinstance(piece, str) else Segment("image", Picture(piece)) for piece in pieces
    )
    return renderer.render(Sample(segments))


def test_items_stand_beside_the_text():
    sequence = document(3, "a cat")
    assert len(sequence) == len("a cat") + 2
    assert [(span.mode, span.length) for span in sequence.spans] == [("memory", 1)]


def test_pairs_leave_out_pictures_and_texts_that_are_alone():
    packed = Sequence.pack([document("no picture"), document(1, "a cat"), document(2), document(3, 4, "two")])
    pairs, texts = pairs_of(packed)
    assert texts.tolist() == [0, 1, 3]
    assert pairs.tolist() == [[0, 1], [2, 2], [3, 2]]


def test_vectors_are_of_unit_length_and_do_not_depend_on_what_shares_the_batch():
    model = build()
    parts = [document(1, "a cat"), document(2, "seven small stars"), document(3)]
    together = model(Sequence.pack(parts))
    assert together.image.shape == (3, 1, 8)
    assert together.text.shape == (2, 8)
    torch.testing.assert_close(together.image.norm(dim=-1), torch.ones(3, 1))
    torch.testing.assert_close(together.text.norm(dim=-1), torch.ones(2))
    for row, part in enumerate(parts):
        alone = model(part)
        torch.testing.assert_close(alone.image[0], together.image[row], atol=1e-6, rtol=0)
        if row < 2:
            torch.testing.assert_close(alone.text[0], together.text[row], atol=1e-6, rtol=0)
    assert together.scale.item() == pytest.approx(1 / 0.07)
    assert together.bias is None


def test_a_text_is_the_state_of_its_first_or_last_token_or_the_mean():
    packed = Sequence.pack([document("ab"), document("cde")])
    hidden = torch.arange(9.0)[:, None]
    assert pick(hidden, packed, "first").flatten().tolist() == [0, 4]
    assert pick(hidden, packed, "last").flatten().tolist() == [3, 8]
    assert pick(hidden, packed, "mean").flatten().tolist() == [1.5, 6]


@pytest.mark.parametrize("parts", [[("only words",)], [(1,)], [(1, "both")]])
def test_every_parameter_has_a_gradient_whatever_is_there(parts):
    model = build(bias=-10.0)
    outputs = model(Sequence.pack([document(*pieces) for pieces in parts]))
    assert outputs.bias is not None
    (outputs.image.sum() + outputs.text.sum() + outputs.scale + outputs.bias).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_the_scale_stops_at_its_ceiling_and_comes_back():
    model = build(scale=200.0)
    scale, _ = model.head.terms()
    assert scale.item() == pytest.approx(100.0)
    (-scale).backward()
    assert model.head.log_scale.grad == 0  # it would rise
    model.zero_grad()
    model.head.terms()[0].backward()
    assert model.head.log_scale.grad == pytest.approx(100.0)
    below = build(scale=10.0)
    (-below.head.terms()[0]).backward()
    assert below.head.log_scale.grad == pytest.approx(-10.0)
    assert math.exp(below.head.log_scale.detach()) == pytest.approx(10.0)


def test_a_full_rule_reads_a_text_both_ways():
    one, two = document("abc"), document("abd")
    hidden = [build().read(sequence, AttentionRule("causal"))[:3] for sequence in (one, two)]
    assert torch.equal(*hidden)
    hidden = [build().read(sequence, AttentionRule("full"))[:3] for sequence in (one, two)]
    assert not torch.allclose(*hidden)


def reading() -> Dual:
    """A text stack that may also read the features of items."""
    cross = Cross.Config(attention=Attention.Config(heads=2))
    return build(backbone=WORDS.replace(block=WORDS.block.replace(cross=cross)))


def test_a_pass_over_pairs_reads_the_item_of_each():
    model = reading()
    packed = Sequence.pack([document(1, "a cat"), document(2, "a dog")])
    features = {"image": model.encode("image", packed, torch.float32)}
    rule = AttentionRule("full", memory="all")
    pairs = paired(packed, torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]))
    assert pairs.documents == 3
    hidden = pick(model.read(pairs, rule, features), pairs, "first")
    for row, (seed, words) in enumerate([(2, "a cat"), (1, "a cat"), (1, "a dog")]):
        alone = document(seed, words)
        own = {"image": model.encode("image", alone, torch.float32)}
        torch.testing.assert_close(hidden[row], model.read(alone, rule, own)[0], atol=1e-5, rtol=0)
    assert not torch.allclose(hidden[0], hidden[1])


def test_language_objectives_run_their_pass_once_and_only_when_there_is_one():
    model = build()
    sequence = document(1, "a cat")
    outputs = model(sequence)
    with pytest.raises(UserError, match="no pass in which its text reads"):
        NextToken()(outputs, sequence)
    with pytest.raises(UserError, match="no pass that judges pairs"):
        outputs.matching(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    ran = []

    def spoken():
        from sensorium.models.wiring import Outputs

        ran.append(1)
        hidden = model.read(sequence, AttentionRule("causal"))
        return Outputs(hidden, lambda index: model.stack.logits(hidden[index]))

    loss = NextToken()(replace(outputs, language=spoken), sequence)
    assert loss.sum > 0
    assert len(ran) == 1


def test_without_a_text_stack_the_value_says_what_to_give():
    with pytest.raises(UserError, match="nothing here reads text"):
        config(backbone=None).build()
