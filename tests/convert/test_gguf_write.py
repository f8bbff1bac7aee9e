"""Language models written as GGUF and read again: the same bits, the same words; what it cannot say is refused."""

import json
from pathlib import Path

import gguf
import pytest
import tokenizers
import torch
import transformers
from published import WORDS, saved
from test_convert_command import run
from test_published import BLOOM, GPT2, NO_HEAD_DIM, ODD, OPT, SIZE
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

import sensorium
from sensorium.convert.gguf import GGUF, open_gguf
from sensorium.convert.gguf_tokenizer import read_tokenizer, tokenizer_keys
from sensorium.convert.gguf_write import write_gguf
from sensorium.convert.published import open_published
from sensorium.errors import UserError
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.catalog import find
from sensorium.render import Template
from sensorium.tokenizer import Tokenizer, byte_symbols
from sensorium.train.build import build_model

LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
LLAMA3 = {"rope_parameters": {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64}}  # fmt: skip
CASES = {
    "llama": ("Llama", SIZE, {}, "llama"),
    "llama, odd": ("Llama", ODD, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "llama"),
    "llama, linear": ("Llama", SIZE, LINEAR, "llama"),
    "mistral, odd": ("Mistral", ODD, {"sliding_window": None}, "llama"),
    "qwen2": ("Qwen2", SIZE, {"num_key_value_heads": 2}, "qwen2"),
    "qwen2, odd": ("Qwen2", NO_HEAD_DIM, {"tie_word_embeddings": True}, "qwen2"),
    "gpt2": ("GPT2", GPT2, {}, "gpt2"),
    "gpt2, odd": ("GPT2", {**GPT2, "n_embd": 42, "n_head": 3}, {"n_inner": 55, "tie_word_embeddings": False}, "gpt2"),
    "bloom": ("Bloom", BLOOM, {}, "bloom"),
    "bloom, odd": ("Bloom", {**BLOOM, "hidden_size": 60, "n_head": 6}, {"tie_word_embeddings": False}, "bloom"),
}  # fmt: skip
TEXTS = ("a cat", "Two birds, 12 of them:  one sings.\n\n", "é 你好 <s>", "I'LL say 3.14159 it's")


def published(folder: Path, name: str, size: dict, changes: dict) -> Path:
    config = getattr(transformers, f"{name}Config")(**{**size, **changes})
    saved(getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}"), config, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_language_model_is_read_again_to_the_last_bit(case, tmp_path):
    name, size, changes, architecture = CASES[case]
    opened = open_published(published(tmp_path / "model", name, size, changes))
    out = tmp_path / "model.gguf"
    written = write_gguf(out, opened.model, opened.tokenizer, opened.template, context=123)
    assert (written.files, written.notes) == ([out], [])
    again, words, template = open_gguf(out)
    before, after = opened.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[one], after[one]) for one in before)
    with GGUF(out) as file:
        assert file.kind().name == architecture
        assert file.context() == (90 if name == "GPT2" else 123)
    ours = opened.template
    assert (template.chat, template.stop, template.begin, template.bos) == (ours.chat, ours.stop, ours.begin, ours.bos)
    assert all(words.encode(text) == opened.tokenizer.encode(text) for text in TEXTS)
    messages = [{"role": "user", "content": "Say something."}]
    said = sensorium.load(tmp_path / "model", precision="fp32").chat(messages, max_tokens=20)
    assert sensorium.load(out, precision="fp32").chat(messages, max_tokens=20) == said


def test_llama_3_scaling_is_a_tensor_of_factors(tmp_path):
    """It is llama.cpp's to read: from the factors alone the settings cannot be told, so it is not read here."""
    opened = open_published(published(tmp_path / "model", "Llama", {**SIZE, "hidden_size": 128}, LLAMA3))
    out = tmp_path / "model.gguf"
    write_gguf(out, opened.model, opened.tokenizer, opened.template)
    reader = gguf.GGUFReader(out)
    [factors] = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    # head width 32: the first frequencies stay, the last are an eighth
    assert factors.shape == (16,)
    assert (factors[0], factors[-1]) == (1.0, 8.0)
    assert (factors[1:] >= factors[:-1]).all()
    with pytest.raises(UserError, match="scales its rotary positions"):
        open_gguf(out)


@pytest.mark.parametrize(
    ("name", "size", "changes", "reason"),
    [
        ("OPT", {key: value for key, value in OPT.items() if key != "intermediate_size"}, {}, "cannot say this model"),
        ("GPT2", GPT2, {"activation_function": "relu"}, "block.ffn.activation is 'relu'"),
    ],
)
def test_what_no_architecture_says_is_refused_with_the_reasons(name, size, changes, reason, tmp_path):
    opened = open_published(published(tmp_path / "model", name, size, changes))
    with pytest.raises(UserError, match="no GGUF architecture that can be written says this model") as refused:
        write_gguf(tmp_path / "model.gguf", opened.model, opened.tokenizer, opened.template)
    assert reason in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# ---- numbers


