"""Answers of a given form, whatever the model would rather say."""

import json
import random
import re

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from sensorium.errors import UserError
from sensorium.infer.choosing import Chooser
from sensorium.infer.constrain import Constraint, Guide, _compiled, _vocabulary, response_format
from sensorium.infer.engine import Engine
from sensorium.infer.sampling import Sampling, Text
from sensorium.infer.token_bytes import TokenBytes
from sensorium.sequence import Sample
from sensorium.tokenizer import Tokenizer, byte_symbols

SPECIAL = ["<|end|>", "<|user|>"]


def with_special(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_tokens([AddedToken("<tool call>", special=False)])
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return Tokenizer(backend, eos="<|end|>")


def byte_level() -> Tokenizer:
    vocabulary = {symbol: byte for byte, symbol in byte_symbols().items()}
    for piece in ("th", "the", "Ġthe", '{"', '":', "Ġ{", "ĠĠ", "12", "âĢ"):
        vocabulary[piece] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("{", '"'), ('"', ":"), ("Ġ", "{"), ("Ġ", "Ġ"), ("1", "2")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_special(backend)


LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789-:,.{}[]"<>?!é'
WORDS = ["▁", "▁▁", "▁yes", "yes", "▁no", "no", "▁{", '{"', "▁the", "the", "▁1", "12", "▁▁x"]


def sentencepiece() -> Tokenizer:
    """BPE with a fallback to bytes, as Llama 2 has it."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *WORDS]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    backend.add_special_tokens([AddedToken("<unk>", special=True)])
    return with_special(backend)


def unigram() -> Tokenizer:
    """Pieces with probabilities, as T5 and XGLM have them: no bytes, and the first token loses every space."""
    pieces = [
        ("<unk>", 0.0),
        *((piece, -2.0 - place / 9) for place, piece in enumerate([*LETTERS, "\n", "\t", *WORDS])),
    ]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return with_special(backend)


def word_pieces() -> Tokenizer:
    pieces = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "yes", "no", "##es", "the"]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return with_special(backend)


TOKENIZERS = {
    "bytes": Tokenizer.bytes(), "byte-level": byte_level(), "sentencepiece": sentencepiece(), "unigram": unigram(),
    "word pieces": word_pieces(),
}  # fmt: skip
each = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def answer(constraint: Constraint, tokenizer: Tokenizer, seed: int, longest: int = 400, **options) -> str | None:
    """What a model of random mind says under a constraint; None where it is cut short."""
    stops = frozenset({tokenizer.eos})
    sampling = Sampling(constraint=constraint, temperature=1.0, **options)
    chooser = Chooser(sampling, tokenizer, [], seed, stops)
    mind = torch.Generator().manual_seed(seed)
    text, special = Text(tokenizer), set(tokenizer.special.values())
    for _ in range(longest):
        # an embedding is often wider than its vocabulary; this mind would like to end, and to say special tokens
        logits = torch.randn(len(tokenizer) + 5, generator=mind) * 3
        logits[-5:] += 50
        logits[list(special)] += 20
        choice = chooser.choose(logits).id
        if choice in stops:
            return text.text + text.finish()
        assert choice not in special
        assert not chooser.complete
        text.push(choice)
        chooser.take(choice)
    return None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["thé", "no"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 120},
        "box": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "count", "box"],
    "additionalProperties": False,
}


def fits(text: str) -> bool:
    value = json.loads(text)
    return (
        {"name", "count", "box"} <= set(value) <= {"name", "count", "box", "sure"}
        and value["name"] in ("thé", "no")
        and isinstance(value["count"], int)
        and 1 <= value["count"] <= 120
        and len(value["box"]) == 2
        and all(isinstance(side, int | float) for side in value["box"])
        and isinstance(value.get("sure", True), bool)
    )


@each
def test_one_of_the_choices_is_said(tokenizer):
    choices = ("yes", "no", "yes-12", "12", "<|end|>")
    if tokenizer in (TOKENIZERS["unigram"], TOKENIZERS["word pieces"]):
        choices = choices[:4]  # they have no piece for "|"
    found = {answer(Constraint(choices=choices), tokenizer, seed) for seed in range(60)}
    assert found <= set(choices)
    assert len(found) >= 2


@each
@pytest.mark.parametrize("regex", [r"[a-f]{2,4}-\d+", r"(yes|no)(, (yes|no)){0,3}", r"the\.?", r"é?[^a-z]x{3}y*"])
def test_the_whole_answer_matches_the_regex(tokenizer, regex):
    said = [answer(Constraint(regex=regex), tokenizer, seed) for seed in range(15)]
    complete = [text for text in said if text is not None]
    assert len(complete) >= 10
    for text in complete:
        assert re.fullmatch(regex, text), text


@pytest.mark.parametrize("name", ["bytes", "byte-level", "sentencepiece", "unigram"])
def test_json_follows_its_schema(name):
    said = [answer(Constraint(json_schema=SCHEMA), TOKENIZERS[name], seed, longest=900) for seed in range(15)]
    complete = [text for text in said if text is not None]
    assert len(complete) >= 8
    assert all(map(fits, complete))


@pytest.mark.parametrize("name", ["bytes", "byte-level", "sentencepiece"])
def test_any_object_is_an_object(name):
    constraint = response_format({"type": "json_object"})
    said = [answer(constraint, TOKENIZERS[name], seed, longest=1500) for seed in range(8)]
    complete = [text for text in said if text is not None]
    assert complete
    assert all(isinstance(json.loads(text), dict) for text in complete)


@pytest.mark.parametrize("name", ["sentencepiece", "unigram"])
def test_the_first_word_may_have_its_space_and_the_text_has_none(name):
    """The decoder leaves it out: both ways of saying the first word are open, and a text that must begin with a space
    does, unless the decoder leaves out all of them."""
    tokenizer = TOKENIZERS[name]
    ids = {piece: tokenizer.id(piece) for piece in ("▁yes", "yes", "▁", "▁▁x", "▁no")}
    allowed = Guide(Constraint(choices=("yes",)), tokenizer, frozenset({tokenizer.eos})).allowed()
    assert {piece: bool(allowed[id]) for piece, id in ids.items()} == {
        "▁yes": True, "yes": True, "▁": True, "▁▁x": False, "▁no": False,
    }  # fmt: skip
    assert {answer(Constraint(choices=(" yes", " x")), tokenizer, seed) for seed in range(20)} == {" yes", " x"}


def test_after_the_end_only_a_stop_may_follow():
    tokenizer, stops = TOKENIZERS["bytes"], frozenset({256, 258})
    guide = Guide(Constraint(choices=("ab", "abc")), tokenizer, stops)
    steps = []
    for id in b"abc":
        steps.append(guide.allowed().nonzero()[:, 0].tolist())
        assert not guide.complete
        guide.take(id)
    assert steps == [[97], [98], [99, 256, 258]]
    assert guide.complete
    assert guide.allowed().nonzero()[:, 0].tolist() == [256, 258]
    guide.take(258)
    assert guide.complete


def test_what_is_not_allowed_cannot_be_taken():
    guide = Guide(Constraint(regex="a+"), TOKENIZERS["bytes"], frozenset({258}))
    for wrong in (ord("b"), 258, 257, 999, -1):
        with pytest.raises(ValueError, match=f"token {wrong} "):
            guide.take(wrong)
    guide.take(ord("a"))


def test_an_ordinary_token_that_ends_answers_is_no_part_of_one():
    tokenizer = TOKENIZERS["byte-level"]
    the = tokenizer.id("the")
    guide = Guide(Constraint(regex="(the)+"), tokenizer, frozenset({the}))
    assert not guide.allowed()[the]
    for id in (tokenizer.id("t"), tokenizer.id("h"), tokenizer.id("e")):
        guide.take(id)
    assert guide.allowed()[the]


def test_answers_of_one_constraint_do_not_meet():
    constraint, tokenizer, stops = Constraint(choices=("ab", "cd")), TOKENIZERS["bytes"], frozenset({258})
    one, other = Guide(constraint, tokenizer, stops), Guide(constraint, tokenizer, stops)
    one.take(ord("a"))
    assert other.allowed().nonzero()[:, 0].tolist() == [97, 99]
    assert one.allowed().nonzero()[:, 0].tolist() == [98]


def test_tables_and_grammars_are_made_once():
    tokenizer, stops = Tokenizer.bytes(), frozenset({258})
    made, compiled = _vocabulary.cache_info().misses, _compiled.cache_info().misses
    for _ in range(3):
        Guide(Constraint(regex="once+"), tokenizer, stops)
        Guide(Constraint(regex="twice+"), tokenizer, stops)
    assert _vocabulary.cache_info().misses == made + 1
    assert _compiled.cache_info().misses == compiled + 2


def test_a_chooser_obeys_before_it_biases_and_penalises():
    tokenizer = TOKENIZERS["bytes"]
    options = {"logit_bias": {ord("z"): 100}, "repetition_penalty": 2.0, "frequency_penalty": 2.0, "logprobs": 1}
    chooser = Chooser(Sampling(constraint=Constraint(regex="a{3}"), **options), tokenizer, [], 0, frozenset({258}))
    logits = torch.zeros(259)
    logits[ord("z")] = 5.0
    said = []
    while not chooser.complete:
        choice = chooser.choose(logits)
        assert choice.top[0][0] == ord("z")  # the model's own wish
        assert choice.logprob == pytest.approx(float(logits.log_softmax(-1)[ord("a")]), abs=1e-6)
        chooser.take(choice.id)
        said.append(choice.id)
    assert bytes(said) == b"aaa"
    assert chooser.choose(logits).id == 258
    assert not chooser.greedy


@pytest.mark.parametrize(("wrong", "reason"), [
    ({}, "exactly one of choices, regex, json_schema, not none"),
    ({"regex": "a", "choices": ("b",)}, "not choices and regex"),
    ({"choices": ()}, "at least one text"),
    ({"choices": ("a", "")}, "no empty one"),
    ({"choices": "yes"}, "tuple"),
    ({"regex": "(abc"}, "regex cannot be used: unclosed group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"json_schema": {"type": "objekt"}}, "json_schema cannot be used: Invalid type: objekt"),
    ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, r"minimum \(5\) is greater than maximum \(3\)"),
    ({"json_schema": {"$ref": "#/nowhere"}}, "does not exist"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": "object"}, "dictionary"),
    ({"grammar": "x"}, "Extra inputs"),
], ids=str)  # fmt: skip
def test_unusable_constraints_are_refused_at_once(wrong, reason):
    with pytest.raises(ValidationError, match=reason):
        Constraint(**wrong)


def test_what_shows_only_with_a_tokenizer_is_the_users_error():
    with pytest.raises(UserError, match="no token of this model"):
        Guide(Constraint(regex=r"[^\s\S]"), TOKENIZERS["bytes"], frozenset({258})).allowed()


def test_a_model_without_the_means_is_told_so():
    with pytest.raises(UserError, match="a token that ends it"):
        Guide(Constraint(regex="a"), TOKENIZERS["bytes"], frozenset())
    tidy = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tidy.decoder = decoders.WordPiece(cleanup=True)
    with pytest.raises(UserError, match="WordPiece"):
        Guide(Constraint(regex="a"), Tokenizer(tidy), frozenset({0}))
    with pytest.raises(UserError, match="decoder \\(none\\)"):
        TokenBytes(Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))))
    pieces = TOKENIZERS["unigram"]
    guide = Guide(Constraint(choices=("猫",)), pieces, frozenset({pieces.eos}))
    guide.take(pieces.id("▁"))
    with pytest.raises(UserError, match="no token of this model"):
        guide.allowed()


def test_response_formats_of_openai():
    assert response_format({"type": "text"}) is None
    assert response_format({"type": "json_object"}) == Constraint(json_schema={"type": "object"})
    wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    assert response_format(wish) == Constraint(json_schema=SCHEMA)
    for wrong, reason in [
        ({"type": "xml"}, "not 'xml'"), ({}, "not None"), ({"type": "json_schema"}, '"schema"'),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "objekt"}}}, "Invalid type: objekt"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=reason):
            response_format(wrong)


def test_a_constraint_is_a_value():
    sampling = Sampling(constraint={"json_schema": SCHEMA})
    assert Sampling.model_validate_json(sampling.to_json()) == sampling
    assert sampling.constraint.json_schema == SCHEMA


def test_white_space_between_the_parts_of_json_has_an_end():
    tokenizer, stops = TOKENIZERS["bytes"], frozenset({258})
    guide = Guide(Constraint(json_schema={"type": "object"}), tokenizer, stops)
    guide.take(ord("{"))
    guide.take(ord("\n"))
    count = 0
    while guide.allowed()[ord(" ")]:
        guide.take(ord(" "))
        count += 1
    assert count == 24
    for id in b'"a": 1}':
        guide.take(id)
    assert guide.complete


# ---- through the engine


def test_an_engine_says_what_is_asked_for(tiny):
    """Greedy, drawn and beside others; an answer that is too long is cut, and says so."""
    samples = [Sample(tiny.ask(text)) for text in ("hi", "what is this?", "x")]
    json_ = Constraint(json_schema=SCHEMA)
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        texts = tiny.engine.generate(samples, Sampling(constraint=Constraint(choices=("one", "two")), **options))
        assert set(texts) <= {"one", "two"}
        for request in tiny.engine.answered(samples, Sampling(constraint=json_, max_tokens=120, **options), None):
            assert request.finish == ("stop" if len(request.ids) < 120 else "length")
            if request.finish == "stop":
                assert fits(request.text.text)
    [cut] = tiny.engine.answered(samples[:1], Sampling(constraint=Constraint(regex="a{50}"), max_tokens=9), None)
    assert (cut.text.text, cut.finish) == ("a" * 9, "length")


def test_a_form_that_is_complete_ends_its_answer_without_a_step_more(tiny, monkeypatch):
    engine = Engine(tiny.model, tiny.renderer)
    steps, step = [], type(engine.scheduler.decoder).step
    monkeypatch.setattr(type(engine.scheduler.decoder), "step", lambda self: (steps.append(1), step(self)))
    for most in (4, 9):
        [request] = engine.answered(
            [Sample(tiny.ask("hi"))], Sampling(constraint=Constraint(regex="a{4}"), max_tokens=most), None
        )
        assert (request.text.text, request.finish, len(request.ids)) == ("aaaa", "stop", 4)
    assert len(steps) == 2 * 3  # the first token comes of the prompt
    [longer] = engine.answered([Sample(tiny.ask("hi"))], Sampling(constraint=Constraint(regex="a{4,}")), None)
    assert len(longer.ids) >= 4  # it may go on


# ---- the bytes of tokens


@each
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_bytes_of_tokens_join_to_what_is_decoded(tokenizer, data):
    known = TokenBytes(tokenizer)
    plain = [id for id in range(len(tokenizer)) if id not in tokenizer.special.values()]
    ids = data.draw(st.lists(st.sampled_from(plain), max_size=12))
    said = b"".join((known.inner if place else known.first)(id) for place, id in enumerate(ids))
    try:
        expected = said.decode()
    except UnicodeDecodeError:
        return  # decoders differ in how they show what is no character
    assert tokenizer.decode(ids) == expected


def test_ids_that_are_no_tokens_say_nothing():
    assert TokenBytes(TOKENIZERS["bytes"]).inner(9999) == b""


def test_random_texts_of_a_grammar_can_be_said_as_the_tokenizer_cuts_them():
    """Whatever fits is allowed: encoding a fitting text gives tokens that a guide lets through."""
    chance = random.Random(0)
    for tokenizer in (TOKENIZERS["bytes"], TOKENIZERS["byte-level"]):
        stops = frozenset({tokenizer.eos})
        for _ in range(30):
            value = {"name": chance.choice(["thé", "no"]), "count": chance.randint(1, 120), "box": [1.5, -2]}
            text = json.dumps(value, ensure_ascii=False, indent=chance.choice([None, 1, 4]))
            guide = Guide(Constraint(json_schema=SCHEMA), tokenizer, stops)
            for id in tokenizer.encode(text):
                guide.take(id)
            assert guide.complete
