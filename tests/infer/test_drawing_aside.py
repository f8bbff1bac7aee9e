"""Pictures in codes that are no words (Janus): the same loop, with a head and embeddings of their own."""

from __future__ import annotations

import pytest
import torch
from tiny_fused import TinyEye
from token_models import CODES, codec, document, engine_of
from torch import nn

from sensorium.connectors.mlp import MLP
from sensorium.infer.decoding import Decoder
from sensorium.infer.sampling import Sampling
from sensorium.models.code_head import CodeHead
from sensorium.models.fused import Fused
from sensorium.models.marks import Marks
from sensorium.nn.backbone import llama
from sensorium.sequence import Sequence

OPEN, CLOSE, BLANK, WORDS = ord("{"), ord("}"), 7, 259
HOT = Sampling(temperature=3.0, max_tokens=12)


@pytest.fixture(scope="module")
def model() -> Fused:
    torch.manual_seed(0)
    made: Fused = Fused.Config(
        encoders={"image": TinyEye.Config()}, connectors={"image": MLP.Config()}, codecs={"image": codec()},
        codes={"image": CodeHead.Config(codes=CODES, width=4, blank=BLANK)},
        marks={"image": Marks(open=(OPEN,), close=(CLOSE,), filler=258)},
        backbone=llama(vocab=WORDS, width=32, depth=2, heads=4, kv_heads=2, hidden=64),
    ).build()  # fmt: skip
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 and not name.startswith("codecs"):
            nn.init.normal_(parameter, std=0.25)
    return made.eval()


def drawn(engine, samples, sampling, most=1, begin="image"):
    return engine.answered(samples, sampling, None, (most, begin))


def is_whole(ids) -> bool:
    return (ids[0], ids[-1], len(ids)) == (OPEN, CLOSE, 6) and all(WORDS <= id < WORDS + CODES for id in ids[1:-1])


def test_every_picture_is_whole_and_does_not_depend_on_others(model):
    samples = [document(f"picture {n}" * (1 + n % 3)) for n in range(7)]
    for guidance in (1.0, 2.5):
        sampling = HOT.replace(guidance=guidance)
        many = [request.ids for request in drawn(engine_of(model), samples, sampling)]
        assert many == [request.ids for request in drawn(engine_of(model, slots=2), samples, sampling)]
        assert all(map(is_whole, many))
        assert len(set(map(tuple, many))) > 5


def test_cached_decoding_equals_reading_everything_again(model):
    engine = engine_of(model)
    sample = document("a cat")
    [request] = drawn(engine, [sample], Sampling(max_tokens=1))
    prompt = engine.prompt(sample, Sampling())
    ids = torch.cat([prompt.ids, torch.tensor(request.ids)])
    count, zeros = len(ids), torch.zeros(len(ids), dtype=torch.long)
    whole = Sequence(ids, zeros.to(torch.uint8), torch.arange(count)[:, None].expand(-1, 3), zeros, zeros,
                     torch.zeros(count))  # fmt: skip
    with torch.no_grad():
        said = model.aside(model(whole).hidden[len(prompt) : -2]).argmax(-1)
    assert said.tolist() == request.drawing.drawn[0].codes.tolist()


def test_a_guided_picture_is_compared_with_a_prompt_of_blanks(model):
    engine = engine_of(model)
    [request] = drawn(engine, [document("a cat")], HOT.replace(guidance=2.0))
    begin = engine.renderer.tokenizer.bos
    wanted = [id if id == begin else BLANK for id in engine.prompt(document("a cat"), HOT).ids.tolist()]
    assert request.against.sequence.ids.tolist() == wanted
    assert BLANK in wanted
    config = model.config
    plain = config.replace(codes={"image": config.codes["image"].replace(blank=None)}).build()
    [request] = drawn(engine_of(plain), [document("a cat")], HOT.replace(guidance=2.0))
    assert BLANK not in request.against.sequence.ids.tolist()


def test_words_alone_are_chosen_as_if_there_were_no_codes(model):
    """Marks are words as any, and nothing is drawn behind one."""
    samples = [document(f"say {n}") for n in range(60)]
    found = drawn(engine_of(model), samples, HOT.replace(temperature=9.0), most=0, begin=None)
    plain: Fused = model.config.replace(codes={}, codecs={}).build()
    plain.load_state_dict({name: value for name, value in model.state_dict().items()
                           if not name.startswith(("codes.", "codecs."))})  # fmt: skip
    other = drawn(engine_of(plain.eval()), samples, HOT.replace(temperature=9.0), most=0, begin=None)
    assert [request.ids for request in found] == [request.ids for request in other]
    assert any(OPEN in request.ids for request in found)


def test_words_and_pictures_mix_in_one_batch_and_words_may_be_penalised(model):
    samples = [document(f"say {n}") for n in range(60)]
    sampling = Sampling(temperature=9.0, max_tokens=30, repetition_penalty=1.3)
    found = drawn(engine_of(model), samples, sampling, begin=None)
    pictures = [(request, one) for request in found for one in request.drawing.drawn]
    assert len(pictures) > 2
    assert all(is_whole(request.ids[one.start : one.start + one.length]) for request, one in pictures)
    codes = [id for request in found for id in request.ids if id >= WORDS]
    assert len(codes) == 4 * len(pictures)  # there are none outside


@pytest.mark.parametrize("heat", [0.0, 9.0])
def test_a_chat_beside_a_drawing_says_what_it_says_alone(model, heat):
    engine = engine_of(model)
    decoder = Decoder(model, engine.cache(4))
    sampling = Sampling(max_tokens=12, temperature=heat, seed=3)
    wanted = {"say": (0, None), "a cat": (1, "image")}
    requests = [engine.open(document(text), sampling, drawn) for text, drawn in wanted.items()]
    decoder.admit(requests)
    while decoder.active:
        decoder.step()
    [alone] = drawn(engine, [document("say")], sampling, most=0, begin=None)
    assert requests[0].ids == alone.ids
    assert max(alone.ids) < WORDS
    assert is_whole(requests[1].ids)