def tiny(width: int = 64, dtype: torch.dtype = torch.float32) -> Fused:
    torch.manual_seed(0)
    backbone = llama(vocab=WORDS, width=width, depth=1, heads=2, kv_heads=1, hidden=96)
    model = Fused.Config(backbone=backbone).build().eval()
    for parameter in model.parameters():
        parameter.data.normal_()
    return model.to(dtype)


@pytest.mark.parametrize(
    ("numbers", "dtype", "expected"),
    [
        (None, torch.float32, "F32"), (None, torch.bfloat16, "BF16"), (None, torch.float16, "F16"),
        ("f16", torch.float32, "F16"), ("bf16", torch.float32, "BF16"), ("q8_0", torch.float32, "Q8_0"),
    ],
)  # fmt: skip
def test_types_of_numbers(numbers, dtype, expected, tmp_path):
    model, out = tiny(dtype=dtype), tmp_path / "model.gguf"
    write_gguf(out, model, Tokenizer.bytes(), Template(), numbers=numbers)
    with GGUF(out) as file:
        kinds = {name: stored.kind.name for name, stored in file.stored.items()}
        norms = {name for name in kinds if "norm" in name}
        assert len(norms) == 3
        assert {kinds[name] for name in norms} == {"F32"}
        assert {kinds[name] for name in kinds.keys() - norms} == {expected}
    before, after = model.backbone.state_dict(), open_gguf(out)[0].backbone.state_dict()
    for name, tensor in before.items():
        match expected:
            case "Q8_0" if "norm" not in name:
                step = tensor.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
                error = (after[name] - tensor).unflatten(-1, (-1, 32)).abs()
                assert (error <= (0.5 + 127 / 2**11) * step).all(), name  # half a step; the scale is a float16
                assert error.max() > 0
            case _:
                wanted = tensor if numbers is None or "norm" in name else tensor.to(getattr(torch, {
                    "F16": "float16", "BF16": "bfloat16"}[expected]))  # fmt: skip
                assert torch.equal(after[name], wanted.float()), name


def test_numbers_that_do_not_fit_leave_no_file(tmp_path):
    out = tmp_path / "model.gguf"
    with pytest.raises(UserError, match="rows of 60 numbers, which do not fill blocks of 32"):
        write_gguf(out, tiny(width=60), Tokenizer.bytes(), Template(), numbers="q8_0")
    large = tiny()
    large.backbone.blocks[0].ffn.down.weight.data[3, 4] = -70_000.0
    with pytest.raises(UserError, match="float16 cannot hold: choose bf16"):
        write_gguf(out, large, Tokenizer.bytes(), Template(), numbers="f16")
    with pytest.raises(UserError, match="there is no type 'q8'"):
        write_gguf(out, large, Tokenizer.bytes(), Template(), numbers="q8")
    assert list(tmp_path.iterdir()) == []


# ---- words


def bpe(pre, normalizer=None, begin: bool = False, whole: bool = False) -> Tokenizer:
    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in symbols.items()} | {"Ġ1": 256, "th": 257, "the": 258}
    vocabulary |= {"<s>": 261, "</s>": 262, "<pad>": 263, "own": 264}  # 259 and 260 have no token
    merges = [("Ġ", "1"), ("t", "h"), ("th", "e")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    backend.pre_tokenizer, backend.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False), "</s>", "<pad>"])
    backend.add_tokens([AddedToken("own", normalized=False)])
    if begin:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 261)])
    return Tokenizer(backend, bos="<s>", eos="</s>", pad="<pad>", chat_template="{{ messages }}")


def level(regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def split(digits: str) -> pre_tokenizers.PreTokenizer:
    words = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" + digits
             + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")  # fmt: skip
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), level(False)])


KINDS = {
    "gpt-2": lambda: bpe(level(True)),
    "smollm": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level(True)])),
    "llama-bpe": lambda: bpe(split("{1,3}"), begin=True, whole=True),
    "qwen2": lambda: bpe(split(""), normalizers.NFC()),
}


def sentences(*more: tuple[str, str]) -> Tokenizer:
    """Pieces as SentencePiece makes them (Llama 2): bytes where no piece is, a space before every text."""
    alone = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeht1é"]
    merges = [("▁", "a"), ("h", "e"), ("t", "he"), ("▁", "the"), ("a", "b"), ("▁", "ab"), ("▁a", "b"), *more]
    joined = dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: id for id, token in enumerate([*alone, *joined])}
    backend = tokenizers.Tokenizer(models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])  # fmt: skip
    backend.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in alone[:3]])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend, bos="<s>", eos="</s>", chat_template="{{ messages }}")


SENTENCES = ("the bathe ab", "  a  thé 1 😀", "that cab\n", "the", " ")


