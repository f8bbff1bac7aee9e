"""Cached decoding with memory and with routes equals the full forward pass, batched, chunked and turn by turn."""

from types import SimpleNamespace

import pytest
import torch
from tiny_fused import plain_greedy
from torch import nn

from sensorium.infer.cache import Cache
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.infer.session import Session
from sensorium.mask import AttentionRule, compile_layout
from sensorium.nn.attention import Attention
from sensorium.nn.cross import Cross
from sensorium.nn.ffn import FeedForward
from sensorium.sequence import Sample, Sequence

SHORT = Sampling(max_tokens=10)


def fused(build, **changes):
    model, renderer = build(**changes)
    for parameter in model.parameters():
        if parameter.dim() == 0:
            nn.init.constant_(parameter, 0.8)
    return SimpleNamespace(model=model, renderer=renderer, engine=Engine(model, renderer))


@pytest.fixture(params=["before", "latest", "all", "routes"])
def system(request, build, tiny):
    plain = tiny.model.config.backbone
    if request.param == "routes":
        backbone = plain.replace(block=plain.block.replace(routes=2))
        return fused(build, backbone=backbone, routes={"image": 1}, together=("image",))
    cross = Cross.Config(
        attention=Attention.Config(heads=4), place="before", gated=True,
        ffn=FeedForward.Config(hidden=32, activation="gelu", gated=False),
    )  # fmt: skip
    backbone = plain.replace(block=plain.block.replace(cross=cross), cross_every=2)
    return fused(build, backbone=backbone, memory=("image",), rule=AttentionRule(memory=request.param))


def questions(tiny):
    return [
        Sample(tiny.ask("hi", 1)),
        Sample(tiny.ask("what is this and that?", 2, 3)),
        Sample(tiny.ask("no picture")),
        Sample((*tiny.ask("one", 4), *tiny.ask("an answer", role="assistant"), *tiny.ask("and this?", 5))),
    ]


def test_answers_are_those_of_the_full_forward_pass(system, tiny):
    expected = [plain_greedy(system, sample, 10) for sample in questions(tiny)]
    assert len(set(expected)) > 2
    for slots in (1, 3, 8):
        engine = Engine(system.model, system.renderer, slots=slots)
        assert engine.generate(questions(tiny), SHORT) == expected


def test_every_turn_equals_a_fresh_request(system, tiny):
    session = Session(system.engine, sampling=SHORT)
    segments = ()
    for text, pictures in (("first", [tiny.Picture(1)]), ("again", []), ("more", [tiny.Picture(2), tiny.Picture(3)])):
        answer = "".join(session.send(text, pictures))
        turn = (*tiny.ask(text),)
        turn = (*[part for part in session.segments[len(segments) : -1] if part.kind == "image"], *turn)
        [fresh] = system.engine.generate([Sample((*segments, *turn))], SHORT)
        assert answer == fresh
        segments = session.segments


def test_reading_on_in_pieces_equals_reading_at_once(system, tiny):
    """Logits of a document whose second half comes later, beside another document, in other slots."""
    from sensorium.infer.cutting import tail

    samples = [questions(tiny)[3], questions(tiny)[1]]
    whole = [system.renderer.render(sample, generate=True) for sample in samples]
    with torch.no_grad():
        expected = [system.model(sequence).hidden for sequence in whole]
        cache = Cache.of(system.model.backbone, 3, 128)
        cut = [next(span.start for span in sequence.spans[1:]) for sequence in whole]
        heads = [_head(sequence, place) for sequence, place in zip(whole, cut)]
        found = []
        for parts in (heads, [tail(sequence, place) for sequence, place in zip(whole, cut)]):
            if system.model.config.rule.memory == "all" and found:
                with pytest.raises(ValueError, match=r"slots \[2, 0\] hold tokens that would have read what comes now"):
                    step(system, cache, parts)
                return
            found.append(step(system, cache, parts))
    for first, second, whole_hidden in zip(*found, expected):
        torch.testing.assert_close(torch.cat([first, second]), whole_hidden, rtol=1e-4, atol=1e-4)


def step(system, cache, parts):
    """Append two documents to slots 2 and 0; returns the hidden states of each."""
    packed = Sequence.pack(parts)
    layout = compile_layout(packed, system.model.config.rule)
    with cache.step([2, 0], layout):
        return system.model(packed, cache, layout).hidden.split(layout.lengths)


def _head(sequence, stop):
    spans = [span for span in sequence.spans if span.start < stop]
    names = ("ids", "modality", "position", "doc", "branch", "weight")
    items = {"image": [sequence.items["image"][span.item] for span in spans]}
    return Sequence(spans=spans, items=items, **{name: getattr(sequence, name)[:stop] for name in names})
