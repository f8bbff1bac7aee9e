"""Probe: pi0 (arXiv 2410.24164). An action expert, narrower than the language model, shares its attention layer by
layer; a chunk of actions is denoised behind pictures, words and a state, which see nothing of it."""

from types import SimpleNamespace

import pytest
import torch
from tiny_fused import Picture, TinyEye, strong

from sensorium.codecs.numbers import Numbers
from sensorium.connectors.mlp import MLP
from sensorium.diffusion.sampler import Euler
from sensorium.infer.cache import Cache
from sensorium.infer.cutting import head, tail
from sensorium.infer.denoising import denoise
from sensorium.mask import AttentionRule, compile_layout
from sensorium.models.fused import Fused
from sensorium.models.latent_head import LatentHead
from sensorium.models.latents import Noised
from sensorium.nn.backbone import llama
from sensorium.nn.block import Expert
from sensorium.nn.ffn import FeedForward
from sensorium.objectives.diffusion import Denoising
from sensorium.render import Renderer, Template
from sensorium.sequence import CLEAN, Item, Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer

WIDTH, NARROW, ACTION = 32, 12, 5


def pi0() -> Fused.Config:
    backbone = llama(vocab=259, width=WIDTH, depth=3, heads=4, kv_heads=1, hidden=64, tied=True)
    block = backbone.block.replace(
        routes=2,
        routed=("norm1", "attention", "norm2", "ffn", "final"),
        experts={1: Expert(width=NARROW, ffn=FeedForward.Config(hidden=20))},
    )
    return Fused.Config(
        encoders={"image": TinyEye.Config()},
        connectors={"image": MLP.Config(depth=1)},
        codecs={"state": Numbers.Config(columns=3), "action": Numbers.Config(columns=ACTION)},
        latents={
            "state": LatentHead.Config(route=1, says=False),
            "action": LatentHead.Config(route=1, mix="mlp"),
        },
        backbone=backbone.replace(block=block),
        rule=AttentionRule("prefix", bidirectional=("action",), until=("state", "action")),
    )


@pytest.fixture(scope="module")
def system():
    model = strong(pi0())

    def load(kind, media):
        return Item(model.reader(kind).preprocess(media.load()), media.shape(), media.key())

    return SimpleNamespace(model=model, renderer=Renderer(Tokenizer.bytes(), Template(), model.config.plan, load))


def episode(words, *pictures, state=(0.1, 0.2, 0.3), chunk=6):
    """What is seen and asked, where the arm is, and what it should do next."""
    seen = [Segment("image", Picture(seed)) for seed in pictures]
    actions = [[0.1 * step, -0.3, 0.5, 0.2 * step, state[0]] for step in range(chunk)]
    return Sample((*seen, Segment("text", words), Segment("state", list(state)), Segment("action", actions)))


EPISODES = [
    episode("pick up the cup", 1),
    episode("stop", 2, 3, state=(0.9, -0.2, 0.0)),
    episode("fold it", 1, chunk=4),
]


def render(system, sample):
    """Up to the last action."""
    sequence = system.renderer.render(sample)
    return head(sequence, sequence.spans[-1].start + sequence.spans[-1].length)


def noise_of(parts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(part.spans[-1].length for part in parts)
    return torch.randn(count, ACTION, generator=generator), 1000 * torch.rand(len(parts), generator=generator)


def test_the_expert_is_narrow_and_takes_state_and_actions(system):
    model = system.model
    sequence = render(system, EPISODES[0])
    _, state, action = sequence.spans
    assert [(one.mode, one.time, one.route, one.length) for one in (state, action)] == [
        ("latent", CLEAN, 1, 1), ("latent", None, 1, 6)
    ]  # fmt: skip
    hidden = model(sequence).hidden
    assert not hidden[state.start :, NARROW:].any()
    assert hidden[: state.start].all()
    assert hidden[state.start :, :NARROW].all()
    expert = model.backbone.blocks[0].routes["1"]
    shapes = {name: tuple(parameter.shape) for name, parameter in expert.named_parameters()}
    names = ("attention.q.weight", "attention.k.weight", "attention.o.weight", "ffn.up.weight")
    assert [shapes[name] for name in names] == [(32, NARROW), (8, NARROW), (NARROW, 32), (20, NARROW)]


def test_actions_see_all_and_each_other_and_the_prefix_sees_none(system):
    sequence = render(system, EPISODES[0])
    _, state, action = sequence.spans
    mask = compile_layout(sequence, system.model.config.rule).mask[0, 0]
    assert mask[action.start :].all()
    assert mask[: state.start, : state.start].all()
    assert not mask[: state.start, state.start :].any()
    assert mask[state.start, : action.start].all()
    assert not mask[state.start, action.start :].any()


def test_packed_equals_separate_and_every_parameter_learns(system):
    model, objective = system.model, Denoising()
    parts = [render(system, sample) for sample in EPISODES]
    given = [model.noise("action", part, *noise_of([part], seed)) for seed, part in enumerate(parts)]
    apart = sum(objective(model(part, noised={"action": one}), part).sum.item() for part, one in zip(parts, given))
    sequence = Sequence.pack(parts)
    joined = Noised(*(torch.cat([getattr(one, name) for one in given]) for name in ("x", "time", "target")))
    together = objective(model(sequence, noised={"action": joined}), sequence)
    assert together.sum.item() == pytest.approx(apart, rel=1e-5)
    assert together.count.item() == objective.count(sequence) == 16
    together.sum.backward()
    idle = {name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()}
    last = (
        "backbone.blocks.2."  # actions read keys and values of the prefix alone, so what comes of it last is not read
    )
    unread = ["attention.q", "attention.o", "norm2", "ffn.gate", "ffn.up", "ffn.down"]
    assert idle == {"backbone.norm.weight", *(f"{last}{name}.weight" for name in unread)}
    model.zero_grad()


@torch.no_grad()
def test_denoising_behind_a_cached_prefix_is_the_full_forward_pass(system):
    model, sampler = system.model, Euler(steps=10)
    parts = [render(system, sample) for sample in EPISODES]
    noise, _ = noise_of(parts)
    expected = denoise(model, Sequence.pack(parts), "action", noise, sampler)
    starts = [part.spans[-2].start for part in parts]
    cache = Cache.of(model.stack, slots=3, capacity=64)
    prefix = Sequence.pack([head(part, start) for part, start in zip(parts, starts)])
    layout = compile_layout(prefix, model.config.rule)
    with cache.step(range(3), layout):
        model(prefix, cache, layout)
    rest = Sequence.pack([tail(part, start) for part, start in zip(parts, starts)])
    found = denoise(model, rest, "action", noise, sampler, cache, range(3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert cache.lengths == starts
    other = denoise(model, rest, "action", noise.flip(0), sampler, cache, range(3))
    assert (other - found).abs().max() > 0.1