def test_pieces_are_read_again(tmp_path):
    tokenizer = sentences()
    out = tmp_path / "model.gguf"
    backbone = llama(vocab=tokenizer.vocab_size + 3, width=32, depth=1, heads=2, hidden=32)
    write_gguf(out, Fused.Config(backbone=backbone).build(), tokenizer, Template(chat="{{ messages }}", stop="</s>"))
    with GGUF(out) as file:
        again = file.tokenizer()
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.around() == ("<s>", "")
    assert all(again.encode(text) == tokenizer.encode(text) for text in SENTENCES)
    assert all(again.decode(again.encode(text)) == text for text in SENTENCES)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([("e", "d"), ("t", "h"), ("th", "e")], "make 'the' at several ranks"),
        ([("t", "h"), ("h", "a"), ("t", "ha")], r"never merges \('th', 'e'\) into 'the'"),
    ],
)
def test_merges_that_are_no_scores(more, reason):
    with pytest.raises(UserError, match=reason):
        tokenizer_keys(sentences(*more), Template(stop="</s>"), 400)


@pytest.mark.parametrize("pre", KINDS)
def test_a_tokenizer_is_read_again(pre, tmp_path):
    tokenizer = KINDS[pre]()
    out = tmp_path / "model.gguf"
    backbone = llama(vocab=270, width=32, depth=1, heads=2, hidden=32)
    template = Template(chat="{{ messages }}", stop="</s>", ends=("<pad>",))
    write_gguf(out, Fused.Config(backbone=backbone).build(), tokenizer, template)
    with GGUF(out) as file:
        assert file.metadata["tokenizer.ggml.pre"] == pre
        again = read_tokenizer(file)
        assert file.metadata["tokenizer.ggml.tokens"][-1] == "[PAD269]"
    assert again.fingerprint() == tokenizer.fingerprint()
    assert all(again.encode(text) == tokenizer.encode(text) for text in (*TEXTS, "own <pad> e\u0301"))
    assert again.around() == tokenizer.around() == ("<s>" if pre == "llama-bpe" else "", "")
    assert open_gguf(out)[2].ends == ("<pad>",)


def test_tokenizers_that_llama_cpp_does_not_have():
    whitespace = bpe(pre_tokenizers.Whitespace())
    with pytest.raises(UserError, match="cuts texts in a way that none of llama"):
        tokenizer_keys(whitespace, Template(stop="</s>"), 270)
    with pytest.raises(UserError, match="ids up to 264, the model a vocabulary of 262"):
        tokenizer_keys(bpe(level(True)), Template(stop="</s>"), 262)
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.add_special_tokens(["</s>"])
    with pytest.raises(UserError, match="is a WordLevel"):
        tokenizer_keys(Tokenizer(words, eos="</s>"), Template(stop="</s>"), 3)


def test_the_template_of_a_recipe_brings_its_system_message(tmp_path):
    recipe = find("llava", "tiny")
    template = recipe.template.replace(system='Be brief; say "yes".', asks=("Q: ", "?"), media={})
    out = tmp_path / "model.gguf"
    write_gguf(out, Fused.Config(backbone=recipe.model.backbone).build(), Tokenizer.bytes(), template)
    with GGUF(out) as file:
        chat = file.metadata["tokenizer.chat_template"]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(models.BPE()))
    theirs.chat_template = chat
    said = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert said.startswith('<|im_start|>system\nBe brief; say "yes".<|im_end|>\n<|im_start|>user\nQ: Hi?<|im_end|>')
    own = [{"role": "system", "content": "Own"}, {"role": "user", "content": "Hi"}]
    assert theirs.apply_chat_template(own, tokenize=False).startswith("<|im_start|>system\nOwn<|im_end|>")


# ---- the command


def test_the_command_writes_files_that_it_reads(tmp_path, capsys):
    published(tmp_path / "model", "Llama", SIZE, {"max_position_embeddings": 77})
    out = tmp_path / "out" / "model.gguf"
    assert run("convert", tmp_path / "model", out, "--to", "gguf", "--type", "bf16", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "files": [str(out)], "notes": []}
    with GGUF(out) as file:
        assert file.context() == 77
    assert run("convert", tmp_path / "model", out, "--to", "gguf") == 2
    assert "is there already" in capsys.readouterr().err
    assert run("convert", tmp_path / "model", tmp_path / "folder", "--to", "gguf") == 2
    assert "ends with .gguf" in capsys.readouterr().err
    assert run("convert", tmp_path / "model", tmp_path / "folder", "--type", "f16") == 2
    assert "--type chooses the numbers of a GGUF file" in capsys.readouterr().err
    assert run("convert", out, tmp_path / "back", "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llama"
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).state_dict()
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    matrices = [name for name, tensor in before.items() if tensor.ndim > 1]
    assert len(matrices) == 16
    assert all(torch.equal(after[name].bfloat16(), before[name]) for name in matrices)


def test_models_that_are_no_language_model(tmp_path):
    for name, reason in (("clip", "GGUF holds a language model"), ("flamingo", "this one also has"),
                         ("emu3", "this one also has")):  # fmt: skip
        recipe = find(name, "tiny")
        with pytest.raises(UserError, match=reason):
            write_gguf(tmp_path / "model.gguf", build_model(recipe), Tokenizer.bytes(), recipe.template)
    assert list(tmp_path.iterdir()) == []
