"""Stage 1 of BLIP-2 on the contrastive wiring: one stack under three rules."""

from __future__ import annotations

import pytest
import torch
from noise_pictures import Picture, load
from torch import nn

from sensorium.connectors.qformer import QFormer
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.mask import AttentionRule
from sensorium.models.dual import Dual
from sensorium.objectives.contrastive import Contrastive
from sensorium.objectives.language import NextToken
from sensorium.objectives.matching import Matching, related, triples
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer

EYE = vit(width=16, depth=1, heads=2, patch=8, size=16)
QUERIES = QFormer.Config(queries=3, vocab=260, width=16, depth=2, heads=2, hidden=24, positions=32)


def config(**changes) -> Dual.Config:
    parts = {"encoders": {"image": EYE}, "connectors": {"image": QUERIES}, "width": 8, "text": "first",
             "rule": AttentionRule("full"), "grounded": True, "start": 259}  # fmt: skip
    return Dual.Config(**{**parts, **changes})


@pytest.fixture
def model() -> Dual:
    torch.manual_seed(0)
    model = config().build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, mean=0.1 if parameter.dim() == 1 else 0.0)
    return model.eval()


def document(*pieces: str | int) -> Sequence:
    """Text for a str, the picture of that seed for an int."""
    renderer = Renderer(Tokenizer.bytes(), Template(), config().plan, load)
    segments = tuple(
        Segment("text", piece) if isinstance(piece, str) else Segment("image", Picture(piece)) for piece in pieces
    )
    return renderer.render(Sample(segments))


def pack(*pairs) -> Sequence:
    return Sequence.pack([document(*pair) for pair in pairs])


PAIRS = ((1, "a cat"), (2, "a red car"), (3, "stars"), (4, "a cat"), (1, "the same picture"))


@torch.no_grad()
def test_in_the_contrastive_pass_neither_sees_the_other(model):
    before = model(pack((1, "a cat"), (2, "a car")))
    after = model(pack((1, "a dog"), (3, "a car")))
    assert torch.equal(before.image[0], after.image[0])
    assert torch.equal(before.text[1], after.text[1])
    assert before.image.shape == (2, 3, 8)
    assert not torch.equal(before.text[0], after.text[0])
    assert not torch.equal(before.image[1], after.image[1])


@torch.no_grad()
def test_the_language_pass_sees_the_picture_and_earlier_words_alone(model):
    said = model(pack((1, "a cat"), (2, "a car"))).hidden
    other = model(pack((1, "a cob"), (2, "a car"))).hidden  # `<begin>a c` is the same, then all differs
    assert torch.equal(said[:4], other[:4])
    assert (said[4:6] != other[4:6]).any(1).all()
    assert torch.equal(said[7:], other[7:])
    unseen = model(pack((5, "a cat"), (2, "a car"))).hidden
    assert (said[:7] != unseen[:7]).any(1).all()
    assert torch.equal(said[7:], unseen[7:])


@torch.no_grad()
def test_a_text_that_is_to_be_said_begins_with_its_own_mark(model):
    sequence = pack((1, "a cat"))
    said = model(sequence).hidden
    sequence.ids[0] = 5
    assert torch.equal(model(sequence).hidden, said)  # the first id is replaced
    plain = config(start=None).build()
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(plain.eval()(sequence).hidden, said)


@torch.no_grad()
def test_documents_of_every_kind_in_one_pass_are_what_they_are_alone(model):
    parts = [document(1, "a cat"), document("only words"), document(2), document(3, "stars")]
    together = model(Sequence.pack(parts))
    apart = torch.cat([model(part).hidden for part in parts])
    torch.testing.assert_close(together.hidden, apart, atol=1e-5, rtol=1e-5)
    assert together.logits(torch.tensor([0, 3])).shape == (2, 260)
    with pytest.raises(UserError, match="a text reads one image in this pass, a document has 2"):
        _ = model(document(1, 2, "two")).hidden


@torch.no_grad()
def test_matching_reads_the_pair_it_is_asked_about(model):
    outputs = model(pack((1, "a cat"), (2, "a car")))
    images, texts = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    logits = outputs.matching(images, texts)
    assert logits.shape == (3, 2)
    alone = model(pack((2, "a cat"))).matching(torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(logits[2:], alone, atol=1e-5, rtol=1e-5)
    assert outputs.matching(images[:0], texts[:0]).shape == (0, 2)


def test_what_belongs_together_is_known_by_content():
    sequence = pack(*PAIRS)
    table = related(sequence, model_pairs(sequence))
    assert table.int().tolist() == [
        [1, 0, 0, 1, 1],  # picture 1 is also the last one, whose text is another; its own text stands twice
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def model_pairs(sequence):
    from sensorium.models.dual import pairs_of

    return pairs_of(sequence)[0]


def test_drawn_negatives_are_never_a_match_and_follow_the_seed(model):
    sequence = pack(*PAIRS)
    outputs = model(sequence)
    table = related(sequence, outputs.pairs)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        images, texts, same = triples(outputs, sequence)
        torch.manual_seed(seed)
        again = triples(outputs, sequence)
        assert all(torch.equal(left, right) for left, right in zip((images, texts, same), again))
        assert same.tolist() == [True] * 5 + [False] * 10
        assert images[:10].tolist() == [*range(5)] * 2
        assert texts[10:].tolist() == [*range(5)]
        assert table[images[:5], texts[:5]].all()
        assert not table[images[5:], texts[5:]].any()
        seen |= set(zip(images[5:].tolist(), texts[5:].tolist()))
    assert len(seen) > 8


def test_closer_ones_are_drawn_more_often(model):
    sequence = pack((1, "a cat"), (2, "a red car"), (3, "stars"))
    outputs = model(sequence)
    outputs.scale = torch.tensor(1.0)
    outputs.image = nn.functional.one_hot(torch.tensor([0, 1, 2]), 8)[:, None].float()
    outputs.text = torch.tensor([[1.0, 0, 0], [3.0, 1, 0], [0, 0, 1.0]])
    outputs.text = nn.functional.pad(outputs.text, (0, 5))
    drawn = []
    for seed in range(300):
        torch.manual_seed(seed)
        drawn.append(int(triples(outputs, sequence)[1][3]))  # the text drawn for the first picture
    assert set(drawn) == {1, 2}
    assert drawn.count(1) / 300 == pytest.approx(1 / (1 + 2.718281828**-3), abs=0.03)


def test_counts_are_known_before_anything_is_computed(model):
    objective = Matching()
    for pairs, count in ((PAIRS, 15), (((1, "a cat"), (2, "a cat")), 2), (((1, "a cat"),), 1), ((("words",),), 0)):
        sequence = pack(*pairs)
        assert objective.count(sequence) == count
        loss = objective(model(sequence), sequence)
        assert float(loss.count) == count
        assert loss.sum.isfinite()
        right, of = loss.report["matching_accuracy"]
        assert 0 <= float(right) <= float(of) == count


@pytest.mark.parametrize("pairs", [PAIRS, [("only words",)], [(1,)]])
def test_every_parameter_has_a_gradient_whatever_is_there(model, pairs):
    sequence = pack(*pairs)
    outputs = model(sequence)
    losses = [objective(outputs, sequence) for objective in (Contrastive(), Matching(), NextToken())]
    torch.stack([loss.sum for loss in losses]).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_grounded_stack_is_that_of_a_q_former():
    from sensorium.connectors.mlp import MLP

    with pytest.raises(ValueError, match="a Q-Former: given"):
        config(connectors={"image": MLP.Config()}, backbone=QUERIES.stack).build()
