"""Probe: BAGEL (arXiv 2505.14683). One stack understands and generates: two routes with joint attention, and of a
picture a noised latent that nothing else sees, the latent as it is, and what an encoder sees of it."""

from types import SimpleNamespace

import pytest
import torch
from tiny_fused import Picture, TinyEye, ask, plain_greedy, renderer_of, strong

from sensorium.codecs.pixels import Pixels
from sensorium.connectors.mlp import MLP
from sensorium.diffusion.sampler import Euler
from sensorium.encoders.transform import ImageTransform
from sensorium.errors import UserError
from sensorium.infer.cache import Cache
from sensorium.infer.cutting import head, tail
from sensorium.infer.denoising import denoise
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.mask import AttentionRule, compile_layout
from sensorium.models.fused import Fused
from sensorium.models.latent_head import LatentHead
from sensorium.models.latents import Noised
from sensorium.nn.backbone import llama
from sensorium.objectives.diffusion import Denoising
from sensorium.objectives.language import NextToken
from sensorium.sequence import CLEAN, Sample, Segment, Sequence


def bagel() -> Fused.Config:
    backbone = llama(vocab=259, width=32, depth=2, heads=4, kv_heads=2, hidden=64)
    routed = ("norm1", "attention", "norm2", "ffn", "final")
    return Fused.Config(
        encoders={"image": TinyEye.Config()},
        connectors={"image": MLP.Config()},
        codecs={"image": Pixels.Config(transform=ImageTransform(size=8))},
        latents={"image": LatentHead.Config(patch=(1, 4, 4), sections=(0, 16, 16), clean=True, route=1)},
        backbone=backbone.replace(block=backbone.block.replace(routes=2, routed=routed)),
        rule=AttentionRule(bidirectional=("image",)),
        together=("image",),
    )


@pytest.fixture(scope="module")
def system():
    model = strong(bagel())
    renderer = renderer_of(model)
    return SimpleNamespace(model=model, renderer=renderer, engine=Engine(model, renderer))


def drawn(prompt, seed, *more, train=True):
    """Words, the picture that is learned from them, and more words."""
    picture = Segment("image", Picture(seed), "assistant", train=train)
    return Sample((Segment("text", prompt, "user"), picture, *(Segment("text", text, "assistant") for text in more)))


def noise_of(sequence, seed=0):
    count = 4 * sum(span.mode == "latent" and span.time != CLEAN for span in sequence.spans)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 48, generator=generator), 1000 * torch.rand(count // 4, generator=generator)


def test_a_picture_that_is_learned_stands_there_three_times(system):
    learned, read = (system.renderer.render(drawn("a cat", 1, "here", train=train)) for train in (True, False))
    noised, clean, seen = learned.spans
    assert [(span.mode, span.visible, span.time, span.route) for span in learned.spans] == [
        ("latent", False, None, 1), ("latent", True, CLEAN, 1), ("embed", True, None, None)
    ]  # fmt: skip
    assert (clean.start, seen.start) == (noised.start + 4, noised.start + 8)
    assert learned.position[noised.start].equal(learned.position[clean.start])  # the noised one takes no room
    assert learned.position[seen.start].equal(learned.position[clean.start] + 1)
    assert [span.mode for span in read.spans] == ["latent", "embed"]
    assert learned.position[clean.start :].equal(read.position[noised.start :])


def test_what_follows_never_sees_the_noised_one(system):
    """It computes what it would compute had the noised span never been there."""
    learned, read = (system.renderer.render(drawn("a cat", 1, "here", train=train)) for train in (True, False))
    start = learned.spans[0].start
    noised = {"image": system.model.noise("image", learned, *noise_of(learned))}
    hidden = system.model(learned, noised=noised).hidden
    plain = system.model(read).hidden
    torch.testing.assert_close(torch.cat([hidden[:start], hidden[start + 4 :]]), plain, atol=1e-5, rtol=0)


def test_packed_equals_separate_and_every_parameter_learns(system):
    model, objectives = system.model, (NextToken(), Denoising())
    samples = [drawn("a cat", 1, "here"), Sample(ask("what?", 2)), drawn("two words", 3, "and more", "yes")]
    parts = [system.renderer.render(sample) for sample in samples]
    given = [model.noise("image", part, *noise_of(part, seed)) for seed, part in enumerate(parts)]
    apart = [0.0, 0.0]
    for part, noised in zip(parts, given):
        outputs = model(part, noised={"image": noised})
        apart = [before + one(outputs, part).sum.item() for before, one in zip(apart, objectives)]
    sequence = Sequence.pack(parts)
    joined = Noised(*(torch.cat([getattr(one, name) for one in given]) for name in ("x", "time", "target")))
    outputs = model(sequence, noised={"image": joined})
    together = [one(outputs, sequence) for one in objectives]
    assert [one.sum.item() for one in together] == pytest.approx(apart, rel=1e-4)
    assert [one.count.item() for one in together] == [one.count(sequence) for one in objectives]
    sum(one.sum for one in together).backward()
    idle = {name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()}
    assert idle == set()
    model.zero_grad()


@torch.no_grad()
def test_denoising_behind_a_cache_is_the_full_forward_pass(system):
    """Two prompts are read once; pictures are denoised behind them in five steps, then words follow."""
    model, sampler = system.model, Euler(steps=5)
    whole = [system.renderer.render(drawn(*one)) for one in (("a cat", 1, "here"), ("two words", 3, "and more"))]
    starts = [part.spans[0].start for part in whole]
    parts = [head(part, start + 4) for part, start in zip(whole, starts)]
    sequence = Sequence.pack(parts)
    noise, _ = noise_of(sequence)
    expected = denoise(model, sequence, "image", noise, sampler)
    cache = Cache.of(model.stack, slots=2, capacity=80)
    append(model, cache, [head(part, start) for part, start in zip(parts, starts)])
    noised = Sequence.pack([tail(part, start) for part, start in zip(parts, starts)])
    found = denoise(model, noised, "image", noise, sampler, cache, [0, 1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found[:4] - found[4:]).abs().max() > 0.1  # the words are read
    assert cache.lengths == starts
    hidden = append(model, cache, [tail(part, start) for part, start in zip(whole, starts)])
    full = model(Sequence.pack(whole)).hidden.split([len(part) for part in whole])
    for one, other, start in zip(hidden, full, starts):
        torch.testing.assert_close(one[4:], other[start + 4 :], atol=1e-4, rtol=0)
    assert cache.lengths == [len(part) - 4 for part in whole]


def append(model, cache, parts):
    sequence = Sequence.pack(parts)
    layout = compile_layout(sequence, model.config.rule)
    with cache.step(range(len(parts)), layout):
        return model(sequence, cache, layout).hidden.split([len(part) for part in parts])


def test_words_about_pictures_are_decoded_as_in_the_full_forward_pass(system):
    asked = [Sample(ask("hi", 1)), Sample(ask("no picture")), Sample(ask("what is this and that?", 2, 3))]
    expected = [plain_greedy(system, sample, 10) for sample in asked]
    assert len(set(expected)) == len(expected)
    for slots in (1, 3):
        engine = Engine(system.model, system.renderer, slots=slots)
        assert engine.generate(asked, Sampling(max_tokens=10)) == expected


def test_one_item_is_prepared_once():
    other = {"image": Pixels.Config(transform=ImageTransform(size=16))}
    with pytest.raises((UserError, ValueError), match="one transform"):
        bagel().replace(codecs=other)
