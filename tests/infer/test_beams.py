"""Beam search: the reference's answers and scores, whatever is asked at once."""

import pytest
import torch
import transformers
from tiny_fused import make
from token_models import WORDS, document, engine_of, token_model

import sensorium
from sensorium.errors import UserError
from sensorium.infer.beams import beam, beam_search
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling
from sensorium.sequence import Sample, Segment
from sensorium.tokenizer import Tokenizer

TEXTS = ["hi", "what is this?", "a" * 30, "count them", "x"]
SIZE = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
STOPS = [7, 19, 64, 100, 101, 102, 150, 200, 240, 258]


@torch.no_grad()
def reference(kind, config, folder, std=0.2):
    """A model of transformers with random weights, and the same opened here, in which ten tokens end an answer."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=std)
    model.tie_weights()
    model.save_pretrained(folder)
    Tokenizer.bytes().with_template(None).save(folder)
    engine = sensorium.load(folder, "fp32").engine
    engine.stops = frozenset(STOPS)
    return model, engine


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    config = transformers.LlamaConfig(**SIZE, num_key_value_heads=2, max_position_embeddings=128)
    return reference(transformers.LlamaForCausalLM, config, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    config = transformers.T5Config(vocab_size=259, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                   decoder_start_token_id=256, pad_token_id=256, eos_token_id=258)  # fmt: skip
    return reference(transformers.T5ForConditionalGeneration, config, tmp_path_factory.mktemp("t5"), std=0.8)


def generated(model, ids, **options):
    """(ids without the stop, score) of the reference's answers, best first."""
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, num_return_sequences=options["num_beams"],
        eos_token_id=STOPS, pad_token_id=256, output_scores=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    begin = 1 if model.config.is_encoder_decoder else ids.shape[1]
    answers = []
    for row, score in zip(found.sequences[:, begin:].tolist(), found.sequences_scores.tolist()):
        stop = next((place for place, id in enumerate(row) if id in STOPS), len(row))
        answers.append((tuple(row[:stop]), score))
    return answers


def prompts():
    return [Sample((Segment("text", text),)) for text in TEXTS]


def compared(model, engine, source, options):
    expected = [
        generated(
            model, source(engine, sample), num_beams=options["beams"], max_new_tokens=options["max_tokens"],
            length_penalty=options.get("length_penalty", 1.0), early_stopping=options.get("early", False),
        )
        for sample in prompts()
    ]  # fmt: skip
    found = beam_search(engine, prompts(), **options)
    for answers, ours in zip(expected, found, strict=True):
        assert [ids for ids, _ in answers] == [one.ids for one in ours]
        assert [score for _, score in answers] == pytest.approx([one.score for one in ours], rel=1e-5, abs=1e-5)
    return found


