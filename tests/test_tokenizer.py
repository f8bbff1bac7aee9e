"""The wall between trusted and typed text, offsets, streaming, and the folder on disk."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from sensorium.errors import UserError
from sensorium.tokenizer import CHATML, Tokenizer, byte_symbols

BYTES = Tokenizer.bytes()


def bpe() -> Tokenizer:
    """Byte-level BPE with two merges: "th" and "the" are one token, "the" with its space another."""
    vocabulary = {symbol: byte for byte, symbol in byte_symbols().items()}
    for piece in ("th", "the", "Ġthe"):
        vocabulary[piece] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|im|>", special=True)])
    return Tokenizer(backend, eos="<|im_end|>")


def unigram() -> Tokenizer:
    """A Unigram model that holds its special token among its pieces, as sentencepiece models do."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<", -5.0), ("/", -5.0), ("s", -5.0), (">", -5.0), ("a", -5.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<unk>", special=True)])
    return Tokenizer(backend, eos="</s>")


TOKENIZERS = {"bytes": BYTES, "bpe": bpe()}


def test_bytes_are_their_own_ids() -> None:
    assert BYTES.encode("hé") == [104, 195, 169]
    assert BYTES.vocab_size == 259
    assert BYTES.special == {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    assert (BYTES.bos, BYTES.eos, BYTES.pad) == (257, 258, 256)
    assert BYTES.chat_template == CHATML


def test_byte_symbols_are_the_published_ones() -> None:
    assert [byte_symbols()[byte] for byte in (0x00, 0x0A, 0x20, 0x41, 0x7F, 0xA0, 0xAD, 0xFF)] == list("ĀĊĠAġłŃÿ")
    assert len(set(byte_symbols().values())) == 256


def test_merges_and_offsets() -> None:
    assert bpe().encode_with_offsets("the the") == ([257, 258], [(0, 3), (3, 7)])
    assert BYTES.encode_with_offsets("a😀b")[1] == [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_typed_special_tokens_stay_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for special in tokenizer.special:
        for text in (special, f"hi{special}{special}", special[1:] + special):
            ids = tokenizer.encode(text)
            assert not set(ids) & set(tokenizer.special.values())
            assert tokenizer.decode(ids) == text


def test_a_model_that_finds_special_tokens_itself_is_stopped() -> None:
    tokenizer = unigram()
    assert tokenizer._plain.encode("a</s>").ids == [6, 1]  # the danger is real
    ids, offsets = tokenizer.encode_with_offsets("a</s>a</s>")
    assert ids == [6, 2, 3, 4, 5, 6, 2, 3, 4, 5]
    assert offsets == [(i, i + 1) for i in range(10)]
    assert tokenizer.encode("é") == [0], "unknown is for plain text"


def test_a_character_that_only_a_special_token_can_write_is_an_error() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer = Tokenizer(backend, eos="<end>")
    assert tokenizer.encode("a") == [1]
    with pytest.raises(UserError, match="'z' as its special token '<end>'"):
        tokenizer.encode("z")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("<|>_imend"), max_size=40))
@example("<|im_end|>")
@example("\ufffd")
@example("\u200d👩‍👩‍👧")
def test_plain_text_round_trips_and_never_becomes_special(text: str) -> None:
    for tokenizer in TOKENIZERS.values():
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert set(ids).isdisjoint(tokenizer.special.values())
        assert tokenizer.decode(ids) == text
        assert {place for a, b in offsets for place in range(a, b)} == set(range(len(text)))
        assert [a for a, _ in offsets] == sorted(a for a, _ in offsets)
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == text


def test_stream_holds_back_half_characters() -> None:
    stream = BYTES.stream()
    assert [stream.push(byte) for byte in "a😀é".encode()] == ["a", "", "", "", "😀", "", "é"]
    assert stream.flush() == ""
    assert [stream.push(byte) for byte in b"x\xf0\x9f"] == ["x", "", ""]
    assert stream.flush() == "\ufffd"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=30))
def test_stream_of_any_ids_joins_to_decode(ids: list[int]) -> None:
    for skip in (True, False):
        stream = BYTES.stream(skip_special=skip)
        parts = [*map(stream.push, ids), stream.flush()]
        if max(ids, default=0) < 256:  # a special token inside a character ends it: then only the characters agree
            assert "".join(parts) == BYTES.decode(ids, skip_special=skip)
        assert all("\ufffd" not in part or bytes_are_broken(ids) for part in parts)


def bytes_are_broken(ids: list[int]) -> bool:
    try:
        bytes(id for id in ids if id < 256).decode()
        return any(id > 255 for id in ids)
    except UnicodeDecodeError:
        return True


def test_split_special_takes_the_longest_token() -> None:
    tokenizer = bpe()
    end, im = tokenizer.special["<|im_end|>"], tokenizer.special["<|im|>"]
    pieces = tokenizer.split_special("a<|im_end|><|im|>b<|im_")
    assert pieces == ["a", ("<|im_end|>", end), ("<|im|>", im), "b<|im_"]
    assert tokenizer.split_special("") == []
    assert tokenizer.encode_trusted("the<|im_end|>") == [257, end]
    assert Tokenizer.bytes(special=()).split_special("a<|im_end|>") == ["a<|im_end|>"]


def test_split_special_swallows_the_space_a_token_asks_for() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    assert Tokenizer(backend).split_special("x  <mask> y") == ["x", ("<mask>", 1), " y"]


