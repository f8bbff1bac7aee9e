"""Probe: Moshi (arXiv 2410.00037). Words, what the model says and what it hears run in parallel, with delays; their
embeddings are summed, and a depth decoder says the codes of a step one after another."""

import pytest
import torch
from tiny_fused import strong

from sensorium.infer.cache import Cache
from sensorium.infer.choosing import Chooser
from sensorium.infer.decoding import Decoder
from sensorium.infer.request import Request
from sensorium.infer.sampling import Sampling, Text
from sensorium.models.fused import Fused
from sensorium.models.streams import Streams
from sensorium.nn.backbone import llama
from sensorium.objectives.language import NextToken
from sensorium.sequence import Sequence
from sensorium.tokenizer import Tokenizer

CODES, DELAYS, SAYS, START, END = (12, 12, 12, 9, 9), (0, 1, 1, 0, 1), 3, 257, 258
STEPS = 9


def moshi() -> Fused.Config:
    depth = llama(vocab=0, width=16, depth=2, heads=2, hidden=32)
    return Fused.Config(
        backbone=llama(vocab=259, width=32, depth=3, heads=4, kv_heads=2, hidden=64),
        streams=Streams.Config(codes=CODES, delays=DELAYS, says=SAYS, depth=depth),
    )


@pytest.fixture(scope="module")
def model():
    return strong(moshi())


def sounds(length, seed):
    """(T, K) ids as they sound together."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (length,), generator=generator) for size in (200, *CODES)], dim=1)


def document(ids, weight=None):
    """ids (T, K) as they are read."""
    steps = torch.arange(len(ids))
    zeros = torch.zeros_like(steps)
    weight = torch.zeros(ids.shape) if weight is None else weight
    return Sequence(ids, zeros.to(torch.uint8), steps[:, None].expand(-1, 3).contiguous(), zeros, zeros, weight)


def start():
    return torch.tensor([[START, *CODES]])


def heard(seed):
    """What the other side says, as it is read."""
    return moshi().streams.delayed(sounds(STEPS, seed), START)[0][1 : STEPS + 1, 1 + SAYS :]


def test_delays_are_what_the_paper_draws():
    config = moshi().streams
    ids = sounds(3, 0)
    read, weight = config.delayed(ids, START)
    assert read[0].tolist() == [START, *CODES]
    assert read[1].tolist() == [*ids[0, :2].tolist(), 12, 12, int(ids[0, 4]), 9]
    assert read[2].tolist() == [*ids[1, :2].tolist(), *ids[0, 2:4].tolist(), int(ids[1, 4]), int(ids[0, 5])]
    assert read[4].tolist() == [START, 12, *ids[2, 2:4].tolist(), 9, int(ids[2, 5])]
    assert weight.tolist() == [[0] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert torch.equal(config.together(read), ids)


def test_packed_equals_separate_and_every_parameter_learns(model):
    objective = NextToken(z=1e-3)
    parts = [document(*model.config.streams.delayed(sounds(length, length), START)) for length in (4, 7, 1)]
    apart = [objective(model(part), part).sum.item() for part in parts]
    sequence = Sequence.pack(parts)
    assert all(torch.equal(one.ids, part.ids) for one, part in zip(sequence.unpack(), parts))
    together = objective(model(sequence), sequence)
    assert together.sum.item() == pytest.approx(sum(apart), rel=1e-5)
    assert together.count.item() == objective.count(sequence) == 4 * 12
    together.sum.backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []
    model.zero_grad()


@torch.no_grad()
def test_a_code_depends_on_those_before_it_in_its_step_alone(model):
    sequence = document(model.config.streams.delayed(sounds(4, 1), START)[0])
    outputs, index = model(sequence), torch.tensor([2])
    before = outputs.streams(index, sequence.ids[3:4])
    for stream in range(1, 1 + SAYS):
        changed = sequence.ids[3:4].clone()
        changed[0, stream] = (changed[0, stream] + 1) % 12
        after = outputs.streams(index, changed)
        assert [torch.equal(one, two) for one, two in zip(before, after)] == [place < stream for place in range(SAYS)]


@torch.no_grad()
def plain_greedy(model, other):
    """One full forward pass for every code."""
    ids = start()
    for step in range(STEPS):
        outputs, at = model(document(ids)), torch.tensor([step])
        row = torch.tensor([[int(outputs.logits(at).argmax()), *CODES]])
        if int(row[0, 0]) == END:
            break
        for stream in range(SAYS):
            if step >= DELAYS[stream]:
                row[0, 1 + stream] = outputs.streams(at, row)[stream].argmax()
        row[0, 1 + SAYS :] = other[step]
        ids = torch.cat([ids, row])
    return ids[1:].tolist()


def test_cached_decoding_is_the_full_forward_pass(model):
    others = [heard(seed) for seed in range(3)]
    expected = [plain_greedy(model, other) for other in others]
    assert len({str(said) for said in expected}) == 3
    for slots in (1, 3):
        decoder, said = Decoder(model, Cache.of(model.stack, slots, 32)), []
        for first in range(0, 3, slots):
            requests = [request(other) for other in others[first : first + slots]]
            decoder.admit(requests)
            while decoder.active:
                decoder.step()
            said += [[[word, *row] for word, row in zip(one.ids, one.rows)] for one in requests]
        assert said == expected


def request(other):
    sampling, words, ends = Sampling(max_tokens=STEPS), Tokenizer.bytes(), frozenset([END])
    return Request(document(start()), sampling, Text(words), ends, Chooser(sampling, words, [], 0, ends), heard=other)


def test_hearing_ends_before_speech_may():
    with pytest.raises(ValueError, match="9 may be said"):
        request(heard(0)[:5])