OPTIONS = [
    {"beams": 4, "max_tokens": 12},
    {"beams": 3, "max_tokens": 1},
    {"beams": 6, "max_tokens": 20, "length_penalty": 2.0},
    {"beams": 4, "max_tokens": 12, "length_penalty": 0.0},
    {"beams": 4, "max_tokens": 12, "length_penalty": -1.0},
    {"beams": 4, "max_tokens": 20, "early": True},
    {"beams": 5, "max_tokens": 20, "early": True, "length_penalty": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_and_scores_are_those_of_the_reference(llama, options):
    model, engine = llama
    found = compared(model, engine, lambda engine, sample: engine.prompt(sample, Sampling()).ids[None], options)
    lengths = {len(one.ids) for answers in found for one in answers}
    if options["max_tokens"] > 1 and options.get("length_penalty", 1.0) <= 1:
        assert len(lengths) > 1  # some ended by themselves


def test_an_encoder_decoder_searches_too(t5):
    model, engine = t5

    def source(engine, sample):
        [read] = engine.prompt(sample, Sampling()).items["text"]
        return read.source.ids[None]

    found = compared(model, engine, source, {"beams": 4, "max_tokens": 10})
    assert len({answers[0].ids for answers in found}) > 1


def with_pictures(tiny):
    return [Sample(tiny.ask(text, *range(index % 3))) for index, text in enumerate(TEXTS)]


def test_one_beam_is_greedy(tiny):
    samples = with_pictures(tiny)
    texts = tiny.engine.generate(samples, Sampling(max_tokens=12))
    assert [text for text, _ in beam(tiny.engine, samples, beams=1, max_tokens=12)] == texts


def test_neither_the_slots_nor_the_other_samples_change_an_answer(tiny):
    samples = with_pictures(tiny)
    expected = [beam_search(tiny.engine, [sample], beams=3, max_tokens=8)[0] for sample in samples]
    assert len({answers[0].text for answers in expected}) > 2
    for slots, tokens, items in ((1, 2048, 32), (6, 2048, 32), (16, 60, 32), (16, 2048, 2)):
        engine = Engine(tiny.model, tiny.renderer, slots=slots, tokens=tokens, items=items)
        counts = []
        found = beam_search(engine, samples, beams=3, max_tokens=8, progress=counts.append)
        assert [[one.ids for one in answers] for answers in found] == [[one.ids for one in one] for one in expected]
        for ours, theirs in zip(found, expected):
            assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)
        assert counts[-1] == len(samples)
    assert beam_search(tiny.engine, []) == []


def test_scores_are_likelihoods_of_what_was_said_before_pictures_too(tiny):
    for sample, answers in zip(with_pictures(tiny), beam_search(tiny.engine, with_pictures(tiny), 3, 6, 0.0)):
        sequence = tiny.engine.prompt(sample, Sampling())
        for one in answers:
            total = 0.0
            for place, id in enumerate(one.ids):
                row = _after(tiny, sequence, one.ids[:place])
                total += float(row[id])
            ends = _after(tiny, sequence, one.ids)[sorted(tiny.engine.stops)]
            if len(one.ids) == 6:
                assert one.score == pytest.approx(total, abs=1e-3)
            else:  # one of the tokens that end it came next
                assert min(abs(one.score - total - ends)) < 1e-3
            assert one.text == tiny.renderer.tokenizer.decode(one.ids)


@torch.no_grad()
def _after(tiny, sequence, ids):
    """Log-probabilities (vocab) of what follows a prompt and some tokens, by one full pass."""
    [whole] = tiny.engine.prepare([sequence])
    for id in ids:
        for name, value in (("ids", id), ("modality", 0), ("doc", 0), ("branch", 0), ("weight", 0)):
            old = getattr(whole, name)
            setattr(whole, name, torch.cat((old, torch.tensor([value], dtype=old.dtype))))
        whole.position = torch.cat((whole.position, whole.position[-1:] + 1))
    return tiny.model(whole).logits(torch.tensor([len(whole) - 1]))[0].log_softmax(-1)


def test_a_model_that_draws_answers_in_words():
    engine = engine_of(token_model())
    for answers in beam_search(engine, [document("a b"), document("c")], beams=3, max_tokens=6):
        assert len(answers) == 3
        for one in answers:
            assert max(one.ids, default=0) < WORDS


def test_the_model_keeps_its_mode_and_its_context():
    from tiny_fused import renderer_of

    model = make().train()
    engine = Engine(model, renderer_of(model), context=40)
    beam(engine, [Sample((Segment("text", "hi", role="user"),))], beams=2, max_tokens=4)
    assert model.training
    with pytest.raises(UserError, match="leaves no room"):
        beam(engine, prompts(), max_tokens=40)


@pytest.mark.parametrize(("wrong", "reason"), [
    ({"beams": 0}, "beams is a whole number"), ({"max_tokens": 0}, "max_tokens"),
    ({"length_penalty": float("nan")}, "nan"),
])  # fmt: skip
def test_impossible_options_are_refused(tiny, wrong, reason):
    with pytest.raises(UserError, match=reason):
        beam(tiny.engine, [], **wrong)