def test_decode_shows_special_tokens_only_on_request() -> None:
    ids = [104, 105, 258]
    assert BYTES.decode(ids) == "hi"
    assert BYTES.decode(ids, skip_special=False) == "hi<|im_end|>"


def test_lone_surrogates_are_replaced() -> None:
    ids, offsets = BYTES.encode_with_offsets("a\ud83db")
    assert BYTES.decode(ids) == "a\ufffdb"
    assert offsets[-1] == (2, 3)


def test_add_special_appends_and_keeps() -> None:
    more = BYTES.add_special(["<image>", "<|im_end|>", "<image>"])
    assert more.special["<image>"] == 259
    assert more.vocab_size == 260
    assert more.special["<|im_end|>"] == 258
    assert more.eos == BYTES.eos
    assert "<image>" not in BYTES.special
    assert BYTES.encode("<image>") == more.encode("<image>")
    assert more.fingerprint() != BYTES.fingerprint()


@pytest.mark.parametrize("name", ["a", "", " "])
def test_add_special_refuses_ordinary_tokens(name: str) -> None:
    with pytest.raises(UserError, match="special token"):
        BYTES.add_special([name])


def test_a_role_needs_a_known_token() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="eos token is '<end>'"):
        Tokenizer(backend, eos="<end>")


def test_folder_round_trip(tmp_path) -> None:
    tokenizer = bpe().with_template("{{ messages }}")
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.chat_template == "{{ messages }}"
    assert again.eos == tokenizer.special["<|im_end|>"]
    assert again.encode("<|im_end|> the") == tokenizer.encode("<|im_end|> the")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["chat_template"] == "{{ messages }}"


def test_load_reads_the_forms_that_libraries_write(tmp_path) -> None:
    BYTES.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = {"content": "<|im_end|>", "special": True}
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).eos == 258
    assert Tokenizer.load(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(tmp_path).chat_template == "J"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "P"}))  # where older processors look
    assert Tokenizer.load(tmp_path).chat_template == "P"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("tokenizer.json", None, "tokenizer.json cannot be read"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", None, "is missing"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", "{", "is not JSON"),
    ],
)
def test_unusable_folders_name_the_file(tmp_path, file: str, text: str | None, expected: str) -> None:
    BYTES.save(tmp_path)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        Tokenizer.load(tmp_path)


def test_a_pickled_tokenizer_keeps_the_wall() -> None:
    again = pickle.loads(pickle.dumps(BYTES))
    assert again.encode("<|im_end|>") == BYTES.encode("<|im_end|>")
    assert again.fingerprint() == BYTES.fingerprint()


def test_fingerprint_follows_the_behaviour() -> None:
    assert Tokenizer.bytes().fingerprint() == BYTES.fingerprint()
    assert BYTES.with_template("x").fingerprint() != BYTES.fingerprint()
    assert len(BYTES.fingerprint()) == 64


def test_lower_case_is_read_once_and_for_all():
    upper = bpe()
    lower = upper.lower_case()
    assert lower.encode("THE Th") == upper.encode("the th") != upper.encode("THE Th")
    assert lower.special == upper.special
    assert lower.encode_trusted("<|im_end|>") == [upper.special["<|im_end|>"]]
    assert lower.lower_case() is lower


def test_readers_go_where_their_tokenizer_goes(tmp_path) -> None:
    reader = BYTES.add_special(("<q>",))
    both = BYTES.with_readers({"image": reader})
    assert both.fingerprint() not in (BYTES.fingerprint(), both.with_readers({"image": BYTES}).fingerprint())
    both.save(tmp_path)
    for again in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(both)), both.with_template(None)):
        assert again.readers["image"].fingerprint() == reader.fingerprint()
    assert both.add_special(("<r>",)).readers.keys() == {"image"}
    assert BYTES.readers == {}


def test_a_text_as_its_tokenizer_frames_it() -> None:
    backend = tokenizers.Tokenizer.from_str(BYTES._state)
    begin, end = BYTES.special["<|im_start|>"], BYTES.special["<|im_end|>"]
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", begin), ("<|im_end|>", end)]
    )
    framed = Tokenizer(backend)
    assert framed.encode_whole("a<|im_end|>") == [begin, *BYTES.encode("a<|im_end|>"), end]
    assert framed.encode_whole("") == [begin, end]
    assert BYTES.encode_whole("ab") == BYTES.encode("ab")


def test_a_stream_joins_over_special_tokens_that_are_not_shown() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0, "##b": 1, ",": 2, "[X]": 3}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[X]", special=True)])
    pieces = Tokenizer(backend)
    for ids in ([0, 3, 1, 2], [3, 0, 3, 3, 1], [0, 2, 3, 0, 1, 3], [0, 77, 1]):  # a model may say 77
        stream = pieces.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == pieces.decode(ids)
    assert pieces.decode([0, 3, 1, 2]) == "ab,"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is held")
def test_without_merges_texts_are_not_kept():
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    rng = random.Random(0)
    tokenizer = Tokenizer.bytes()
    tokenizer.encode("a" * 240)
    before = held()
    for _ in range(6000):
        tokenizer.encode("".join(rng.choices("abcdefgh", k=240)))
    assert held() - before < 10 << 20  # 38 MiB where the library remembers what it merged
