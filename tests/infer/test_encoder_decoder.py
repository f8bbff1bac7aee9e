"""An encoder-decoder through the same doors as every model: render, forward, likelihoods, the one generation loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from noise_pictures import Picture, load
from t5_names import t5_names
from torch import nn

from sensorium.connectors.qformer import QFormer
from sensorium.encoders.vit import vit
from sensorium.errors import UserError
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.mask import AttentionRule
from sensorium.models.fused import Fused
from sensorium.nn.backbone import t5
from sensorium.nn.relative import RelativeBias
from sensorium.objectives.language import NextToken
from sensorium.render import Renderer, Template
from sensorium.sequence import Sample, Segment, Sequence
from sensorium.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes(("<pad>", "</s>"))
VOCAB = len(TOKENIZER)
TEMPLATE = Template(
    chat="{% for m in messages %}{{ m['content'] }}{% endfor %}", begin="", start="<pad>", stop="</s>", plain="</s>"
)
SIDE = {"vocab": VOCAB, "width": 32, "depth": 2, "heads": 4, "hidden": 48, "head_width": 8}
EYE = vit(width=16, depth=1, heads=2, patch=8, size=16)
QUERIES = QFormer.Config(queries=3, vocab=VOCAB, width=16, depth=2, heads=2, hidden=24, positions=32)


def sides():
    relative = RelativeBias.Config(buckets=8, distance=12)
    return {
        "source": t5(**SIDE).replace(relative=relative),
        "backbone": t5(**SIDE, decoder=True).replace(relative=relative.replace(both=False)),
        "rule": AttentionRule(memory="all"),
    }


def build(**changes) -> Fused:
    torch.manual_seed(0)
    parts = {"encoders": {"image": EYE}, "connectors": {"image": QUERIES}, **sides()}
    model = Fused.Config(**{**parts, **changes}).build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.eval()


def renderer(model: Fused) -> Renderer:
    return Renderer(TOKENIZER, TEMPLATE, model.config.plan, load)


def turn(question: str, answer: str | None = None, seed: int = 1) -> Sample:
    segments = [Segment("image", Picture(seed), "user"), Segment("text", question, "user")]
    return Sample((*segments, *([Segment("text", answer, "assistant")] if answer is not None else [])))


def test_the_prompt_is_the_source_and_the_answer_the_target():
    sequence = renderer(build()).render(turn("Q?", "yes"))
    assert TOKENIZER.decode(sequence.ids.tolist(), skip_special=False) == "<pad>yes</s>"
    assert sequence.weight.tolist() == [0, 1, 1, 1, 1]
    [item] = sequence.items["text"]
    source = item.source
    assert source is not None
    assert TOKENIZER.decode(source.ids[3:].tolist(), skip_special=False) == "Q?</s>"
    assert [(span.kind, span.start, span.length) for span in source.spans] == [("image", 0, 3)]
    assert [(span.mode, span.length) for span in sequence.spans] == [("memory", 6)]
    assert len(sequence.members("image")) == 1
    plain = renderer(build()).render(Sample((Segment("image", Picture(1)), Segment("text", "a cat"))))
    assert TOKENIZER.decode(plain.ids.tolist(), skip_special=False) == "<pad>a cat</s>"


def test_prompts_in_branches_are_refused():
    pieces = [Segment("image", Picture(1), "user")]
    for branch in (1, 2):
        pieces += [Segment("text", "Q?", "user", branch=branch), Segment("text", "A", "assistant", branch=branch)]
    with pytest.raises(UserError, match="give each question a sample of its own"):
        renderer(build()).render(Sample(tuple(pieces)))


@torch.no_grad()
def test_packed_equals_separate_and_unpacking_gives_the_documents_back():
    model = build()
    parts = [renderer(model).render(turn(*words, seed=n)) for n, words in enumerate([("Q?", "yes"), ("Why so?", "x")])]
    packed = Sequence.pack(parts)
    together = model(packed).hidden
    torch.testing.assert_close(together, torch.cat([model(part).hidden for part in parts]), atol=1e-4, rtol=1e-4)
    again = torch.cat([model(part).hidden for part in packed.unpack()])
    torch.testing.assert_close(together, again, atol=1e-4, rtol=1e-4)
    other = model(Sequence.pack([renderer(model).render(turn("Q?", "yes", seed=9)), parts[1]])).hidden
    assert (other[:5] != together[:5]).any(1).all()
    assert torch.equal(other[5:], together[5:])


def test_every_parameter_has_a_gradient():
    model = build()
    for sample in (turn("Q?", "yes"), Sample(turn("Q?", "yes").segments[1:])):
        model.zero_grad()
        sequence = renderer(model).render(sample)
        NextToken()(model(sequence), sequence).sum.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_generation_does_not_depend_on_slots_and_equals_reading_everything_again():
    model = build()
    samples = [turn(words, seed=n) for n, words in enumerate(["Q?", "Why so?", "a", "What is it?"])]
    together = Engine(model, renderer(model), slots=3).generate(samples, Sampling(max_tokens=12))
    alone = [Engine(model, renderer(model), slots=1).generate([one], Sampling(max_tokens=12))[0] for one in samples]
    assert together == alone
    for sample, answer in zip(samples, alone):
        sequence = Engine(model, renderer(model)).prepare([renderer(model).render(sample, generate=True)])[0]
        ids: list[int] = []
        for _ in range(12):
            told = torch.tensor([*sequence.ids.tolist(), *ids])
            zeros = torch.zeros(len(told), dtype=torch.long)
            position = torch.arange(len(told))[:, None].expand(-1, 3)
            longer = replace(sequence, ids=told, modality=zeros.to(torch.uint8), position=position, doc=zeros,
                             branch=zeros, weight=zeros.float())  # fmt: skip
            with torch.no_grad():
                chosen = int(model(longer).logits(torch.tensor([len(told) - 1])).argmax())
            if chosen == TOKENIZER.special["</s>"]:
                break
            ids.append(chosen)
        assert TOKENIZER.decode(ids) == answer


def test_options_are_branches_of_one_source():
    model = build()
    engine = Engine(model, renderer(model))
    prompt = turn("Q?").segments
    [both] = engine.log_likelihoods([(prompt, ["yes", "no way"])])
    [one] = engine.log_likelihoods([(prompt, ["no way"])])
    assert both.sums[1] == pytest.approx(one.sums[0], abs=1e-3)
    assert both.counts == (4.0, 7.0)


@torch.no_grad()
def test_twenty_greedy_tokens_are_those_of_transformers():
    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=12, dropout_rate=0.0, eos_token_id=10_000,
        tie_word_embeddings=False, attn_implementation="eager", pad_token_id=TOKENIZER.special["<pad>"],
        decoder_start_token_id=TOKENIZER.special["<pad>"],
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    model, state = build(), theirs.state_dict()
    for part, side in ((model.source, "encoder"), (model.backbone, "decoder")):
        names = t5_names(side, 2, side)
        if side == "decoder":
            names |= {"embed.weight": "shared.weight", "head.weight": "lm_head.weight"}
        assert part is not None
        part.load_state_dict({mine: state[name] for mine, name in names.items()})
    samples = [
        Sample((Segment("text", words, "user"),)) for words in ("Translate this", "a", "What is in the picture?")
    ]
    engine = Engine(model, renderer(model))
    engine.stops = frozenset()
    requests = []
    for sample in samples:
        request = engine.open(sample, Sampling(max_tokens=20))
        list(engine.run(request))
        requests.append((request.ids, request.sequence.items["text"][0].source))
    for ids, source in requests:
        assert source is not None
        expected = theirs.generate(source.ids[None], max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert ids == expected[0, 1:].tolist()
