"""Probe: Qwen2.5-Omni (arXiv 2503.20215). A talker, with a backbone and a vocabulary of its own, reads a middle layer
of the thinker and the embeddings of its words, and says the codes of a speech codec one by one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_fused import TinyEye, ask, renderer_of, strong

from sensorium.connectors.mlp import MLP
from sensorium.infer.cache import Cache
from sensorium.infer.choosing import Chooser
from sensorium.infer.decoding import Decoder
from sensorium.infer.engine import Engine
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling, Text
from sensorium.mask import compile_layout
from sensorium.models.fused import Fused
from sensorium.models.thinker import Thinker
from sensorium.nn.backbone import llama
from sensorium.objectives.language import NextToken
from sensorium.sequence import Item, Sample, Segment, Sequence, Span
from sensorium.tokenizer import Tokenizer

CODES, START, END = 24, 24, 25


def qwen_omni() -> Fused.Config:
    thinker = Fused.Config(
        encoders={"image": TinyEye.Config()},
        connectors={"image": MLP.Config()},
        backbone=llama(vocab=259, width=32, depth=4, heads=4, kv_heads=2, hidden=64),
    )
    return Fused.Config(
        backbone=llama(vocab=CODES + 2, width=24, depth=2, heads=2, hidden=48),
        thinker=Thinker.Config(model=thinker, levels=(0, 2)),
    )


def speech(thought: Sequence, codes: list[int]) -> Sequence:
    """A document of the talker: room for what the thinker read and said, a start token, and codes."""
    before = len(thought)
    ids = torch.tensor([0] * before + [START, *codes])
    total = len(ids)
    position, zeros = torch.arange(total)[:, None].expand(-1, 3), torch.zeros(total, dtype=torch.long)
    weight = (torch.arange(total) > before).float()
    item = Item(None, (before,), source=thought)
    spans = [Span("text", 0, before, 0)]
    return Sequence(ids, zeros.to(torch.uint8), position, zeros, zeros, weight, spans, {"text": [item]})


@pytest.fixture(scope="module")
def system():
    model = strong(qwen_omni())
    thinker = model.thinker.model
    return SimpleNamespace(model=model, renderer=renderer_of(thinker), engine=Engine(thinker, renderer_of(thinker)))


@pytest.fixture(scope="module")
def thoughts(system):
    """What the thinker read, and what it said of it: the one loop serves both halves."""
    asked = [Sample(ask("hi", 1)), Sample(ask("no picture")), Sample(ask("what is this and that?", 2, 3))]
    said = system.engine.generate(asked, Sampling(max_tokens=6))
    whole = [Sample((*one.segments, Segment("text", text, "assistant"))) for one, text in zip(asked, said)]
    return [system.renderer.render(sample) for sample in whole]


def test_the_middle_layer_is_read_as_it_is(system, thoughts):
    """The thoughts are the sum of embeddings and of states behind block 2, projected; later blocks add nothing."""
    thinker = system.model.thinker
    tokens, outputs = thinker(thoughts[0])
    x, _, _ = thinker.model.stream(thoughts[0])
    middle = thinker.model.backbone(x, compile_layout(thoughts[0]), depth=2)
    torch.testing.assert_close(tokens, thinker.project(x + middle))
    torch.testing.assert_close(outputs.hidden, thinker.model(thoughts[0]).hidden)


def test_packed_equals_separate_and_every_parameter_learns(system, thoughts):
    model, objective = system.model, NextToken()
    parts = [speech(thought, [*range(3, 9 + index), END]) for index, thought in enumerate(thoughts)]
    apart = [objective(model(part), part) for part in parts]
    sequence = Sequence.pack(parts)
    together = objective(model(sequence), sequence)
    assert together.count.item() == objective.count(sequence) == sum(part.weight.sum() for part in [*parts, *thoughts])
    assert together.sum.item() == pytest.approx(sum(one.sum.item() for one in apart), rel=1e-5)
    together.sum.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()


def test_speech_alone_teaches_the_thinker_up_to_where_it_is_read(system, thoughts):
    silent = replace(thoughts[0], weight=torch.zeros(len(thoughts[0])))
    sequence = speech(silent, [1, 2, 3, END])
    NextToken()(system.model(sequence), sequence).sum.backward()
    blocks = system.model.thinker.model.backbone.blocks
    taught = [
        bool(block.attention.q.weight.grad.any()) for block in blocks if block.attention.q.weight.grad is not None
    ]
    assert taught == [True, True, False, False]
    system.model.zero_grad()


@torch.no_grad()
def test_cached_decoding_is_the_full_forward_pass(system, thoughts):
    expected = []
    for thought in thoughts:
        codes: list[int] = []
        while len(codes) < 8 and END not in codes:
            sequence = speech(thought, codes)
            codes.append(int(system.model(sequence).logits(torch.tensor([len(sequence) - 1])).argmax()))
        expected.append([code for code in codes if code != END])
    assert len(set(map(tuple, expected))) == len(expected)
    for slots in (1, 3):
        decoder = Decoder(system.model, Cache.of(system.model.stack, slots, 64))
        said = []
        for first in range(0, 3, slots):
            requests = [request(thought) for thought in thoughts[first : first + slots]]
            decoder.admit(requests)
            while decoder.active:
                decoder.step()
            said += [one.ids for one in requests]
        assert said == expected


def request(thought: Sequence) -> Request:
    sampling, words, ends = Sampling(max_tokens=8), Tokenizer.bytes(), frozenset([END])
    return Request(speech(thought, []), sampling, Text(words), ends, Chooser(sampling, words, [], 0, ends))
