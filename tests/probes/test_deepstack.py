"""Probe: Qwen3-VL (arXiv 2511.21631). Features of several depths of the encoder enter several depths of the language
model (DeepStack), and a token of a picture has its place in time, row and column (M-RoPE)."""

from types import SimpleNamespace

import pytest
import torch
from tiny_fused import Picture, ask, plain_greedy, renderer_of, strong

from sensorium.connectors.levels import Levels
from sensorium.connectors.mlp import MLP
from sensorium.connectors.resampler import Resampler
from sensorium.encoders.transform import ImageTransform
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.nn.rope import Rope
from sensorium.objectives.language import NextToken
from sensorium.sequence import Sample, Segment, Sequence


def qwen3_vl() -> Fused.Config:
    eye = vit(width=16, depth=3, heads=2, patch=4, size=8).replace(levels=(1, 2), transform=ImageTransform(size=8))
    backbone = llama(vocab=259, width=32, depth=4, heads=4, kv_heads=2, hidden=64)
    return Fused.Config(
        encoders={"image": eye},
        connectors={"image": Levels.Config(inner=MLP.Config(), levels=2)},
        backbone=backbone.replace(rope=Rope.Config(sections=(2, 1, 1))),
        spread=("image",),
        deep={"image": (1, 2)},
    )


@pytest.fixture(scope="module")
def system():
    model = strong(qwen3_vl())
    renderer = renderer_of(model)
    return SimpleNamespace(model=model, renderer=renderer, engine=Engine(model, renderer))


ASKED = [Sample(ask("hi", 1)), Sample(ask("no picture")), Sample(ask("what is this and that?", 2, 3))]


def test_a_picture_takes_the_room_of_its_longer_side(system):
    """Text 0, a picture of 2 x 2 tokens from 1 on, then text from 3 on (Qwen2-VL, arXiv 2409.12191, figure 3)."""
    picture = Segment("image", Picture(1))
    sequence = system.renderer.render(Sample((Segment("text", "a"), picture, Segment("text", "b"))))
    first = sequence.spans[0].start
    at = int(sequence.position[first - 1, 0]) + 1
    places = [[at, at, at], [at, at, at + 1], [at, at + 1, at], [at, at + 1, at + 1], [at + 2] * 3]
    assert sequence.position[first : first + 5].tolist() == places


def test_branches_go_on_where_the_trunk_ends(system):
    asked = [Segment("text", "a", branch=1), Segment("text", "a", branch=2)]
    sequence = system.renderer.render(Sample((Segment("image", Picture(1)), *asked)))
    one, two = (sequence.position[sequence.branch == branch] for branch in (1, 2))
    trunk = sequence.position[sequence.branch == 0]
    assert torch.equal(one, two)
    assert one[0].tolist() == [int(trunk.max()) + 1] * 3


def test_each_level_is_added_behind_its_block(system):
    """The states behind block 1 with the first level's tokens taken off are those of a model without it."""
    model = system.model
    sequence = system.renderer.render(ASKED[0])
    span = sequence.spans[0]
    rows = slice(span.start, span.start + span.length)
    tokens = model.connect("image", sequence, torch.float32)
    _, _, deeper = model.stream(sequence)
    x = torch.randn(len(sequence), 32)
    for done, level in ((1, 1), (2, 2)):
        added = deeper[done](x) - x
        torch.testing.assert_close(added[rows], tokens[:, 32 * level : 32 * (level + 1)])
        added[rows] = 0
        assert not added.any()


def test_packed_equals_separate_and_every_parameter_learns(system):
    model, objective = system.model, NextToken()
    parts = [system.renderer.render(Sample((*one.segments, Segment("text", "yes", "assistant")))) for one in ASKED]
    apart = [objective(model(part), part).sum.detach() for part in parts]
    sequence = Sequence.pack(parts)
    together = objective(model(sequence), sequence)
    assert together.sum.item() == pytest.approx(float(sum(apart)), rel=1e-5)
    together.sum.backward()
    learns = {name: bool(param.grad.any()) for name, param in model.named_parameters() if param.grad is not None}
    assert {name for name, _ in model.named_parameters()} == set(learns)
    assert all(learned for name, learned in learns.items() if not name.endswith("attention.k.bias"))
    model.zero_grad()


def test_cached_decoding_is_the_full_forward_pass(system):
    expected = [plain_greedy(system, sample, 10) for sample in ASKED]
    assert len(set(expected)) == len(expected)
    for slots in (1, 3):
        assert Engine(system.model, system.renderer, slots=slots).generate(ASKED, Sampling(max_tokens=10)) == expected


def test_a_resampler_leaves_no_rows_to_spread_over():
    config = qwen3_vl().replace(connectors={"image": Resampler.Config(latents=4)}, deep={})
    with pytest.raises(UserError, match="spread over rows and columns"):
        config.plan("image", (8, 8))


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="as many `levels`"):
        Levels.Config(inner=MLP.Config(), levels=2).build(16, 96)
